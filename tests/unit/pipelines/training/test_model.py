"""The export is a checkpoint that the stock classes load as it is."""

import json

import pytest
import torch
from transformers import AutoTokenizer, VideoLlavaForConditionalGeneration

from occam.models.preprocess import ClipPixels
from pipelines.evaluation.renderer import draw_scene, render
from pipelines.training.model import FRAME_TOKENS, FRAMES, SIDE, build_model, export, normalize, shrink
from pipelines.training.tokenizer import encode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    target = tmp_path_factory.mktemp("export")
    export(build_model(), target)
    return target


def test_the_export_is_small_and_loads_with_the_stock_class(folder):
    assert (folder / "model.safetensors").stat().st_size < 15_000_000
    loaded = VideoLlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    original = build_model().eval()
    for value in original.parameters():
        value.data = value.data.bfloat16().float()
    ids = torch.tensor([[*encode("USER:"), *encode("<video>") * FRAME_TOKENS * FRAMES, *encode("\nis there a dot")]])
    pixels = normalize(shrink(render(draw_scene(0), 96)))[None]
    with torch.no_grad():
        stored = original(input_ids=ids, pixel_values_videos=pixels).logits
        torch.testing.assert_close(loaded(input_ids=ids, pixel_values_videos=pixels).logits, stored)


def test_the_image_tower_is_the_video_tower(folder):
    loaded = VideoLlavaForConditionalGeneration.from_pretrained(folder).model
    video = dict(loaded.video_tower.named_parameters())
    for name, value in loaded.image_tower.named_parameters():
        assert value.equal(video[name]), name


def test_the_ids_of_tokenizer_and_configuration_agree(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["video_token_index"] == tokenizer.convert_tokens_to_ids("<video>")
    assert config["image_token_index"] == tokenizer.convert_tokens_to_ids("<image>")
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id
    assert config["text_config"]["vocab_size"] == len(tokenizer)


def test_pixels_are_the_ones_that_the_engine_makes(folder):
    pixels = ClipPixels.load(folder, "video")
    for side in (96, 192, 384):
        frames = render(draw_scene(1), side)
        torch.testing.assert_close(normalize(shrink(frames)), pixels(frames), atol=1e-6, rtol=0)


def test_frames_of_any_square_side_become_the_towers(folder):
    for side in (96, 192, 384):
        assert shrink(render(draw_scene(0), side)).shape == (FRAMES, 3, SIDE, SIDE)
    assert json.loads((folder / "video_preprocessor_config.json").read_text())["size"] == {"shortest_edge": SIDE}
