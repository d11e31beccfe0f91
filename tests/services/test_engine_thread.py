"""Calls and answers share one engine thread: in turns, in batches, and none waits for who went away."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import wraps
from itertools import pairwise
from typing import Any
from unittest import mock

import pytest
import torch

from occam.config import EngineConfig, SamplingParams
from occam.engine import Engine
from occam.engine.generation import Generation
from occam.engine.sharing import sharing
from occam.errors import EngineFailure, InvalidInput, VideoTooLarge
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


class Shared:
    """An engine whose chunks share batches of 6 views, and clips that wait for it together while it is held up."""

    def __init__(self) -> None:
        self.engine = Engine.load(EngineConfig(threads=1, chunk_frames=4, batch_views=6))
        self.pruning = self.engine.pruning()
        self.begun = self.engine.begin(self.pruning)
        self.encode_together = self.engine.encode_together
        self.passes: list[list[int]] = []
        self.engine.encode_together = self.watched  # type: ignore[method-assign]
        self.thread = EngineThread(self.engine)

    def watched(self, chunks: Any) -> Any:
        self.passes.append([len(frames) for frames, _ in chunks])
        return self.encode_together(chunks)

    def chunks(self, *lengths: int) -> list[Any]:
        return [frames_of(draw_scene(seed)).chunk(0, length) for seed, length in enumerate(lengths)]

    async def held_up(self) -> tuple[threading.Event, "asyncio.Task[Any]"]:
        gate = threading.Event()
        held = asyncio.create_task(self.thread.run(gate.wait))
        await asyncio.sleep(0.05)
        return gate, held

    async def waiting(self, chunks: Sequence[Any]) -> list["asyncio.Task[Any]"]:
        tasks = [asyncio.create_task(self.thread.append(self.begun, chunk, self.pruning)) for chunk in chunks]
        await asyncio.sleep(0.05)
        return tasks


@in_a_loop
async def test_chunks_that_wait_share_a_pass_and_get_what_each_gets_alone(engine: Engine) -> None:
    shared = Shared()
    chunks = shared.chunks(4, 1, 3, 1, 2)
    gate, _ = await shared.held_up()
    tasks = await shared.waiting(chunks)
    gate.set()
    appended = await asyncio.gather(*tasks)
    assert shared.passes == [[4, 1, 1], [3, 2]]
    for chunk, (state, tokens, (encoding, prefill)) in zip(chunks, appended, strict=True):
        alone, (own, _) = shared.engine.append(shared.begun, chunk, shared.pruning)
        assert all(map(torch.equal, state.keys, alone.keys))
        assert state.hidden.equal(alone.hidden)
        assert (encoding.tokens_in, tokens.encoded, encoding.tokens_out) == (
            own.tokens_in,
            own.tokens_in,
            own.tokens_out,
        )
        assert encoding.shared_s is not None
        assert encoding.seconds > encoding.work_s > 0 < prefill.seconds
    first, second = ([appended[place][2][0] for place in places] for places in ([0, 1, 3], [2, 4]))
    for stats in (first, second):
        assert sum(stage.work_s for stage in stats) == pytest.approx(stats[0].seconds, rel=0.01)


@in_a_loop
async def test_a_chunk_that_fails_ends_no_other_of_its_pass(engine: Engine) -> None:
    shared = Shared()
    chunks = shared.chunks(1, 2, 3)
    poisoned = chunks[1]
    encode = shared.encode_together

    def fails(chunks: Any) -> Any:
        if any(frames is poisoned for frames, _ in chunks):
            raise ValueError("this one")
        return encode(chunks)

    shared.encode_together = fails
    gate, _ = await shared.held_up()
    tasks = await shared.waiting(chunks)
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [tuple, ValueError, tuple]
    assert shared.passes == [[1, 2, 3], [1], [2], [3]]
    with pytest.raises(InvalidInput, match="not image"):
        await shared.thread.append(shared.begun, replace(chunks[0], kind="image"), shared.pruning)
    with pytest.raises(VideoTooLarge):
        await shared.thread.append(replace(shared.begun, next_position=10**6), chunks[0], shared.pruning)


@in_a_loop
async def test_frames_nobody_waits_for_are_not_encoded(engine: Engine) -> None:
    shared = Shared()
    gate, held = await shared.held_up()
    tasks = await shared.waiting(shared.chunks(1, 2, 3))
    tasks[0].cancel()
    tasks[2].cancel()
    await asyncio.gather(tasks[0], tasks[2], return_exceptions=True)
    gate.set()
    await held
    await tasks[1]
    assert shared.passes == [[2]]
    assert not shared.thread._chunks


@in_a_loop
async def test_videos_and_answers_take_turns(engine: Engine) -> None:
    """Between any two passes of the tower everybody who decodes gets a token."""
    shared = Shared()
    order: list[str] = []
    step = shared.engine.step

    def stepped(generations: Any) -> None:
        order.append("step")
        step(generations)

    def encode(chunks: Any) -> Any:
        order.append("pass")
        return encode_together(chunks)

    encode_together, shared.encode_together = shared.encode_together, encode
    shared.engine.step = stepped  # type: ignore[method-assign]
    generation = asked(shared.engine, 1, tokens=20)
    generation._lm = replace(shared.engine.lm, prompt=Endless(shared.engine.lm.prompt))  # type: ignore[type-var]
    order.clear()
    gate, _ = await shared.held_up()
    running = asyncio.create_task(whole(shared.thread.answer(generation)))
    tasks = await shared.waiting(shared.chunks(4, 4, 4, 4))
    gate.set()
    await asyncio.gather(running, *tasks)
    assert order.count("pass") == 4
    passes = [place for place, what in enumerate(order) if what == "pass"]
    assert passes[-1] < 12, "nor do answers hold up a video"
    assert all("step" in order[one:other] for one, other in pairwise(passes[1:]))


@in_a_loop
async def test_frames_that_come_while_others_are_chosen_are_not_lost(engine: Engine) -> None:
    shared = Shared()
    first, second = shared.chunks(4, 4)
    chosen, go_on = threading.Event(), threading.Event()

    def slowly(loads: Any) -> list[int]:
        chosen.set()
        go_on.wait()
        return sharing(loads)

    with mock.patch("services.engine_thread.sharing", slowly):
        one = asyncio.create_task(shared.thread.append(shared.begun, first, shared.pruning))
        while not chosen.is_set():
            await asyncio.sleep(0.001)
        threading.Timer(0.1, go_on.set).start()
        other = asyncio.create_task(shared.thread.append(shared.begun, second, shared.pruning))
        async with asyncio.timeout(30):
            await asyncio.gather(one, other)
