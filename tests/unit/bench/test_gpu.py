"""Section gpu runs from end to end where no GPU is, without the service's packages, and says what passes."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import Qwen3VLForConditionalGeneration, VideoLlavaForConditionalGeneration

from tests import real_checkpoints
from tests.bench.gpu import BARS, MODELS, Bar
from tests.bench.report import Table
from tests.bench.shapes import made_in_place
from tests.bench.subject import Subject
from tests.parity import checkpoint, checkpoint_qwen

REPOSITORY = Path(__file__).parents[3]
WRITE = {"video_llava": checkpoint.write_checkpoint, "qwen3_vl": checkpoint_qwen.write_checkpoint}
STOCK = {"video_llava": VideoLlavaForConditionalGeneration, "qwen3_vl": Qwen3VLForConditionalGeneration}
ABSENT = ("ray", "decord", "redis", "av", "zstandard", "fastapi", "starlette", "uvicorn", "prometheus_client")
COMMAND = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT}))
from tests.bench import machine
machine.MATRIX["cpu"], machine.BUFFER["cpu"] = 64, 1 << 20
from tests.bench.__main__ import main
sys.exit(main())
"""
OPTIONS = (
    *("--device", "cpu", "--dtype", "float32", "--threads", "1", "--repeats", "1"),
    *("--together", "1", "2", "--clips", "2", "--answer", "2", "--frames", "4", "--long", "6", "--size", "56", "56"),
)


def test_a_dry_run_needs_torch_and_transformers_alone(tmp_path: Path) -> None:
    model = checkpoint_qwen.write_checkpoint(tmp_path)
    written = tmp_path / "figures.json"
    command = [sys.executable, "-c", COMMAND, "gpu", "--model", str(model), "--json", str(written), *OPTIONS]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert written.exists(), run.stderr
    [report] = json.loads(written.read_text())
    tables = {table["title"].split(",")[0].split(":")[0]: table["rows"] for table in report["tables"]}
    assert list(tables) == [
        "One step",
        "Batches of the tower",
        "Cold question",
        "Follow-up question",
        "Together over clips of one length",
        "Together over clips of several lengths",
        "Decoding step",
        "Encoder",
        "Prefill by kept tokens",
        "Scoring",
        "Throughput",
        "Bars",
    ]
    verdicts = {row[0]: row[3] for row in tables["Bars"]}
    assert len(verdicts) == 2 * 2 + 5 + 2 + len(BARS) + 1
    assert verdicts["Together over clips of several lengths: 2, padded from packed"] == "PASS"
    assert verdicts["One step: 2, slots from packed"] == "PASS"
    assert verdicts["One step: 2, recorded from slots"] == "not here"
    assert verdicts["Batches: shared, moved by company"] == "PASS"
    assert verdicts["Batches: recorded, moved by company"] == "not here"
    assert set(verdicts.values()) <= {"PASS", "FAIL", "not here"}
    assert "PASS" in run.stdout
    failed = [name for name, verdict in verdicts.items() if verdict == "FAIL"]
    assert run.returncode == (1 if failed else 0), run.stderr
    assert [failure.split(" is ")[0] for failure in report["failures"]] == failed


def test_a_bar_is_passed_at_its_target_and_not_beside_it() -> None:
    def judged(value: float | None, **target: float) -> str:
        table = Table(title="Speed of it", columns=("", "s", "ratio"), rows=(("a", 9.0, 9.0), ("b", 0.0, value)))
        return Bar(table="Speed", row="b", column="ratio", **target).judged((table,))[3]

    assert [judged(value, least=3.4) for value in (3.3, 3.4, 3.5)] == ["FAIL", "PASS", "PASS"]
    assert [judged(value, most=1.5) for value in (1.4, 1.5, 1.6)] == ["PASS", "PASS", "FAIL"]
    assert judged(None, least=1) == "not here"


def test_the_bars_are_those_that_were_agreed() -> None:
    """Issue by issue, what a GPU is held to; throughput's depends on how many run together."""
    targets = {(bar.table, bar.least, bar.most) for bar in BARS}
    assert targets == {
        ("Cold question", 3.4, None),
        ("Cold question", 80, None),
        ("Follow-up", None, 10),
        ("Decoding step", None, 1.5),
        ("Encoder", 40, None),
        ("Prefill", 40, None),
        ("Scoring", None, 3),
    }
    assert MODELS == ("Video-LLaVA-7B", "Qwen3-VL-8B")


@pytest.mark.parametrize("family", WRITE)
def test_weights_of_a_real_shape_are_made_where_they_are_used(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a small shape in a real one's place: what is on disk is another model's, and is not read."""

    def write(folder: Path, layers: int) -> None:
        WRITE[family](folder)
        settings = json.loads((folder / "config.json").read_text())
        deeper = STOCK[family].config_class.from_dict(settings)
        deeper.text_config.num_hidden_layers = layers
        real_checkpoints._replace(folder, lambda: STOCK[family](deeper))

    real = real_checkpoints.RealDimensions(write, layers=9, cut=3)
    monkeypatch.setitem(real_checkpoints.FAMILIES, "real", real)
    args = argparse.Namespace(
        device="cpu", dtype="bfloat16", quantization="none", threads=1, layers=32,
        chunk_frames=2, frames=2, size=(56, 56), clips=1,
    )  # fmt: skip
    with made_in_place():
        engine = Subject.of("real", tmp_path, args).engine
    assert engine.info.layers == 9
    weights = engine.lm.model.state_dict()
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert all(tensor.isfinite().all() for tensor in weights.values())
    small = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert len(weights) > len(small)
