"""An export is a checkpoint that the stock classes load as it is, and that the product reads as the trainer does."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from occam.config import EngineConfig
from occam.engine import Engine
from occam.models.preprocess import ClipPixels, normalise
from occam.models.qwen_pixels import QwenPixels
from occam.types import FrameBatch
from pipelines.evaluation.renderer import SceneConfig, draw_scene, render
from pipelines.training.student import GRID, SIDE, shrink
from pipelines.training.tiny_qwen3_vl import MERGE, TinyQwen3VL
from pipelines.training.tiny_video_llava import MEAN, STD, TinyVideoLlava


@pytest.fixture(scope="module", params=[TinyVideoLlava, TinyQwen3VL], ids=lambda kind: kind.name)
def exported(request, tmp_path_factory):
    torch.manual_seed(0)
    student, folder = request.param.build(), tmp_path_factory.mktemp("export")
    student.export(folder)
    return student, folder


def test_the_export_is_small_and_loads_with_the_stock_class(exported):
    student, folder = exported
    assert (folder / "model.safetensors").stat().st_size < 15_000_000
    loaded = type(student.model).from_pretrained(folder, dtype=torch.float32)
    parameters = dict(loaded.named_parameters())
    for name, value in student.model.named_parameters():
        if "image_tower" not in name:
            assert parameters[name].equal(value.bfloat16().float()), name


def test_the_image_tower_is_the_video_tower(exported):
    student, folder = exported
    weights = load_file(folder / "model.safetensors")
    image = {name: value for name, value in weights.items() if "image_tower" in name}
    assert bool(image) == isinstance(student, TinyVideoLlava)
    for name, value in image.items():
        assert value.equal(weights[name.replace("image_tower", "video_tower")]), name


def test_the_ids_of_tokenizer_and_configuration_agree(exported):
    student, folder = exported
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    named = (
        {"video_token_index": "<video>", "image_token_index": "<image>"}
        if isinstance(student, TinyVideoLlava)
        else {
            "video_token_id": "<|video_pad|>",
            "image_token_id": "<|image_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        }
    )
    for name, token in named.items():
        assert config[name] == tokenizer.convert_tokens_to_ids(token)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id
    assert config["text_config"]["vocab_size"] == len(tokenizer)


@pytest.mark.parametrize("side", [96, 150, 192, 384])
def test_pixels_are_the_ones_that_the_engine_makes(exported, side):
    student, folder = exported
    frames = render(draw_scene(1), side)
    if isinstance(student, TinyVideoLlava):
        ours, theirs = normalise(shrink(frames), MEAN, STD), ClipPixels.load(folder, "video")(frames)
    else:
        ours, grid = student.patches(shrink(frames)[None])
        theirs, made = QwenPixels.load(folder, "video")(batch_of(frames))
        assert made == grid == (len(frames) // 2, 2 * GRID, 2 * GRID)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert shrink(frames).shape == (8, 3, SIDE, SIDE)


def test_the_engine_lays_a_prompt_out_as_the_trainer_does(exported):
    student, folder = exported
    engine = Engine.load(EngineConfig(model=str(folder)))
    student.model.load_state_dict({k: v.bfloat16().float() for k, v in student.model.state_dict().items()})
    for frames in (1, 3, 8) if "image" in engine.info.media else (3, 8):
        media = batch_of(render(draw_scene(0, SceneConfig(frames=frames)), SIDE))
        [output] = engine.lm.encode([media], None, "after_norm")
        keep = torch.ones(output.scores.shape, dtype=torch.bool)
        tokens = engine.lm.compose(media, output, keep, keep_cls=True)
        layout = student.layout(frames)
        opening = len(layout.ids) - len(tokens.ids)
        assert engine.lm.prompt.prefix_ids("") == layout.ids[:opening].tolist()
        assert layout.ids[opening:].equal(tokens.ids)
        assert layout.positions[:, opening:].equal(opening + tokens.positions)
        assert layout.start == opening + tokens.length
        patch = torch.where(tokens.patch < 0, -1, tokens.view * GRID**2 + tokens.patch)
        assert layout.patch.equal(patch[layout.visual - opening])
        clip = torch.from_numpy(np.ascontiguousarray(media.frames)).permute(0, 3, 1, 2)[None]
        with torch.no_grad():
            prefix = student.prefix(clip, student.see(clip, zero_token=False))
        torch.testing.assert_close(tokens.embeddings.float(), prefix.hidden[0, opening:], atol=1e-4, rtol=0)


def test_the_trainer_sees_the_scores_of_stage_one(exported):
    student, folder = exported
    engine = Engine.load(EngineConfig(model=str(folder)))
    student.model.load_state_dict({k: v.bfloat16().float() for k, v in student.model.state_dict().items()})
    frames = render(draw_scene(1), SIDE)
    with torch.no_grad():
        features = student.see(torch.from_numpy(frames).permute(0, 3, 1, 2)[None], zero_token=True)
    if features.mutual is None:
        assert features.summary is not None
        return
    [output] = engine.lm.encode([batch_of(frames)], "zero_token", "after_norm")
    scores = output.scores
    torch.testing.assert_close(features.mutual / MERGE**2, scores, atol=1e-6, rtol=0)


def batch_of(frames):
    count = len(frames)
    return FrameBatch(
        kind="image" if count == 1 else "video",
        frames=frames,
        pts_seconds=np.arange(count, dtype=np.float64),
        indices=np.arange(count, dtype=np.int64),
        digest="scene",
    )
