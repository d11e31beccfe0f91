"""A chunk's tokens are the same, bit for bit, whoever shares its batches of the tower, recorded or not."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
import torch
from torch import Tensor

from occam.config import EngineConfig, NoPruning, OccamToken, Pruning
from occam.engine import Engine
from occam.engine.sharing import TowerLoad, sharing
from occam.errors import InvalidInput
from occam.models.base import TowerOutput
from occam.models.batches import OFTEN, RECORDINGS, Batches, batches_of
from occam.models.registry import load_model
from occam.tensors import MediaTokens
from occam.types import FrameBatch
from tests.parity import checkpoint, checkpoint_qwen
from tests.parity.checkpoint_llava import write_llava_next
from tests.parity.harness import image_of, video_of

T = TypeVar("T")
VIEWS = 4
OCCAM = OccamToken(lambda1=1.1, lambda2=1.0, cut=2, register="zero_token")
Chunk = tuple[FrameBatch, Pruning]


class Recorder:
    """Runs over the very tensors that it was recorded with and gives the same one every time, as a graph does."""

    def __init__(self) -> None:
        self.recorded = 0

    def __call__(self, run: Callable[[], T], /) -> Callable[[], T]:
        self.recorded += 1
        result = run()

        def replay() -> T:
            for own, new in zip(tensors_of(result), tensors_of(run()), strict=True):
                own.copy_(new)
            return result

        return replay


def tensors_of(output: object) -> list[Tensor]:
    """All that a dataclass of tensors holds."""
    values = [getattr(output, field.name) for field in fields(output)]  # type: ignore[arg-type]
    flat = [each for value in values for each in (value if isinstance(value, tuple) else (value,))]
    return [each for each in flat if isinstance(each, Tensor)]


def video_chunks() -> list[Chunk]:
    clips = [video_of(checkpoint.random_frames(count, seed=count)) for count in (1, 3, 4, 7, 2)]
    rules: list[Pruning] = [OCCAM, replace(OCCAM, lambda1=0.7), OCCAM, OCCAM, replace(OCCAM, lambda2=0.1)]
    return list(zip(clips, rules, strict=True))


def qwen_chunks() -> list[Chunk]:
    clips = [video_of(checkpoint_qwen.random_frames(count, seed=count)) for count in (2, 6, 8, 3, 14)]
    return [(replace(clip, planned=16), OCCAM) for clip in clips]


def image_chunks() -> list[Chunk]:
    """Of several shapes, so of several tiles each."""
    sizes = [(56, 56), (60, 110), (120, 50), (90, 90)]
    images = [checkpoint_qwen.random_frames(1, *size, seed=number)[0] for number, size in enumerate(sizes)]
    return [(image_of(image), OCCAM) for image in images]


def write_next(folder: Path) -> Path:
    write_llava_next(folder, "llama")
    return folder


CASES: dict[str, tuple[Callable[[Path], Any], Callable[[], list[Chunk]]]] = {
    "video_llava": (checkpoint.write_checkpoint, video_chunks),
    "qwen3_vl": (checkpoint_qwen.write_checkpoint, qwen_chunks),
    "llava_next": (write_next, image_chunks),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Chunk]]:
    write, chunks = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    write(folder)
    return folder, chunks()


def engine_of(folder: Path, views: int = VIEWS, record: Any = None) -> Engine:
    engine = Engine.load(EngineConfig(model=str(folder), threads=1, chunk_frames=4, batch_views=views))
    if record is None:
        return engine
    return engine.over(replace(engine.lm, batches=Batches(views, record)))  # type: ignore[type-var]


def encoded(engine: Engine, chunks: Sequence[Chunk]) -> list[MediaTokens]:
    return [tokens for tokens, _ in engine.encode_together(chunks)]


def assert_equal(ours: Sequence[MediaTokens], theirs: Sequence[MediaTokens]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for own, expected in zip(tensors_of(one), tensors_of(other), strict=True):
            assert torch.equal(own, expected)


def test_alone_and_in_any_company(case: tuple[Path, list[Chunk]]) -> None:
    folder, chunks = case
    engine = engine_of(folder)
    alone = [encoded(engine, [chunk])[0] for chunk in chunks]
    assert_equal(encoded(engine, chunks), alone)
    assert_equal(encoded(engine, chunks[::-1]), alone[::-1])
    assert_equal(encoded(engine, chunks[1:3]), alone[1:3])


def test_as_each_chunk_by_itself_within_rounding(case: tuple[Path, list[Chunk]]) -> None:
    folder, chunks = case
    shared, own = encoded(engine_of(folder), chunks), encoded(engine_of(folder, views=0), chunks)
    for one, other in zip(shared, own, strict=True):
        assert torch.equal(one.patch, other.patch)
        torch.testing.assert_close(one.embeddings, other.embeddings, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.register_sum, other.register_sum, atol=1e-4, rtol=0)


def test_recorded_as_not_recorded(case: tuple[Path, list[Chunk]]) -> None:
    folder, chunks = case
    recorder = Recorder()
    engine, plain = engine_of(folder, record=recorder), engine_of(folder)
    expected = encoded(plain, chunks)
    for _ in range(OFTEN):
        assert_equal(encoded(engine, chunks), expected)
    assert recorded_batches(engine) == recorder.recorded == 1
    assert_equal(encoded(engine, chunks[::-1]), expected[::-1])
    assert_equal(encoded(engine, [(media, NoPruning()) for media, _ in chunks]), encoded_unpruned(plain, chunks))
    assert recorder.recorded == 1, "another register is another kind, which has come once"


def recorded_batches(engine: Engine) -> int:
    return len(engine.lm.batches._recordings)  # type: ignore[attr-defined]


def encoded_unpruned(engine: Engine, chunks: Sequence[Chunk]) -> list[MediaTokens]:
    return encoded(engine, [(media, NoPruning()) for media, _ in chunks])


def test_other_sizes_of_frames_are_other_recordings(tmp_path: Path) -> None:
    folder = checkpoint_qwen.write_checkpoint(tmp_path)
    recorder = Recorder()
    engine, plain = engine_of(folder, record=recorder), engine_of(folder)
    for height, width in ((48, 64), (64, 48)):
        chunk = replace(video_of(checkpoint_qwen.random_frames(4, height, width)), planned=4), OCCAM
        for _ in range(OFTEN + 2):
            assert_equal(encoded(engine, [chunk]), encoded(plain, [chunk]))
    assert recorder.recorded == 2


def output_of(pixels: Tensor) -> TowerOutput:
    return TowerOutput(scores=pixels.sum(dim=1), register_scores=None, features=2 * pixels, register=None)


def test_what_cannot_be_recorded_is_run_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    record = mock.Mock(side_effect=torch.OutOfMemoryError("full"))
    batches = Batches(2, record)
    for _ in range(3 * OFTEN):
        [output] = batches("video", output_of, [torch.ones(1, 3)], "kind")
        assert output.features.tolist() == [[2.0, 2.0, 2.0]]
    assert record.call_count == batches.failures == 1
    assert "full" in caplog.text
    for _ in range(OFTEN):
        batches("video", output_of, [torch.ones(1, 3)], "other")
    assert record.call_count == 2, "of another kind there may be memory"


def test_a_recording_that_breaks_off_is_the_last() -> None:
    record = mock.Mock(side_effect=RuntimeError("operation not permitted when stream is capturing"))
    batches = Batches(2, record)
    for kind in ("one", "other"):
        for _ in range(2 * OFTEN):
            batches("video", output_of, [torch.ones(1, 3)], kind)
    assert record.call_count == batches.failures == 1


def test_recordings_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 numbers of 4 bytes go in, 3 and a score come out: 28 bytes a view."""
    monkeypatch.setattr("occam.models.batches.MOST_BYTES", 60)
    recorder = Recorder()
    batches = Batches(1, recorder)
    for kind in range(3):
        for _ in range(2 * OFTEN):
            batches("video", output_of, [torch.ones(1, 3)], kind)
    assert [kind for kind, _ in batches._recordings] == [1, 2]  # type: ignore[misc]
    for _ in range(3 * OFTEN):
        [output] = batches("video", output_of, [torch.ones(1, 9)], "large")
        assert output.features.tolist() == [[2.0] * 9]
    assert recorder.recorded == 4, "one that is too large is not tried again"


