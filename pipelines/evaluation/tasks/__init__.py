"""Tasks: rendered clips, a user's JSONL, and the layouts of published benchmarks."""

from collections.abc import Callable
from pathlib import Path

from occam.errors import InvalidInput
from occam.models.base import ModelInfo
from pipelines.evaluation.tasks.benchmarks import BENCHMARKS
from pipelines.evaluation.tasks.entries import Choice, task_of
from pipelines.evaluation.tasks.jsonl import read_jsonl
from pipelines.evaluation.tasks.rendered import NAME, rendered_task
from pipelines.evaluation.tasks.scoring import Prompt
from pipelines.evaluation.tasks.task import Task
from pipelines.ingest.limits import Limits


def open_task(spec: str, choice: Choice, limits: Limits) -> Callable[[ModelInfo], Task]:
    """The task that `embedded`, `FILE.jsonl` or `NAME:FOLDER` names, for a model; its files are read here already."""
    if spec == NAME:
        return lambda info: rendered_task(info.media, choice.limit, choice.tuning, choice.seed)
    name, colon, folder = spec.partition(":")
    if colon and name in BENCHMARKS:
        layout, root = BENCHMARKS[name], Path(folder)
        task = task_of(name, layout.entries(root), root, layout.prompt, choice, limits)
    elif spec.endswith(".jsonl"):
        path = Path(spec)
        task = task_of(path.stem, read_jsonl(path), path.parent, Prompt(), choice, limits)
    else:
        known = ", ".join(f"{name}:FOLDER" for name in BENCHMARKS)
        raise InvalidInput(f"There is no task {spec!r}; there are {NAME}, FILE.jsonl, {known}.", "task")
    return lambda _: task
