"""Asking: every question of a task under every setting, over states that the questions of a clip share.

A clip's questions under one setting are asked together; a question's seconds are its share of theirs.
"""

import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from occam.config import Pruning, SamplingParams
from occam.engine import Engine
from occam.errors import DecodeTimeout, InvalidInput
from occam.tensors import PrefixState
from occam.types import FrameBatch
from pipelines.evaluation.clips import state_name
from pipelines.evaluation.harness.log import AnswerLog
from pipelines.evaluation.harness.matching import Setting
from pipelines.evaluation.harness.tower import Clock, RememberedTower
from pipelines.evaluation.material import Progress
from pipelines.evaluation.tasks.task import Clip, Item, Task

TOGETHER = 16
"""Questions of a clip in one pass, at most."""


@dataclass(frozen=True, kw_only=True)
class _Errand:
    """A question under the settings that come to the same; `state` names the prefix state it is asked over."""

    item: Item
    labels: tuple[str, ...]
    pruning: Pruning
    state: str


def ask_all(
    engine: Engine,
    task: Task,
    settings: Sequence[Setting],
    log: AnswerLog,
    progress: Progress,
    clock: Clock = time.perf_counter,
) -> None:
    """Append to the log what it lacks: a line an answer, or one that says why a clip cannot be asked about."""
    labels: dict[Pruning, list[str]] = {}
    for setting in settings:
        labels.setdefault(setting.pruning(engine), []).append(setting.label)
    known = {(line["item"], line["setting"]) for line in log.answers}
    progress(task.name, 0, len(task.clips))
    for done, clip in enumerate(task.clips, start=1):
        errands = [
            _errand(engine, item, tuple(same), pruning)
            for pruning, same in labels.items()
            if any((item.id, label) not in known for item in clip.items for label in same)
            for item in clip.items
        ]
        if errands:
            _ask_clip(engine, clip, errands, task.max_new_tokens, clock, partial(_append_new, log, known))
        progress(task.name, done, len(task.clips))


def _append_new(log: AnswerLog, known: Container[tuple[str, str]], line: dict[str, Any]) -> None:
    """What an interrupted run asked together is asked together again, whatever of it was logged."""
    if (line.get("item"), line.get("setting")) not in known:
        log.append(line)


def _ask_clip(
    engine: Engine,
    clip: Clip,
    errands: Sequence[_Errand],
    max_new_tokens: int,
    clock: Clock,
    append: Callable[[dict[str, Any]], None],
) -> None:
    """One clip; what is wrong with it is noted, and ends only it."""
    sampling = SamplingParams(max_new_tokens=max_new_tokens)
    tower = RememberedTower(engine.lm, clock)
    asking = engine.over(tower.model)
    try:
        frames = clip.sample(engine.info).frames()
        for together, state, state_s in _over_states(asking, tower, frames, errands, clock):
            started = clock()
            answers = asking.answers(
                [asking.generation(state, each.item.question, each.pruning, sampling) for each in together]
            )
            ask_s = (clock() - started) / len(together)
            for errand, answer in zip(together, answers, strict=True):
                tokens = answer.visual_tokens
                line = {
                    "text": answer.text,
                    "encoded": tokens.encoded,
                    "stage1": tokens.stage1,
                    "stage2": tokens.stage2,
                    "state_s": round(state_s, 6),
                    "ask_s": round(ask_s, 6),
                }
                for label in errand.labels:
                    append({"clip": clip.id, "item": errand.item.id, "setting": label} | line)
    except (InvalidInput, DecodeTimeout) as error:
        append({"clip": clip.id, "error": error.message})


def _over_states(
    engine: Engine, tower: RememberedTower, frames: FrameBatch, errands: Sequence[_Errand], clock: Clock
) -> Iterator[tuple[Sequence[_Errand], PrefixState, float]]:
    """Errands under one setting, at most `TOGETHER`, with their state, one of which is held, and what it takes."""
    for _, group in groupby(sorted(errands, key=lambda errand: errand.state), key=lambda errand: errand.state):
        over_state = list(group)
        started, saved_s = clock(), tower.saved_s
        state = engine.state_of(frames, over_state[0].pruning)
        seconds = clock() - started + tower.saved_s - saved_s
        for _, alike in groupby(over_state, key=lambda errand: errand.labels):
            together = list(alike)
            for first in range(0, len(together), TOGETHER):
                yield together[first : first + TOGETHER], state, seconds


def _errand(engine: Engine, item: Item, labels: tuple[str, ...], settled: Pruning) -> _Errand:
    """A strategy that reads the question before the decoder has a state a question."""
    pruning = engine.asked(settled, item.question)
    return _Errand(item=item, labels=labels, pruning=pruning, state=state_name(engine, pruning))
