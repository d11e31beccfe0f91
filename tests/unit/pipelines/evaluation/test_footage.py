"""What a checkpoint is calibrated on: read when it is needed and never held, and named by its digest."""

import json
import shutil
import tracemalloc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from occam.config import EngineConfig
from occam.errors import InvalidInput
from occam.models.base import ModelInfo
from occam.types import FrameBatch
from pipelines.evaluation import calibrate as module
from pipelines.evaluation.calibrate import Footage, Plan, calibrate, find_registers
from pipelines.evaluation.codec import write_mp4
from pipelines.evaluation.footage import open_footage
from pipelines.evaluation.material import Sample, digest_of, rendered
from pipelines.ingest.limits import Limits
from tests.parity.checkpoint import random_frames, write_checkpoint

SIZE = 192
TAKEN = 8
INFO = ModelInfo(
    name="model",
    family="",
    digest="",
    config_digest="",
    text_digest="",
    preprocessing="",
    frames=TAKEN,
    media=("video",),
    layers=6,
    cut=2,
    max_positions=512,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def config(checkpoint: Path) -> EngineConfig:
    (checkpoint / "occam.json").unlink(missing_ok=True)
    return EngineConfig(model=str(checkpoint), threads=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = tmp_path_factory.mktemp("clips")
    for seed in range(6):
        write_mp4(clips / f"{seed}.mp4", random_frames(12, seed, SIZE))
        (clips / f"{seed}.txt").write_text("what is it\n")
    return clips


def made(count: int, seed: int = 0, questions: tuple[str, ...] = ("what",)) -> Footage:
    clips = [
        FrameBatch(
            frames=random_frames(TAKEN, seed + index),
            pts_seconds=np.arange(float(TAKEN)),
            indices=np.arange(TAKEN),
            digest=f"clip {seed + index}",
        )
        for index in range(count)
    ]
    return lambda _: [Sample.of(clip, questions) for clip in clips]


def test_a_clip_is_decoded_when_it_is_read_and_not_held(folder: Path) -> None:
    """Peak memory of reading six clips is that of reading one."""
    samples = open_footage(folder, Limits())(INFO)
    clip_bytes = TAKEN * SIZE * SIZE * 3
    assert len(samples) == 6

    def peak(read: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            read()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def stays_below(limit: float, read: Callable[[], object]) -> bool:
        """In one of some readings: threads that earlier tests left also allocate now and then, and are traced."""
        return any(peak(read) < limit for _ in range(3))

    assert peak(lambda: [sample.frames() for sample in samples]) > 6 * clip_bytes, "the measure sees frames"
    assert stays_below(2 * clip_bytes, lambda: [sample.frames().digest for sample in samples])
    assert stays_below(clip_bytes / 2, lambda: [sample.middle().digest for sample in samples])


def test_a_clip_is_a_file_and_there_is_one(folder: Path, tmp_path: Path) -> None:
    footage = Path(shutil.copytree(folder, tmp_path / "footage"))
    (footage / "0").mkdir()
    assert len(open_footage(footage, Limits())(INFO)) == 6
    shutil.copy(footage / "0.mp4", footage / "0.mkv")
    with pytest.raises(InvalidInput, match=r"0\.txt must lie beside exactly one clip of that name, found 2"):
        open_footage(footage, Limits())


def test_a_part_is_that_part_of_the_whole(folder: Path) -> None:
    sample = open_footage(folder, Limits())(INFO)[0]
    whole, middle = sample.frames(), sample.middle()
    assert (len(whole), len(middle)) == (TAKEN, 1)
    assert middle.indices.tolist() == [whole.indices[TAKEN // 2]]
    assert np.array_equal(middle.frames[0], whole.frames[TAKEN // 2])
    assert (whole.planned, middle.planned) == (TAKEN, TAKEN), "pixels are those of a frame of the whole clip"


@pytest.mark.parametrize("run", [calibrate, find_registers])
def test_at_most_one_clip_is_held_at_any_time(config: EngineConfig, run: Callable[..., object]) -> None:
    live, most = 0, 0

    def gone() -> None:
        nonlocal live
        live -= 1

    def read(start: int, stop: int) -> FrameBatch:
        nonlocal live, most
        frames = random_frames(TAKEN)[start:stop].copy()
        weakref.finalize(frames, gone)
        live, most = live + 1, max(most, live + 1)
        times = np.arange(start, stop)
        return FrameBatch(frames=frames, pts_seconds=times.astype(np.float64), indices=times, digest="", planned=TAKEN)

    samples = [Sample(digest=str(at), count=TAKEN, questions=("what", "where"), read=read) for at in range(5)]
    run(config, Plan(), lambda _: samples)
    # The one before goes when the next one takes its name.
    assert 1 <= most <= 2
    assert live == 0


def test_what_a_clip_is_wrong_with_is_said_with_its_name(folder: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes((folder / "0.mp4").read_bytes())
    (tmp_path / "clip.txt").write_text("what")
    footage = open_footage(tmp_path, Limits())
    with pytest.raises(InvalidInput, match=r"clip.mp4: model takes image input, not video\."):
        footage(replace(INFO, media=("image",)))
    (sample,) = footage(INFO)
    clip.write_bytes((folder / "1.mp4").read_bytes())
    with pytest.raises(InvalidInput, match=r"clip.mp4: "):
        sample.frames()


def test_material_is_named_by_clips_questions_and_their_order() -> None:
    first, second = rendered(2, ("video",))
    known = {
        digest_of(samples)
        for samples in (
            [first],
            [second],
            [first, second],
            [second, first],
            [replace(first, questions=first.questions[:1])],
            [replace(first, questions=first.questions[::-1])],
            [replace(first, count=7)],
            rendered(1, ("image",)),
        )
    }
    assert len(known) == 8
    assert digest_of(rendered(1, ("video",))) == digest_of([first])
    assert "SceneConfig(frames=8, " in first.digest
    assert "seed 900000" in first.digest


def test_the_digest_of_footage_is_of_its_bytes(folder: Path, tmp_path: Path) -> None:
    def digest(name: str, source: str) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.mp4").write_bytes((folder / source).read_bytes())
        (tmp_path / name / "clip.txt").write_text("what")
        return digest_of(open_footage(tmp_path / name, Limits())(INFO))

    assert digest("a", "0.mp4") == digest("b", "0.mp4") != digest("c", "1.mp4")


def test_an_artefact_says_what_it_was_made_on(config: EngineConfig) -> None:
    footage = made(2)
    material = digest_of(footage(INFO))
    found, _ = find_registers(config, Plan(), footage)
    assert (found.searched, found.measured) == (material, None)
    chosen = calibrate(config, Plan(), footage).calibration
    assert (chosen.searched, chosen.measured) == (material, material)
    assert calibrate(config, Plan(), made(2, 5)).calibration.measured == digest_of(made(2, 5)(INFO))


def test_a_search_is_taken_over_where_it_was_made_on_the_same_or_found_neurons(
    config: EngineConfig, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []
    genuine = module.find_register_neurons
    monkeypatch.setattr(module, "find_register_neurons", lambda watch: searched.append(1) or genuine(watch))
    artefact = checkpoint / "occam.json"

    def searches(footage: Footage) -> int:
        searched.clear()
        calibrate(config, Plan(), footage)
        return len(searched)

    rejected, report = find_registers(config, Plan(), made(2))
    assert not report.accepted, "as this checkpoint has no outliers"
    rejected.save(artefact)
    assert searches(made(2)) == 0
    assert searches(made(2, 5)) == 1, "of other clips"
    assert searches(made(2, questions=("where",))) == 1, "asked something else"
    artefact.write_text(json.dumps(json.loads(artefact.read_text()) | {"statistics": {}}))
    assert searches(made(2)) == 1, "what it came to is not kept"
    accepted = replace(
        rejected, register="neurons", neurons=((1, 7),), statistics=rejected.statistics | {"finder_accepted": 1.0}
    )
    accepted.save(artefact)
    assert searches(made(2, 5)) == 0
    kept = calibrate(config, Plan(), made(2, 5)).calibration
    assert (kept.neurons, kept.searched) == (((1, 7),), rejected.searched)
    assert kept.measured == digest_of(made(2, 5)(INFO))


def test_a_second_search_does_not_pass_for_the_measure(config: EngineConfig, checkpoint: Path) -> None:
    """Rejected on other clips too, the lambdas stay, and say what they were measured on."""
    first = calibrate(config, Plan(), made(2)).calibration
    first.save(checkpoint / "occam.json")
    again, _ = find_registers(config, Plan(), made(2, 5))
    assert (again.lambda1, again.lambda2, again.measured) == (first.lambda1, first.lambda2, first.measured)
    assert again.searched == digest_of(made(2, 5)(INFO)) != first.searched