def test_the_recording_that_was_not_used_for_longest_makes_room() -> None:
    recorder = Recorder()
    batches = Batches(1, recorder)

    def often(kind: int) -> None:
        for _ in range(OFTEN):
            batches("video", output_of, [torch.ones(1, 3)], kind)

    for kind in range(RECORDINGS):
        often(kind)
    often(0)
    often(RECORDINGS)
    assert recorder.recorded == RECORDINGS + 1
    often(0)
    assert recorder.recorded == RECORDINGS + 1
    often(1)
    assert recorder.recorded == RECORDINGS + 2


def test_blank_views_stand_in_no_result() -> None:
    seen: list[int] = []

    def watched(pixels: Tensor) -> TowerOutput:
        seen.append(len(pixels))
        return output_of(pixels)

    chunks = [torch.full((count, 3), float(count)) for count in (2, 5, 1)]
    outputs = Batches(3)("video", watched, chunks, "kind")
    assert seen == [3, 3, 3]
    assert [output.scores.tolist() for output in outputs] == [[6.0] * 2, [15.0] * 5, [3.0]]
    seen.clear()
    Batches()("video", watched, chunks, "kind")
    assert seen == [2, 5, 1]
    seen.clear()
    Batches(3, media=("video",))("image", watched, chunks, "kind")
    assert seen == [2, 5, 1]


