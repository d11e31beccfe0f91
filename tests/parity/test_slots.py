"""A step in slots gives what the packed step gives, whoever joins, leaves or outgrows its place.

On a CPU nothing is recorded; `Recorder` keeps a run's shape as a CUDA graph would, and says what was recorded.
"""

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from occam.config import SamplingParams
from occam.engine import Engine, prefix, turn
from occam.engine.decoding import SlotDecoding, decoding_of, packed
from occam.engine.generation import Generation
from occam.engine.scheduler import Scheduler
from occam.models import slots
from occam.models.packing import SequenceKV
from occam.models.recording import CudaGraphs
from occam.models.slots import Run, Slots
from occam.tensors import PrefixState
from tests.parity import checkpoint, checkpoint_qwen
from tests.parity.harness import load
from tests.parity.test_batch import Alone, Question, assert_all_same, assert_same, questions_of

PLENTY = 1 << 30
NEAR = {"atol": 1e-4, "rtol": 0.0}


class Recorder:
    """Runs over the very tensors that it was recorded with and gives the same one every time, as a graph does."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, run: Run) -> Run:
        self.shapes.append((run.args[0], *run.args[1]))
        own: Slots = run.func.__self__
        tensors = {"_keys": list(own._keys), "_values": list(own._values), "_inputs_there": own._inputs_there}
        result = run()

        def replay() -> Tensor:
            with mock.patch.multiple(own, **tensors):
                return result.copy_(run())

        return replay


@pytest.fixture(scope="module", params=["engine", "qwen_engine"])
def asked(request: pytest.FixtureRequest) -> tuple[Engine, list[Question], Alone]:
    """An engine, questions to it of every kind of cut and length, and what it answers to each alone, packed."""
    engine = request.getfixturevalue(request.param)
    kind = checkpoint if request.param == "engine" else checkpoint_qwen
    questions = questions_of(engine, kind.random_frames, 3 if request.param == "engine" else 1)
    for each in questions:
        each.sampling = replace(each.sampling, max_new_tokens=3 * each.sampling.max_new_tokens)
    alone = [(engine.answers([each.generation(engine)])[0], each.logits) for each in questions]
    return engine, questions, alone


def slotted(engine: Engine, most_bytes: int = PLENTY, lanes: int = 1) -> tuple[Engine, SlotDecoding, Recorder]:
    recorder = Recorder()
    decoder = engine.lm.decoder
    decoding = SlotDecoding(decoder, Slots(decoder, lanes, most_bytes, recorder))
    other = Engine(engine.lm, engine.config)
    other.decode = decoding
    return other, decoding, recorder


@pytest.fixture
def few_places() -> Iterator[None]:
    """So few that answers outgrow them, and nobody knows beforehand."""

    def begun(lm: Any, state: PrefixState, room: int) -> SequenceKV:
        del room
        return prefix.lower_sequence(lm, state, 1)

    with mock.patch.object(slots, "PLACES", 4), mock.patch.object(turn, "lower_sequence", begun):
        yield


@pytest.mark.usefixtures("few_places")
@pytest.mark.parametrize("lanes", [1, 16])
def test_together_in_slots_as_alone_packed(asked: tuple[Engine, list[Question], Alone], lanes: int) -> None:
    engine, questions, alone = asked
    other, decoding, recorder = slotted(engine, lanes=lanes)
    assert_all_same(other.answers([each.generation(other) for each in questions]), questions, alone)
    assert decoding.packed_steps == 0
    assert {shape[0] for shape in recorder.shapes} == {8, 4, 2, 1}, "as many lanes as run"
    assert len({shape[1:] for shape in recorder.shapes}) > 2, "answers outgrow their places"
    ragged = [shape for shape in recorder.shapes if len(set(shape[1:])) > 1]
    assert ragged, "layers behind a cut have fewer places"


def test_logits_are_those_of_the_packed_step_to_the_rounding(asked: tuple[Engine, list[Question], Alone]) -> None:
    engine, questions, _ = asked
    other, _, _ = slotted(engine)
    ours, theirs = ([each.generation(engine) for each in questions] for _ in range(2))
    with torch.inference_mode():
        for generations, decode in ((ours, other.decode), (theirs, engine.decode)):
            engine.start(generations)
            logits = [step_of(generations, decode, token) for token in (5, 9, 20)]
            generations[0].seen = torch.stack(logits)
    torch.testing.assert_close(ours[0].seen, theirs[0].seen, **NEAR)


def step_of(generations: Sequence[Generation], decode: Any, token: int) -> Tensor:
    """Any token will do; it is the second of each, and stands at its place."""
    for generation in generations:
        generation.ids.append(token)
    return decode(
        [generation.prefilled.kv for generation in generations],
        [token] * len(generations),
        [generation.position for generation in generations],
    )


@pytest.mark.usefixtures("few_places")
def test_joining_and_leaving_changes_nothing_for_the_others(asked: tuple[Engine, list[Question], Alone]) -> None:
    """One a pass joins; one is left out for a while and comes back; one is never finished."""
    engine, questions, alone = asked
    other, _, _ = slotted(engine)
    waiting = [each.generation(other) for each in reversed(questions)]
    everyone, running, passes = list(reversed(waiting)), [], 0
    abandoned, paused = everyone[4], everyone[6]
    while waiting or [each for each in everyone if each.answer is None and each is not abandoned]:
        passes += 1
        if waiting:
            running.append(waiting.pop())
            other.start(running[-1:])
        left_out = [abandoned] if passes > 6 else []
        left_out += [paused] if passes % 3 else []
        running = [each for each in running if each.answer is None]
        if stepping := [each for each in running if each not in left_out]:
            other.step(stepping)
    assert abandoned.answer is None
    for generation, question, (expected, logits) in zip(everyone, questions, alone, strict=True):
        if generation is not abandoned:
            assert_same(generation.answer, question.logits, expected, logits)


def test_a_lane_is_free_as_soon_as_its_answer_is_forgotten(asked: tuple[Engine, list[Question], Alone]) -> None:
    engine, questions, alone = asked
    other, decoding, _ = slotted(engine, lanes=2)
    scheduler = Scheduler(other)
    first, second, third = (questions[place].generation(other) for place in (6, 4, 3))
    for each in (first, second):
        scheduler.add(each)
    scheduler.advance()
    scheduler.advance()
    held = decoding._slots
    assert sorted(held._lane_of.values()) == [0, 1]
    scheduler.drop(second)
    del second, each
    gc.collect()
    assert list(held._lane_of.values()) == [0]
    scheduler.add(third)
    keys = held._keys[0]
    while scheduler.busy:
        scheduler.advance()
    assert held._keys[0] is keys, "it found place where the second one was"
    for generation, place in ((first, 6), (third, 3)):
        assert_same(generation.answer, questions[place].logits, *alone[place])


def test_what_is_seated_is_held_once_and_given_back_whole(asked: tuple[Engine, list[Question], Alone]) -> None:
    engine, questions, _ = asked
    other, decoding, _ = slotted(engine)
    generation = questions[1].generation(other)
    other.start([generation])
    sequence: SequenceKV = generation.prefilled.kv
    layers = range(other.info.layers)
    before = [sequence.keys(layer).clone() for layer in layers]
    other.step([generation])
    assert [sequence.length(layer) for layer in layers] == [0 for _ in layers]
    other.step([generation])
    with torch.inference_mode():
        decoding._slots._leave(sequence)
    for layer, held in enumerate(before):
        assert sequence.length(layer) == held.shape[1] + 2
        assert sequence.keys(layer)[:, : held.shape[1]].equal(held)


@pytest.mark.usefixtures("few_places")
def test_without_room_a_step_is_packed_and_counted(asked: tuple[Engine, list[Question], Alone]) -> None:
    """Room for few: who runs at the end, alone, is in a slot again."""
    engine, questions, alone = asked
    shape = [1, *[256] * engine.info.layers]
    heads, width = engine.lm.decoder.kv_shape
    other, decoding, recorder = slotted(engine, most_bytes=2 * sum(shape[1:]) * heads * width * 4, lanes=16)
    generations = [each.generation(other) for each in questions]
    assert_all_same(other.answers(generations), questions, alone)
    assert 0 < decoding.packed_steps < max(len(answer.turn.generated_ids) for answer, _ in alone)
    assert recorder.shapes


def test_an_answer_has_its_places_from_the_start(asked: tuple[Engine, list[Question], Alone]) -> None:
    engine, questions, alone = asked
    with mock.patch.object(slots, "PLACES", 4):
        other, _, recorder = slotted(engine)
        with mock.patch.object(Slots, "_lay_out", autospec=True, side_effect=Slots._lay_out) as laid_out:
            assert_all_same(other.answers([questions[6].generation(other)]), questions[6:], alone[6:])
    assert laid_out.call_count == 1
    assert len(recorder.shapes) > 1


@pytest.mark.usefixtures("few_places")
def test_a_long_answer_makes_the_lanes_longer_within_their_bytes(asked: tuple[Engine, list[Question], Alone]) -> None:
    """And where only fewer lanes leave room for longer ones, there are fewer."""
    engine, questions, alone = asked
    heads, width = engine.lm.decoder.kv_shape
    most = 2 * 4 * 4 * engine.info.layers * 16 * heads * width * 4
    other, decoding, _ = slotted(engine, most_bytes=most, lanes=16)
    assert_all_same(other.answers([questions[6].generation(other)]), questions[6:], alone[6:])
    held = decoding._slots
    assert held._lanes == 1
    assert decoding.packed_steps == 0


@pytest.mark.usefixtures("few_places")
def test_shapes_are_recorded_once_and_few_are_kept(asked: tuple[Engine, list[Question], Alone]) -> None:
    engine, questions, alone = asked
    other, decoding, recorder = slotted(engine, lanes=16)
    question = questions[6]
    for _ in range(2):
        assert_all_same(other.answers([question.generation(other)]), [question], alone[6:])
    assert len(set(recorder.shapes)) > 1
    before = len(recorder.shapes)
    assert_all_same(other.answers([question.generation(other)]), [question], alone[6:])
    assert len(recorder.shapes) == before, "lanes that are long enough stay, and so do their recordings"
    with mock.patch.object(slots, "RECORDINGS", 1):
        decoding._slots._recordings.clear()
        assert_all_same(other.answers([question.generation(other)]), [question], alone[6:])
        assert len(decoding._slots._recordings) == 1


def test_lanes_of_nobody_are_finite(asked: tuple[Engine, list[Question], Alone]) -> None:
    """What a mask hides still goes through the sums."""
    engine, questions, alone = asked
    other, decoding, _ = slotted(engine, lanes=4)
    three = questions[:3]
    assert_all_same(other.answers([each.generation(other) for each in three]), three, alone[:3])
    assert all(held.isfinite().all() for held in (*decoding._slots._keys, *decoding._slots._values))


@pytest.mark.usefixtures("few_places")
def test_what_was_not_finite_leaves_nothing_behind(asked: tuple[Engine, list[Question], Alone]) -> None:
    """A lane that held NaN, as far as its places go, answers who comes next as ever."""
    engine, questions, alone = asked
    other, decoding, _ = slotted(engine)
    spoilt = questions[6].generation(other)
    other.start([spoilt])
    with torch.inference_mode():
        for layer in range(other.info.layers):
            for held in (spoilt.prefilled.kv.keys(layer), spoilt.prefilled.kv.values(layer)):
                held.fill_(float("nan"))
    while spoilt.answer is None:
        other.step([spoilt])
    keys = decoding._slots._keys[0]
    assert keys.isnan().any()
    assert_all_same(other.answers([questions[1].generation(other)]), questions[1:2], alone[1:2])
    assert decoding._slots._keys[0] is keys, "the same lane"


def short_from(allocation: int) -> Callable[..., Tensor]:
    """`Tensor.new_zeros`, by which lanes are made, of a memory that runs out at that one of them."""
    made = count(1)

    def new_zeros(tensor: Tensor, *shape: int) -> Tensor:
        if next(made) >= allocation:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.zeros(shape, dtype=tensor.dtype)

    return new_zeros


@pytest.mark.parametrize("allocation", [1, 2, 5])
@pytest.mark.parametrize("seated", [0, 1])
def test_a_step_for_whose_lanes_memory_runs_out_is_packed(
    asked: tuple[Engine, list[Question], Alone], allocation: int, seated: int
) -> None:
    """At the first lanes, and where those in use become more; the step behind it is in lanes again."""
    engine, questions, alone = asked
    other, decoding, _ = slotted(engine)
    running = [each.generation(other) for each in questions[4:]]
    other.start(running)
    if seated:
        other.step(running[:seated])
    with mock.patch.object(Tensor, "new_zeros", short_from(allocation)):
        other.step(running)
    held = decoding._slots
    assert decoding.packed_steps == 1
    assert not held._lane_of
    assert not held._recordings
    assert not any(tensor.numel() for tensor in (*held._keys, *held._values))
    while left := [each for each in running if each.answer is None]:
        other.step(left)
    assert decoding.packed_steps == 1
    assert_all_same([each.answer for each in running], questions[4:], alone[4:])


def test_answers_that_ended_are_not_moved_for_nobody(asked: tuple[Engine, list[Question], Alone]) -> None:
    """Whoever awaits them still holds them when the next step begins."""
    engine, questions, alone = asked
    other, _, _ = slotted(engine, lanes=16)
    generations = [each.generation(other) for each in questions]
    other.start(generations)
    held = [weakref.ref(each.prefilled.kv) for each in generations]
    while running := [each for each in generations if each.answer is None]:
        other.step(running)
        assert [own() is None for own in held] == [each.answer is not None for each in generations]
    assert_all_same([each.answer for each in generations], questions, alone)


def test_answers_that_failed_or_were_given_up_remember_nothing(asked: tuple[Engine, list[Question], Alone]) -> None:
    engine, questions, _ = asked
    other, _, _ = slotted(engine)
    scheduler = Scheduler(other)
    dropped, failed = (questions[place].generation(other) for place in (6, 4))
    for each in (dropped, failed):
        scheduler.add(each)
    scheduler.advance()
    held = [weakref.ref(each.prefilled.kv) for each in (dropped, failed)]
    scheduler.drop(dropped)
    other.decode = mock.Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory."))
    [told] = scheduler.advance()
    assert isinstance(told.error, torch.OutOfMemoryError)
    assert failed.error is told.error
    other.decode.reset_mock()
    told.error.__traceback__ = None
    assert [own() for own in held] == [None, None]


class FakeGraph:
    """A graph that says which pool it was recorded into: another's, or its own."""

    def __init__(self) -> None:
        self.own = object()

    def pool(self) -> object:
        return self.own

    def replay(self) -> None:
        """Nothing to do."""


