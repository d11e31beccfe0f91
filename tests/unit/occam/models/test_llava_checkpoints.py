"""What LLaVA checkpoints may look like, and what is refused with a plain sentence."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from occam.config import EngineConfig, NoPruning
from occam.engine.engine import Engine
from occam.errors import InvalidInput, VideoTooLarge
from occam.models import llava
from occam.models.anyres import AnyRes
from occam.models.base import VideoLM
from occam.models.clip_tower import ClipTower
from occam.models.registry import load_model
from occam.registers import find_register_neurons, outlier_patches
from occam.types import FrameBatch
from tests.parity.checkpoint_llava import PINPOINTS, random_image, write_llava, write_llava_next
from tests.unit.occam.test_registers import PLANTED, tower


@pytest.fixture(scope="module")
def llava_next(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava_next(tmp_path_factory.mktemp("next"), "mistral", window=100)


def load(folder: Path) -> VideoLM:
    return load_model(EngineConfig(model=str(folder), threads=1))


def test_what_a_model_says_of_itself(llava_next: Path) -> None:
    info = load(llava_next).info
    assert (info.family, info.media) == ("llava_next", ("image",))
    assert (info.group, info.frames, info.layers, info.cut) == (1, 1, 6, 2)


def test_a_sliding_window_ends_the_conversation(llava_next: Path) -> None:
    engine = Engine.load(EngineConfig(model=str(llava_next), threads=1))
    assert engine.info.max_positions == 100
    state, _ = engine.append(engine.begin(NoPruning()), random_image(70, 100), NoPruning())
    with pytest.raises(VideoTooLarge, match="the model has 100"):
        engine.append(state, random_image(70, 100), NoPruning())


def test_a_video_is_refused(llava_next: Path) -> None:
    engine = Engine.load(EngineConfig(model=str(llava_next), threads=1))
    with pytest.raises(InvalidInput, match="takes image input, not video"):
        engine.append(engine.begin(NoPruning()), replace(random_image(70, 100), kind="video"), NoPruning())


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"vision_feature_select_strategy": "full"}, "cannot lay out tiles with their CLS"),
        ("tokenizer_config.json", {"eos_token": "<pad>"}, "ends a turn by <pad>, the template for 'mistral' .* </s>"),
        ("preprocessor_config.json", {"image_grid_pinpoints": PINPOINTS[:2]}, "processor disagree: pinpoints"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 57}}, "processor disagree: .* edges 56 and \\(57, 56"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_shape_is_refused(
    llava_next: Path, tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    for part in llava_next.iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    (tmp_path / file).write_text(json.dumps(json.loads((tmp_path / file).read_text()) | change))
    with pytest.raises(InvalidInput, match=message):
        load(tmp_path)


def test_a_decoder_of_another_kind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_llava(tmp_path)
    monkeypatch.delitem(llava.TEMPLATES, "llama")
    with pytest.raises(InvalidInput, match="'llama' decoder is not supported; supported: mistral"):
        load(tmp_path)


def test_a_tower_of_another_kind_is_refused() -> None:
    config: Any = SimpleNamespace(vision_config=SimpleNamespace(model_type="siglip_vision_model"))
    with pytest.raises(InvalidInput, match="type 'siglip_vision_model' are not supported"):
        ClipTower.of(torch.nn.Identity(), config)


def planted_image(seed: int) -> FrameBatch:
    """40 x 40 pixels, a bright square in the middle: one patch in each of four tiles, and one of the whole image."""
    frames = np.random.default_rng(seed).integers(0, 25, (1, 40, 40, 3), dtype=np.uint8)
    frames[:, 16:24, 16:24] = 255
    return replace(random_image(40, 40), frames=frames)


def test_planted_register_neurons_are_found_and_tame_every_tile(llava_next: Path) -> None:
    pixels = AnyRes(pinpoints=((40, 40),), edge=20, mean=(0.1, 0.1, 0.1), std=(1.0, 1.0, 1.0))
    lm: Any = replace(load(llava_next), tower=tower(planted=True), pixels=pixels)  # type: ignore[type-var]
    images = [planted_image(seed) for seed in range(3)]
    with torch.inference_mode():
        report = find_register_neurons(lambda neurons: (lm.trace(image, neurons) for image in images), start=2, step=2)
        before, after = lm.trace(images[0], None), lm.trace(images[0], PLANTED)
    assert set(report.neurons) == set(PLANTED)
    assert report.accepted
    assert outlier_patches(before.norms[1]).sum(dim=1).tolist() == [1] * 5
    assert not outlier_patches(after.norms[1]).any()