def load(kind: str | None, views: int) -> TowerLoad:
    return TowerLoad(kind=kind, views=views, room=-views % VIEWS)


@pytest.mark.parametrize(
    ("waiting", "together"),
    [
        ([("a", 1), ("a", 1), ("a", 3), ("a", 2), ("a", 1)], [0, 1, 3]),
        ([("a", 4), ("a", 1)], [0]),
        ([("a", 5), ("b", 1), ("a", 3)], [0, 2]),
        ([("a", 1), ("b", 1)], [0]),
        ([(None, 0), (None, 0)], [0]),
    ],
)
def test_the_first_and_whom_its_batches_have_room_for(waiting: list[Any], together: list[int]) -> None:
    assert sharing([load(*each) for each in waiting]) == together


def test_what_is_alike(case: tuple[Path, list[Chunk]]) -> None:
    folder, chunks = case
    engine = engine_of(folder)
    loads = [engine.tower_load(*chunk) for chunk in chunks]
    assert len({each.kind for each in loads}) == 1
    assert all((each.views + each.room) % VIEWS == 0 <= each.room < VIEWS for each in loads)
    media = chunks[0][0]
    others = [NoPruning(), replace(OCCAM, placement="before_norm"), replace(OCCAM, register="mean_threshold")]
    assert {engine.tower_load(media, each).kind for each in others}.isdisjoint({loads[0].kind})
    assert engine_of(folder, views=0).tower_load(*chunks[0]).kind is None


def test_chunks_of_other_grids_are_not_alike(tmp_path: Path) -> None:
    engine = engine_of(checkpoint_qwen.write_checkpoint(tmp_path))
    wide, high = (video_of(checkpoint_qwen.random_frames(2, *size)) for size in ((48, 64), (64, 48)))
    assert engine.tower_load(wide, OCCAM).kind != engine.tower_load(high, OCCAM).kind


def test_a_gpu_records_batches_of_a_chunk_and_a_cpu_takes_chunks_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", mock.Mock())
    gpu = batches_of(EngineConfig(device="cuda:0", chunk_frames=8), group=2)
    assert (gpu.views("video"), gpu.views("image"), gpu._record is None) == (4, 0, False)
    assert gpu._record._device == torch.device("cuda:0")  # type: ignore[union-attr]
    wide = batches_of(EngineConfig(device="cuda", chunk_frames=8, batch_views=16), group=2)
    assert (wide.views("video"), wide.views("image")) == (16, 16)
    cpu = batches_of(EngineConfig(chunk_frames=8), group=2)
    assert (cpu.views("video"), cpu._record) == (0, None)
    assert load_model(EngineConfig(batch_views=6)).batch_views("video") == 6
    with pytest.raises(InvalidInput, match="batch_views must be 0 or more, got -1"):
        batches_of(EngineConfig(batch_views=-1), group=1)
