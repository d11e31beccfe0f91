"""Calibration of a checkpoint with random weights: budgets are met, the best reference is taken, the file is usable."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from occam.config import EngineConfig, NoPruning, OccamToken
from occam.engine import Engine
from occam.errors import NotCalibrated
from pipelines.evaluation import trials
from pipelines.evaluation.calibrate import Plan, calibrate
from pipelines.evaluation.codec import write_mp4
from services.cli import main
from tests.parity.checkpoint import random_frames, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    (folder / "occam.json").unlink()
    return folder


def test_the_reference_with_most_right_answers_is_taken(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {"zero_token": 0.25, "mean_threshold": 0.75}
    genuine = trials.accuracy

    def rigged(engine, pruning, *arguments, **options):  # type: ignore[no-untyped-def]
        scored = genuine(engine, pruning, *arguments, **options)
        mean = shares.get(getattr(pruning, "register", ""), 1.0)
        return replace(scored, questions=replace(scored.questions, mean=mean))

    monkeypatch.setattr(trials, "accuracy", rigged)
    report = calibrate(EngineConfig(model=str(checkpoint), threads=1), Plan(samples=2, trials=1))
    assert report.calibration.register == "mean_threshold"
    assert report.calibration.cut == 2
    assert report.calibration.statistics["accuracy"] == 0.75
    assert [str(trial).split(":")[0] for trial in report.trials] == ["none", "zero_token", "mean_threshold"]


def test_the_command_makes_a_checkpoint_that_prunes(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert not Engine.load(EngineConfig(model=str(tmp_path))).info.calibrated
    command = ["calibrate", str(tmp_path), "--stage1", "0.6", "--budget", "0.3", "--cut", "4", "--trials", "1"]
    assert main([*command, "--samples", "2"]) == 0
    assert "chosen: " in capsys.readouterr().out
    pruning = Engine.load(EngineConfig(model=str(tmp_path))).pruning("occam")
    assert isinstance(pruning, OccamToken)
    assert pruning.cut == 4
    assert [file.name for file in tmp_path.glob("occam.json*")] == ["occam.json"]
    assert main([*command, "--samples", "2", "--stage1", "0.5"]) == 0
    assert json.loads((tmp_path / "occam.json.bak").read_text())["lambda1"] == pruning.lambda1, "the one before"
    (tmp_path / "occam.json").write_text(json.dumps({"version": 0, "weights": ""}))
    assert main([*command, "--samples", "2"]) == 0, "an artefact of another release must not be in the way"


def test_registers_are_kept_until_calibrate_sets_the_lambdas(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert main(["registers", str(tmp_path), "--samples", "2"]) == 0
    printed = capsys.readouterr().out
    for figure in ("largest patch norm", "effective patches", "share of that attention"):
        assert figure in printed
    engine = Engine.load(EngineConfig(model=str(tmp_path)))
    assert not engine.info.calibrated
    assert engine.pruning() == NoPruning()
    with pytest.raises(NotCalibrated, match="Run `occam calibrate "):
        engine.pruning("occam")
    artefact = json.loads((tmp_path / "occam.json").read_text())
    assert (artefact["lambda1"], artefact["weights"]) == (None, engine.info.digest)
    artefact["statistics"] |= {"finder_accepted": 1.0, "finder_register_share": 0.625}
    artefact["neurons"] = [[1, 7]]
    (tmp_path / "occam.json").write_text(json.dumps(artefact))
    assert main(["calibrate", str(tmp_path), "--samples", "2", "--trials", "1"]) == 0
    assert "0.625" in capsys.readouterr().out, "the stored search is not made again"
    pruning = Engine.load(EngineConfig(model=str(tmp_path))).info.calibration
    assert pruning is not None
    assert (pruning.register, pruning.neurons) == ("neurons", ((1, 7),))


def test_calibration_on_a_users_own_clips(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, clips = tmp_path / "model", tmp_path / "clips"
    model.mkdir()
    clips.mkdir()
    for file in checkpoint.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    command = ["calibrate", str(model), "--videos", str(clips), "--budget", "20"]
    assert main(command) == 1
    assert "holds no clip with its questions" in capsys.readouterr().err
    for seed, name in ((1, "clip [1]"), (2, "clip [1].2")):
        write_mp4(clips / f"{name}.mp4", random_frames(12, seed))
        (clips / f"{name}.txt").write_text("what is the ball ?\n\nwhere does it go\n", "utf-8-sig")
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "right" not in printed, "nobody knows the truth of a user's clips"
    kept = next(line for line in printed.splitlines() if line.startswith("zero_token"))
    assert "/ 20 of 128 patches kept" in kept
    (clips / "3.txt").write_text("what")
    assert main(command) == 1
    assert "3.txt must lie beside exactly one clip" in capsys.readouterr().err


def test_a_second_search_with_the_same_outcome_keeps_the_lambdas(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    assert main(["calibrate", str(tmp_path), "--samples", "2", "--trials", "1"]) == 0
    before = Engine.load(EngineConfig(model=str(tmp_path))).info.calibration
    assert main(["registers", str(tmp_path), "--samples", "3"]) == 0
    assert capsys.readouterr().out.endswith("kept\n")
    after = Engine.load(EngineConfig(model=str(tmp_path))).info.calibration
    assert before is not None
    assert after is not None
    assert (after.lambda1, after.lambda2, after.cut) == (before.lambda1, before.lambda2, before.cut)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("--cut", "-1"), "cut must be at least 1, got -1."),
        (("--samples", "0"), "samples must be at least 1, got 0."),
        (("--trials", "0"), "trials must be at least 1, got 0."),
        (("--budget", "0"), "Budgets must satisfy"),
        (("--budget", "0.9"), "Budgets must satisfy"),
        (("--videos", "absent"), "absent is not a folder."),
    ],
    ids=str,
)
def test_what_cannot_be_is_said_before_the_model_loads(
    checkpoint: Path,
    wrong: tuple[str, str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipelines.evaluation.calibrate.load_model", lambda *_, **__: pytest.fail("it loaded"))
    assert main(["calibrate", str(checkpoint), *wrong]) == 1
    assert capsys.readouterr().err.startswith(f"occam: {says}")


def test_a_place_that_cannot_be_written_is_said_before_the_model_loads(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: path != checkpoint)
    monkeypatch.setattr("pipelines.evaluation.calibrate.load_model", lambda *_, **__: pytest.fail("it loaded"))
    assert main(["calibrate", str(checkpoint)]) == 1
    assert main(["registers", str(checkpoint)]) == 1
    assert capsys.readouterr().err.count("cannot be written to") == 2


def test_a_cut_behind_the_last_layer_is_refused(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", str(checkpoint), "--cut", "99"]) == 1
    assert "cut must lie in 1..5 for the 6 decoder layers" in capsys.readouterr().err


def test_every_phase_says_how_far_it_is(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    command = ["calibrate", str(model), "--samples", "2", "--trials", "1"]
    assert main(command) == 0
    lines = capsys.readouterr().err.splitlines()
    for line in ("reading: 2 of 2 clips", "zero_token, stage I: 2 of 2 clips", "mean_threshold, trial: 1 of 1 clips"):
        assert lines.count(line) == 1
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(command) == 0
    told = capsys.readouterr().err
    for done in range(3):
        assert f"\r\x1b[Kzero_token, stage II: {done} of 2 clips" in told


def test_a_clip_that_cannot_be_read_is_named(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.mp4").write_text("no video")
    (tmp_path / "broken.txt").write_text("what")
    assert main(["calibrate", str(checkpoint), "--videos", str(tmp_path)]) == 1
    assert "broken.mp4: The file's first bytes" in capsys.readouterr().err
    assert main(["calibrate", str(checkpoint), "--videos", str(tmp_path / "absent")]) == 1
    assert "is not a folder" in capsys.readouterr().err
