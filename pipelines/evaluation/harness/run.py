"""Asking: every question of a task under every setting, over states that the questions of a clip share."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from occam.config import Pruning, SamplingParams
from occam.engine import Engine
from occam.errors import DecodeTimeout, InvalidInput
from occam.tensors import PrefixState
from occam.types import FrameBatch
from pipelines.evaluation.clips import state_name, state_of
from pipelines.evaluation.harness.log import AnswerLog
from pipelines.evaluation.harness.matching import Setting
from pipelines.evaluation.material import Progress
from pipelines.evaluation.tasks.task import Clip, Item, Task

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class _Errand:
    """A question under a setting; `state` names the prefix state it is asked over."""

    item: Item
    label: str
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
    prunings = {setting.label: setting.pruning(engine) for setting in settings}
    known = {(line["item"], line["setting"]) for line in log.answers}
    progress(task.name, 0, len(task.clips))
    for done, clip in enumerate(task.clips, start=1):
        errands = [
            _errand(engine, item, label, pruning)
            for label, pruning in prunings.items()
            for item in clip.items
            if (item.id, label) not in known
        ]
        if errands:
            _ask_clip(engine, clip, errands, task.max_new_tokens, log, clock)
        progress(task.name, done, len(task.clips))


def _ask_clip(
    engine: Engine, clip: Clip, errands: Sequence[_Errand], max_new_tokens: int, log: AnswerLog, clock: Clock
) -> None:
    """One clip; what is wrong with it is noted, and ends only it."""
    try:
        frames = clip.sample(engine.info).frames()
        for errand, state, state_s in _over_states(engine, frames, errands, clock):
            started = clock()
            answer = engine.ask(
                state, errand.item.question, errand.pruning, SamplingParams(max_new_tokens=max_new_tokens)
            )
            tokens = answer.visual_tokens
            log.append(
                {
                    "clip": clip.id,
                    "item": errand.item.id,
                    "setting": errand.label,
                    "text": answer.text,
                    "encoded": tokens.encoded,
                    "stage1": tokens.stage1,
                    "stage2": tokens.stage2,
                    "state_s": round(state_s, 6),
                    "ask_s": round(clock() - started, 6),
                }
            )
    except (InvalidInput, DecodeTimeout) as error:
        log.append({"clip": clip.id, "error": error.message})


def _over_states(
    engine: Engine, frames: FrameBatch, errands: Sequence[_Errand], clock: Clock
) -> Iterator[tuple[_Errand, PrefixState, float]]:
    """The errands with their states, those over one state together: one state at a time is held."""
    for _, group in groupby(sorted(errands, key=lambda errand: errand.state), key=lambda errand: errand.state):
        together = list(group)
        started = clock()
        state = state_of(engine, frames, together[0].pruning)
        seconds = clock() - started
        for errand in together:
            yield errand, state, seconds


def _errand(engine: Engine, item: Item, label: str, settled: Pruning) -> _Errand:
    """A strategy that reads the question before the decoder has a state a question."""
    pruning = engine.asked(settled, item.question)
    return _Errand(item=item, label=label, pruning=pruning, state=state_name(engine, pruning))