def test_recordings_share_the_memory_of_one_that_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """And beside one stream, which all of them have."""
    recorded: list[tuple[object, object]] = []

    def graph(own: FakeGraph, *, pool: object, stream: object, capture_error_mode: str) -> Any:
        assert capture_error_mode == "thread_local"
        recorded.append((pool, stream))
        own.own = pool or own.own
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "Stream", mock.Mock(side_effect=lambda device: mock.Mock(device=device)))
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: current.append(device) or nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", mock.Mock())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    record = CudaGraphs(torch.device("cuda", 1))
    runs = [record(lambda: torch.zeros(1)) for _ in range(2)]
    runs.pop(0)
    runs.append(record(lambda: torch.zeros(1)))
    runs.clear()
    runs.append(record(lambda: torch.zeros(1)))
    pools = [pool for pool, _ in recorded]
    assert pools[0] is None
    assert pools[1] is pools[2] is not None
    assert pools[3] is None, "nobody holds that memory any more"
    assert len({stream for _, stream in recorded}) == torch.cuda.Stream.call_count == 1
    runs[0]()
    assert current == [torch.device("cuda", 1)] * (len(recorded) + 1), "recorded and replayed there"


def test_a_cpu_decodes_packed(asked: tuple[Engine, list[Question], Alone]) -> None:
    decode = asked[0].decode
    assert decode.func is packed


