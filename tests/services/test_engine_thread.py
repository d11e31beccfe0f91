"""Calls and answers share one engine thread: in turns, in batches, and none waits for who went away."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from functools import wraps
from typing import Any

import pytest

from occam.config import EngineConfig, SamplingParams
from occam.engine import Engine
from occam.engine.generation import Generation
from occam.types import Answer
from pipelines.evaluation.clips import frames_of, state_of
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
    state = state_of(engine, frames_of(draw_scene(seed)), pruning)
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

    async def answer() -> None:
        await whole(thread.answer(asked(engine, 1, tokens=200)))
        order.append("answer")

    async def call(name: str) -> None:
        await thread.run(lambda: None)
        order.append(name)

    running = asyncio.create_task(answer())
    for name in "abc":
        await call(name)
    await running
    assert order[0] == "a"


@in_a_loop
async def test_errors_go_to_who_asked(engine: Engine) -> None:
    thread = EngineThread(engine)

    def fails() -> None:
        raise ValueError("only mine")

    with pytest.raises(ValueError, match="only mine"):
        await thread.run(fails)
    broken = asked(engine, 2)
    broken.take = None  # type: ignore[method-assign, assignment]
    results = await asyncio.gather(
        whole(thread.answer(broken)), whole(thread.answer(asked(engine, 3))), return_exceptions=True
    )
    assert isinstance(results[0], TypeError)
    assert isinstance(results[1], tuple)


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
