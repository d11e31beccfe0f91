"""Calibration of a checkpoint with random weights: budgets are met, the best reference is taken, the file is usable."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from occam.config import EngineConfig, NoPruning, OccamToken, Pruning
from occam.engine import Engine
from occam.errors import NotCalibrated
from pipelines.evaluation import trials
from pipelines.evaluation.accuracy import Accuracy
from pipelines.evaluation.calibrate import Plan, calibrate
from pipelines.evaluation.codec import write_mp4
from pipelines.evaluation.material import ignore, rendered
from pipelines.evaluation.trials import on_samples
from services.cli import main
from tests.parity.checkpoint import random_frames, write_checkpoint
from tests.parity.checkpoint_llava import write_llava, write_llava_next
from tests.parity.checkpoint_qwen import write_checkpoint as write_qwen


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    (folder / "occam.json").unlink()
    return folder


def rig(monkeypatch: pytest.MonkeyPatch, right: dict[str, int]) -> None:
    """Of the two questions a clip, so many are right under each rule or strategy, none under those not named."""
    genuine = trials.accuracies

    def rigged(engine: Engine, prunings: Sequence[Pruning], *rest: Any, **options: Any) -> list[Accuracy]:
        scored = genuine(engine, prunings, *rest, **options)
        counts = [right.get(getattr(pruning, "rule", pruning.name), 0) for pruning in prunings]
        return [
            replace(each, right=np.tile([count > 0, count > 1], (len(each.right), 1)))
            for each, count in zip(scored, counts, strict=True)
        ]

    monkeypatch.setattr(trials, "accuracies", rigged)


def test_the_adaptive_rule_with_most_right_answers_becomes_the_default(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    rig(monkeypatch, {"none": 2, "first_token": 1, "top_k": 2})
    assert main(["calibrate", str(model), "--samples", "2", "--trials", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()
    verdict = (
        "default reference: zero_token, rule first_token; the published rule was worse by 50.0 points on 4 questions"
    )
    assert printed[-2] == verdict
    (warning,) = (line for line in printed if line.startswith("warning: "))
    assert "zero_token/top_k, a control and never the default, answered 50.0 points more right" in warning
    engine = Engine.load(EngineConfig(model=str(model)))
    pruning, stored = engine.pruning("occam"), engine.info.calibration
    assert isinstance(pruning, OccamToken)
    assert stored is not None
    assert (pruning.register, pruning.rule, pruning.cut) == ("zero_token", "first_token", 2)
    assert (pruning.lambda1, pruning.lambda2) == (stored.lambda1, stored.lambda2)
    assert engine.pruning("occam", rule="register") == replace(pruning, rule="register")
    assert (stored.statistics["accuracy"], stored.statistics["accuracy_published"]) == (0.5, 0.0)
    assert stored.statistics["accuracy_zero_token/top_k"] == 1.0
    assert stored.statistics.keys() >= {"auc1", "auc2", "register_share2", "register_variation1", "spread_random"}
    assert main(["models", str(model)]) == 0
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    ("write", "accepted"),
    [(write_checkpoint, False), (write_llava, True), (write_llava_next, False), (write_qwen, True)],
    ids=["video_llava", "llava, neurons", "llava_next", "qwen3_vl, neurons"],
)
def test_every_family_competes_at_equal_budgets(write: Callable[[Path], Path], accepted: bool, tmp_path: Path) -> None:
    folder = write(tmp_path)
    artefact = json.loads((folder / "occam.json").read_text())
    finder = ("largest_norm_before", "largest_norm_after", "n_eff_before", "n_eff_after", "register_share")
    artefact["statistics"] = {f"finder_{name}": 0.5 for name in finder} | {"finder_accepted": 1.0}
    (folder / "occam.json").write_text(json.dumps(artefact))
    if not accepted:
        (folder / "occam.json").unlink()
    config = EngineConfig(model=str(folder), threads=1)
    report = calibrate(config, Plan(samples=1, trials=1, stage1=0.8, stage2=0.3))
    register = "neurons" if accepted else "zero_token"
    names = [f"{register}/{rule}" for rule in ("register", "mean", "first_token", "top_p", "top_k")]
    others = ["zero_token/register"] if accepted else []
    assert [t.name for t in report.trials] == ["none", *names, *others, "mean_threshold/register", "random"]

    adaptive = [t for t in report.trials[1:-1] if not t.name.endswith("top_k")]
    best = max(adaptive, key=lambda trial: trial.accuracy)
    assert report.verdict.chosen is best, "the first of those with most right answers"
    assert isinstance(best.pruning, OccamToken)
    report.calibration.save(folder / "occam.json")
    engine = Engine.load(config)
    assert engine.pruning("occam") == best.pruning

    samples = rendered(1, engine.info.media)
    for trial in on_samples(engine, [trial.pruning for trial in report.trials[1:]], samples, ignore):
        first = trial.kept.encoded if trial.name == "random" else 0.8 * trial.kept.encoded
        assert trial.kept.stage1 == pytest.approx(first, abs=1 + 1e-6), trial.name
        assert trial.kept.stage2 == pytest.approx(0.3 * trial.kept.encoded, abs=2 / 3 + 1e-6), trial.name
    assert len({trial.pruning.lambda1 for trial in report.trials[1:6]}) == 1, "all else fixed"  # type: ignore[attr-defined]

    known = report.facts
    assert known.auc1 is not None
    assert 0 <= known.auc1.mean <= 1
    assert 0 < known.register1.mean < 1
    assert known.register2.n == sum(len(sample.questions) for sample in samples)


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
    with pytest.raises(NotCalibrated, match="Run `occam calibrate`"):
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
    assert "AUC" not in printed
    assert "the register's share of attention, nothing pruned: stage I " in printed
    assert "rule register" in printed.splitlines()[-2]
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
    for line in ("reading: 2 of 2 clips", "zero_token, stage I: 2 of 2 clips", "trials: 1 of 1 clips"):
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
