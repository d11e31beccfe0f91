"""Calls and answers share one engine thread: in turns, in batches, and none waits for who went away."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any
from unittest import mock

import pytest

from occam.config import EngineConfig, SamplingParams
from occam.engine import Engine
from occam.engine.generation import Generation
from occam.errors import EngineFailure
from occam.types import Answer
from pipelines.evaluation.clips import frames_of
from pipelines.evaluation.renderer import draw_scene
from services.engine_thread import EngineThread


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(EngineConfig(threads=1, batch_sequences=3))


def in_a_loop(test: Callable[[Engine], Coroutine[Any, Any, None]]) -> Callable[[Engine], None]:
    """The test on an event loop of its own."""

    @wraps(test)
    def run(engine: Engine) -> None:
        asyncio.run(test(engine))

    return run


def asked(engine: Engine, seed: int, tokens: int = 4) -> Generation:
    pruning = engine.pruning()
    state = engine.state_of(frames_of(draw_scene(seed)), pruning)
    return engine.generation(state, "how many objects are there", pruning, SamplingParams(max_new_tokens=tokens))


async def whole(events: AsyncGenerator[str | Answer]) -> tuple[str, Answer]:
    pieces = []
    async for event in events:
        if isinstance(event, Answer):
            return "".join(pieces), event
        pieces.append(event)
    raise AssertionError("the answer ended without its end")


@in_a_loop
async def test_many_at_once_get_what_each_gets_alone(engine: Engine) -> None:
    alone = [engine.answers([asked(engine, seed)])[0].text for seed in range(8)]
    thread = EngineThread(engine)
    together = await asyncio.gather(*(whole(thread.answer(asked(engine, seed))) for seed in range(8)))
    assert [answer.text for _, answer in together] == alone
    assert [text for text, _ in together] == alone


@in_a_loop
async def test_a_call_does_not_wait_for_the_answers_that_run(engine: Engine) -> None:
    thread = EngineThread(engine)
    order: list[str] = []
    generation = asked(engine, 1, tokens=60)
    generation._lm = replace(engine.lm, prompt=Endless(engine.lm.prompt))  # type: ignore[type-var]

    async def answer() -> None:
        async for event in thread.answer(generation):
            order.append("piece" if isinstance(event, str) else "answer")  # noqa: PERF401 - as they come

    running = asyncio.create_task(answer())
    while "piece" not in order:
        await asyncio.sleep(0.001)
    for name in "abc":
        await thread.run(lambda: None)
        order.append(name)
    await running
    assert "answer" in order
    assert order.index("answer") > order.index("c")


@dataclass
class Endless:
    """A prompt at which nothing ends."""

    prompt: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.prompt, name)

    def is_stop(self, token: int) -> bool:
        return False

    def text(self, ids: Sequence[int]) -> str:
        return "x" * len(ids)


@in_a_loop
async def test_errors_go_to_who_asked(engine: Engine) -> None:
    thread = EngineThread(engine)

    def fails() -> None:
        raise ValueError("only mine")

    with pytest.raises(ValueError, match="only mine"):
        await thread.run(fails)
    good, broken, sampled = asked(engine, 3), asked(engine, 2), asked(engine, 4)
    broken.take = None  # type: ignore[method-assign, assignment]
    alone = engine.answers([asked(engine, 3)])[0].text
    results = await asyncio.gather(
        *(whole(thread.answer(each)) for each in (good, broken, sampled)), return_exceptions=True
    )
    assert isinstance(results[1], TypeError)
    assert [isinstance(each, tuple) for each in results] == [True, False, True]
    assert isinstance(results[0], tuple)
    assert results[0][0] == alone


@in_a_loop
async def test_a_thread_that_fails_ends_its_answers_and_goes_on(engine: Engine) -> None:
    thread = EngineThread(engine)
    full = mock.patch("services.engine_thread.metrics.BATCH_SEQUENCES.observe", side_effect=OSError("disk full"))
    with full, pytest.raises(EngineFailure, match="OSError"):
        await whole(thread.answer(asked(engine, 1)))
    text, answer = await whole(thread.answer(asked(engine, 1)))
    assert text == answer.text


@in_a_loop
async def test_an_idle_thread_holds_nothing(engine: Engine) -> None:
    thread = EngineThread(engine)
    generation = asked(engine, 1)
    await whole(thread.answer(generation))
    held = weakref.ref(generation)
    del generation
    for _ in range(50):
        gc.collect()
        if held() is None:
            break
        await asyncio.sleep(0.02)
    assert held() is None


@in_a_loop
async def test_who_goes_away_frees_its_place(engine: Engine) -> None:
    thread = EngineThread(engine)
    gate = threading.Event()
    held = asyncio.create_task(thread.run(gate.wait))
    await asyncio.sleep(0.05)
    skipped = asyncio.create_task(thread.run(lambda: pytest.fail("nobody waits for this")))
    gone = [asyncio.create_task(whole(thread.answer(asked(engine, seed)))) for seed in range(5)]
    await asyncio.sleep(0.05)
    for each in (skipped, *gone):
        each.cancel()
    await asyncio.gather(skipped, *gone, return_exceptions=True)
    gate.set()
    await held
    text, answer = await whole(thread.answer(asked(engine, 6)))
    assert text == answer.text
    assert not thread._scheduler.busy
    assert not thread._listeners


@in_a_loop
async def test_an_answer_left_in_its_middle_is_dropped(engine: Engine) -> None:
    thread = EngineThread(engine)
    async with aclosing(thread.answer(asked(engine, 1))) as events:
        async for _ in events:
            break
    await thread.run(lambda: None)
    await thread.run(lambda: None)
    assert not thread._scheduler.busy
    assert not thread._listeners