@pytest.fixture
def as_if_cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[[Engine], Any]:
    """What would decode, were the weights on a GPU of a gigabyte."""

    def decoding(engine: Engine) -> Any:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 1 << 31))
        monkeypatch.setattr(torch.cuda, "Stream", mock.Mock())
        decoder = mock.Mock(wraps=engine.lm.decoder, layers=engine.info.layers)
        decoder.model.layers = engine.lm.decoder.model.layers
        decoder.model.embed_tokens.weight.is_cuda = True
        return decoding_of(decoder, 16)

    return decoding


def test_a_gpu_decodes_in_slots(asked: tuple[Engine, list[Question], Alone], as_if_cuda: Any) -> None:
    decode = as_if_cuda(asked[0])
    assert isinstance(decode, SlotDecoding)
    assert decode._slots._most_bytes == 1 << 29


def test_a_mixture_of_experts_is_decoded_packed_there(tmp_path: Any, as_if_cuda: Any) -> None:
    engine = load(checkpoint_qwen.write_checkpoint(tmp_path, experts=4))
    assert as_if_cuda(engine).func is packed


def test_one_token_answers_never_see_a_lane(asked: tuple[Engine, list[Question], Alone]) -> None:
    engine, questions, _ = asked
    other, decoding, _ = slotted(engine)
    question = questions[0]
    other.ask(question.state, question.text, question.pruning, SamplingParams(max_new_tokens=1))
    assert decoding._slots._lanes == 0


