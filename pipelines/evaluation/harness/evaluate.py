"""One evaluation from end to end: tasks opened, budgets matched, questions asked, results written."""

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

import occam
import pipelines
from occam.config import EngineConfig
from occam.engine import Engine
from occam.errors import DecodeTimeout, InvalidInput
from occam.models.base import ModelInfo
from pipelines.evaluation.harness.log import AnswerLog
from pipelines.evaluation.harness.matching import Setting, settings_of
from pipelines.evaluation.harness.pictures import draw_kept
from pipelines.evaluation.harness.plan import Plan
from pipelines.evaluation.harness.report import json_of, markdown_of, relative_markdown
from pipelines.evaluation.harness.run import ask_all
from pipelines.evaluation.harness.scores import Table, table_of
from pipelines.evaluation.material import Progress, Sample
from pipelines.evaluation.tasks import open_task
from pipelines.evaluation.tasks.entries import Choice
from pipelines.evaluation.tasks.task import Clip, Task
from pipelines.ingest.limits import Limits

LOG, RESULTS, REPORT, RELATIVE = "answers.jsonl", "results.json", "report.md", "relative.md"
NO_PLOTS = "There are no plots, since matplotlib is not installed: pip install 'occam-video[eval]'."
PICTURED = 0.25
"""Kept patches are drawn at the budget nearest to this one."""


def evaluate(
    config: EngineConfig,
    plan: Plan,
    limits: Limits,
    progress: Progress,
    load: Callable[[EngineConfig], Engine] = Engine.load,
) -> list[Table]:
    """Ask what has not been asked yet, and write log, results and report of every task into a folder of its name."""
    choice = Choice(limit=plan.limit, tuning=plan.tuning, seed=plan.seed)
    opened = [open_task(spec, choice, limits) for spec in plan.tasks]
    engine = load(config)
    tasks = [make(engine.info) for make in opened]
    if len({task.name for task in tasks}) < len(tasks):
        raise InvalidInput("Two tasks have the same name, and so the same folder.", "task")
    tables = [_evaluate(engine, plan, task, progress) for task in tasks]
    (plan.out / RELATIVE).write_text(relative_markdown(tables))
    return tables


def _evaluate(engine: Engine, plan: Plan, task: Task, progress: Progress) -> Table:
    folder = plan.out / task.name
    run = _run(engine, plan, task)
    with AnswerLog(folder / LOG, run) as log:
        if log.settings is None:
            tuning = _readable(task.tuning, engine.info)
            log.begin([asdict(setting) for setting in settings_of(engine, plan, tuning, progress)])
        settings = [Setting(**line) for line in log.settings or ()]
        ask_all(engine, task, settings, log, progress)
        table = table_of(task, settings, log.answers, plan.against)
        figures = [*_plots(table, folder), *_pictures(engine, task, settings, plan.pictures, folder)]
        note = "" if _has_matplotlib() else NO_PLOTS
        (folder / RESULTS).write_text(json_of(table, run, log.settings or []))
        (folder / REPORT).write_text(markdown_of(table, run, figures, note))
    return table


def _readable(clips: Sequence[Clip], info: ModelInfo) -> list[Sample]:
    """Those to tune on that can be opened: the others say nothing about budgets."""
    samples = []
    for clip in clips:
        with suppress(InvalidInput, DecodeTimeout):
            samples.append(clip.sample(info))
    return samples


def _run(engine: Engine, plan: Plan, task: Task) -> dict[str, Any]:
    """What two runs must share for the answers of one to stand beside those of the other."""
    config = engine.config
    return {
        "model": Path(engine.info.name).name,
        "weights": engine.info.digest,
        "model configuration": f"{engine.info.config_digest} {engine.info.text_digest}",
        "calibration": engine.info.calibration.digest if engine.info.calibration else "",
        "task": task.name,
        "questions": task.digest,
        "strategies": [spec.label for spec in plan.strategies],
        "budgets": list(plan.budgets),
        "seed": plan.seed,
        "device": config.device,
        "dtype": config.dtype,
        "threads": config.threads,
        "chunk_frames": config.chunk_frames,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "code": code_digest(),
    }


@cache
def code_digest() -> str:
    """SHA-256 of the library's and the pipelines' sources: a version that nobody has to remember to raise."""
    digest = hashlib.sha256()
    for root in (Path(package.__file__ or "").parent for package in (occam, pipelines)):
        for path in sorted(root.rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _plots(table: Table, folder: Path) -> list[str]:
    if not _has_matplotlib():
        return []
    from pipelines.evaluation.harness.plots import plot_accuracy, plot_seconds

    plot_accuracy(table, folder / "accuracy.png")
    plot_seconds(table, folder / "seconds.png")
    return ["accuracy.png", "seconds.png"]


def _has_matplotlib() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _pictures(engine: Engine, task: Task, settings: Sequence[Setting], count: int, folder: Path) -> list[str]:
    """Of the first clips that can be used, at the budget that shows most."""
    budgets = [setting.budget for setting in settings if setting.budget is not None]
    shown = min(budgets, key=lambda budget: abs(budget - PICTURED), default=None)
    drawn = [setting for setting in settings if setting.budget in (None, shown)]
    names: list[str] = []
    for clip in task.clips:
        if len(names) == count:
            break
        name = f"kept-{len(names) + 1}.png"
        try:
            draw_kept(engine, clip, drawn, task.max_new_tokens, folder / name)
        except (InvalidInput, DecodeTimeout):
            continue
        names.append(name)
    return names
