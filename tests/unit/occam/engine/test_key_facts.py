"""Two runs share states only where nothing that decides one differs: each such thing must show in the key's facts."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from occam.config import EngineConfig, NoPruning, OccamToken
from occam.engine import Engine
from tests.parity.checkpoint import write_checkpoint

PRUNING = OccamToken(lambda1=0.5, lambda2=1.0, cut=3, register="neurons")
Facts = dict[str, str | int | float]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def config(checkpoint: Path) -> EngineConfig:
    return EngineConfig(model=str(checkpoint), threads=1)


@pytest.fixture(scope="module")
def engine(config: EngineConfig) -> Engine:
    return Engine.load(config)


@pytest.fixture
def facts(engine: Engine) -> Facts:
    return engine.key_facts(PRUNING)


@pytest.mark.parametrize(
    "change",
    [
        {"lambda1": 0.25},
        {"cut": 2},
        {"register": "zero_token"},
        {"placement": "before_norm"},
        {"keep_cls": True},
    ],
    ids=str,
)
def test_what_prunes_in_front_of_the_question_is_a_fact(engine: Engine, facts: Facts, change: dict[str, Any]) -> None:
    assert engine.key_facts(replace(PRUNING, **change)) != facts
    assert engine.key_facts(NoPruning()) != facts


@pytest.mark.parametrize("change", [{"lambda2": 2.0}, {"evaluators": "question"}, {"min_tokens": 5}], ids=str)
def test_what_prunes_behind_it_is_none(engine: Engine, facts: Facts, change: dict[str, Any]) -> None:
    assert engine.key_facts(replace(PRUNING, **change)) == facts


CHANGES: list[dict[str, Any]] = [{"dtype": "bfloat16"}, {"quantization": "int8"}, {"chunk_frames": 4}, {"threads": 2}]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_how_the_engine_runs_is_a_fact(
    engine: Engine, facts: Facts, config: EngineConfig, change: dict[str, Any]
) -> None:
    assert Engine(engine.lm, replace(config, **change)).key_facts(PRUNING) != facts


def test_the_towers_batches_are_a_fact(config: EngineConfig, facts: Facts) -> None:
    assert Engine.load(replace(config, batch_views=4)).key_facts(PRUNING) == facts | {"batch_views": "video 4"}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("torch.__version__", "0"),
        ("occam.engine.facts.transformers.__version__", "0"),
        ("torch.backends.cpu.get_cpu_capability", lambda: "ABACUS"),
    ],
)
def test_what_it_runs_on_is_a_fact(
    engine: Engine, facts: Facts, monkeypatch: pytest.MonkeyPatch, place: str, value: Any
) -> None:
    monkeypatch.setattr(place, value)
    assert engine.key_facts(PRUNING) != facts


def test_the_gpu_is_a_fact(engine: Engine, config: EngineConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for name in ("one", "other"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: f"{name} {device}")
        seen.append(Engine(engine.lm, replace(config, device="cuda")).key_facts(PRUNING))
    assert seen[0]["hardware"] == "one cuda"
    assert seen[0] != seen[1]


def edited(name: str, edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        edit(content)
        (folder / name).write_text(json.dumps(content))

    return change


FILES: dict[str, Callable[[Path], Any]] = {
    "the model's configuration": edited("config.json", lambda c: c.update(vision_feature_layer=-3)),
    "the processor's": edited("preprocessor_config.json", lambda c: c.update(image_mean=[0, 0, 0])),
    "a processor's that was not there": lambda folder: shutil.copy(
        folder / "preprocessor_config.json", folder / "video_preprocessor_config.json"
    ),
    "the processors' in one file": lambda folder: (folder / "processor_config.json").write_text(
        json.dumps({"video_processor": json.loads((folder / "preprocessor_config.json").read_text())})
    ),
    "the tokenizer": edited("tokenizer.json", lambda c: c["model"]["vocab"].update(w0=c["model"]["vocab"]["w1"])),
    "the weights": lambda folder: write_checkpoint(folder, seed=1),
    "the register's neurons": edited("occam.json", lambda c: c.update(neurons=[[0, 5]])),
}


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_decides_a_state_is_a_fact(
    facts: Facts, config: EngineConfig, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    FILES[name](folder)
    other = Engine.load(replace(config, model=str(folder))).key_facts(PRUNING)
    assert other != facts
    assert other.keys() == facts.keys()