@pytest.mark.parametrize(("most", "batches"), [(1, [1]), (6, [1, 2, 4, 8]), (16, [1, 2, 4, 8, 16])])
def test_steps_are_recorded_before_the_first_answer(
    asked: tuple[Engine, list[Question], Alone], most: int, batches: list[int]
) -> None:
    """For as many answers as may run, over clips of the usual length: they find lanes that are long enough."""
    engine, questions, _ = asked
    few = Engine(engine.lm, replace(engine.config, batch_sequences=most))
    other, decoding, recorder = slotted(few, lanes=most)
    other.warm_up()
    assert [shape[0] for shape in recorder.shapes] == batches
    assert decoding.packed_steps == 0
    assert not decoding._slots._lane_of
    with mock.patch.object(Slots, "_lay_out", autospec=True) as laid_out:
        other.ask(questions[0].state, "where", questions[0].pruning, SamplingParams(max_new_tokens=3))
    assert not laid_out.called
    assert [shape[0] for shape in recorder.shapes] == batches


def test_loading_on_a_cpu_takes_no_step(asked: tuple[Engine, list[Question], Alone]) -> None:
    engine = Engine(asked[0].lm, asked[0].config)
    engine.decode = mock.Mock()
    with mock.patch.object(Engine, "append", autospec=True, side_effect=Engine.append) as appended:
        engine.warm_up()
    assert not engine.decode.called
    assert appended.call_count == 1
