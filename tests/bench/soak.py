"""A load of many clients for minutes: new clips and known ones, first questions and follow-ups, on one engine thread.

Some leave in the middle of an answer. States live in a memory tier smaller than all of them, so that they come and go.
A leak shows as memory that grows between the second tenth of the run and the last: the first is warming up.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from occam.config import Pruning, SamplingParams
from occam.engine import Engine
from occam.kv.key import KVKey, MediumKey
from occam.kv.store import MemoryStore
from occam.tensors import PrefixState
from occam.types import Answer, FrameBatch, Turn
from pipelines.evaluation.accuracy import questions_about
from pipelines.evaluation.clips import clean_frames_of
from pipelines.evaluation.renderer import FIRST_TUNING_SEED, SceneConfig, draw_scene
from tests.bench.machine import described, held_bytes
from tests.bench.report import Report, Table
from tests.bench.subject import config_of, precision

if TYPE_CHECKING:  # the service's packages are needed to run this section, not to import it
    from services.engine_thread import EngineThread

MODELS = ("tiny-video-llava",)
LENGTHS = (2, 4, 8)
"""Frames of a clip, in turn."""
CLIPS, TURNS, TOKENS = 64, 3, (1, 12)
"""Clips in all; turns of a conversation at most; range of an answer's tokens."""
LEAVES = 0.1
"""How likely a client leaves with any piece of an answer."""
SHARES = (0.1, 0.2, 0.9, 1.0)
"""Where the windows that are compared begin and end, of the whole run."""
GROWTH = 1.05
"""Of the memory held in the second window to that in the first, at most."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of this section alone."""
    parser.add_argument("--minutes", type=float, default=10.0, help="of soak (10)")
    parser.add_argument("--clients", type=int, default=16, help="at once in soak (16)")
    parser.add_argument("--cache-mib", type=float, default=16.0, help="bound of the memory tier in soak (16)")


@dataclass(kw_only=True)
class Load:
    """What the clients share, and what they did."""

    engine: Engine
    thread: "EngineThread"
    store: MemoryStore
    pruning: Pruning
    clips: list[tuple[FrameBatch, list[str]]]
    ends: float
    done: Counter[str] = field(default_factory=Counter)
    errors: list[Exception] = field(default_factory=list)
    held: list[tuple[float, int]] = field(default_factory=list)

    async def client(self, seed: int) -> None:
        """One conversation after the other until the time is over."""
        draw = random.Random(seed)
        while time.monotonic() < self.ends:
            frames, questions = draw.choice(self.clips)
            try:
                await self._converse(draw, frames, draw.sample(questions, draw.randint(1, min(TURNS, len(questions)))))
            except Exception as error:
                self.errors.append(error)

    async def _converse(self, draw: random.Random, frames: FrameBatch, questions: list[str]) -> None:
        state = await self._state(frames)
        turns: list[Turn] = []
        for question in questions:
            replayed = await self.thread.run(self.engine.replay, state, turns)
            sampling = SamplingParams(max_new_tokens=draw.randint(*TOKENS))
            generation = await self.thread.run(self.engine.generation, replayed, question, self.pruning, sampling)
            async with aclosing(self.thread.answer(generation)) as events:
                async for event in events:
                    if isinstance(event, Answer):
                        turns.append(event.turn)
                    elif draw.random() < LEAVES:
                        self.done["left in the middle"] += 1
                        return
            self.done["follow-ups" if len(turns) > 1 else "first questions"] += 1

    async def _state(self, frames: FrameBatch) -> PrefixState:
        """Of the memory tier, or built chunk by chunk in turn with everything else."""
        indices = tuple(frames.indices.tolist())
        medium = MediumKey(kind="video", digest=frames.digest, frame_indices=indices, decode_backend="rendered")
        key = KVKey(media=(medium,), facts=self.engine.key_facts(self.pruning))
        if (state := await self.store.get(key)) is not None:
            self.done["states found"] += 1
            return state
        state = await self.thread.run(self.engine.begin, self.pruning)
        step = self.engine.chunk(self.pruning, len(frames))
        for start in range(0, len(frames), step):
            chunk = frames.chunk(start, min(start + step, len(frames)))
            state, _, _ = await self.thread.append(state, chunk, self.pruning)
        await self.store.put(key, state)
        self.done["states built"] += 1
        return state

    async def watch(self) -> None:
        """Memory held, once a second."""
        while time.monotonic() < self.ends:
            self.held.append((time.monotonic(), held_bytes(self.engine.config.device)))
            await asyncio.sleep(1.0)


def measure(model: str, args: argparse.Namespace) -> Report:
    """Run one model's load; the report says what became of memory."""
    from services.engine_thread import EngineThread

    engine = Engine.load(config_of(model, args))
    seconds = 60 * args.minutes
    load = Load(
        engine=engine,
        thread=EngineThread(engine),
        store=MemoryStore(int(args.cache_mib * 2**20)),
        pruning=engine.pruning(),
        clips=[_clip(number) for number in range(CLIPS)],
        ends=time.monotonic() + seconds,
    )
    asyncio.run(_run(load, args.clients))
    early, late = (_held_mib(load, seconds, *window) for window in (SHARES[:2], SHARES[2:]))
    title = f"{args.minutes:g} minutes, {args.clients} clients at once, {CLIPS} clips of {LENGTHS} frames"
    return Report(
        section="soak",
        model=model,
        device=args.device,
        facts=described(args.device) | {"dtype": precision(args), "memory tier": f"{args.cache_mib:g} MiB"},
        tables=(_table(load, title, seconds, early, late),),
        failures=failures_of(len(load.errors), early, late),
    )


def failures_of(errors: int, early: float, late: float) -> tuple[str, ...]:
    """What is said of errors, and of memory that grew too much; early, late: MiB held."""
    failures = [f"{errors} errors"] if errors else []
    if late > GROWTH * early:
        failures.append(f"memory grew from {early:.0f} to {late:.0f} MiB, more than {GROWTH:g} times")
    return tuple(failures)


async def _run(load: Load, clients: int) -> None:
    await asyncio.gather(load.watch(), *(load.client(seed) for seed in range(clients)))


def _clip(number: int) -> tuple[FrameBatch, list[str]]:
    scene = draw_scene(FIRST_TUNING_SEED + number, SceneConfig(frames=LENGTHS[number % len(LENGTHS)]))
    return clean_frames_of(scene), [question.text for question in questions_about(scene, TURNS)]


def _held_mib(load: Load, seconds: float, first: float, last: float) -> float:
    """The mean over a window of the run, which begins and ends at these shares of it."""
    started = load.ends - seconds
    return statistics.fmean(nbytes / 2**20 for at, nbytes in load.held if first <= (at - started) / seconds <= last)


def _table(load: Load, title: str, seconds: float, early: float, late: float) -> Table:
    answers = load.done["first questions"] + load.done["follow-ups"]
    rows = (
        ("memory held in the second tenth of the run, MiB", early),
        ("memory held in the last tenth, MiB", late),
        ("last / second", f"{late / early:.4f}"),
        ("answers a second", answers / seconds),
        *load.done.items(),
        ("errors", len(load.errors)),
    )
    return Table(title=title, columns=("", "measured"), rows=rows, note="\n".join(sorted({*map(repr, load.errors)})))
