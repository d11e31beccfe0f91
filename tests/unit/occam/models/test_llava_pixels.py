"""Pixels of LLaVA images and Video-LLaVA videos, and tiles' layout, bit for bit those of the stock code."""

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from occam.errors import InvalidInput
from occam.models import preprocess
from occam.models.anyres import AnyRes
from occam.models.preprocess import ClipPixels
from tests.parity.checkpoint import MEAN, STD, write_checkpoint
from tests.parity.checkpoint_llava import random_image, write_llava, write_llava_next
from tests.parity.stock_processors import process

RNG = np.random.default_rng(0)
SIZES = [
    *((1, 1), (1, 150), (150, 1), (2, 7), (56, 56), (57, 55), (112, 56), (55, 168), (112, 112), (113, 111), (480, 640)),
    *(tuple(int(edge) for edge in RNG.integers(1, 400, 2)) for _ in range(25)),
]
PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


def test_clip_pixels_equal_the_stock_processor(tmp_path: Path) -> None:
    write_llava(tmp_path)
    _set(tmp_path, image_processor_type="LlavaImageProcessor", do_pad=True)
    padded = ClipPixels.load(tmp_path, "image")
    assert padded.pad
    _assert_equal(tmp_path, {True: padded, False: replace(padded, pad=False)})


def test_anyres_pixels_equal_the_stock_processor(tmp_path: Path) -> None:
    """With `do_pad` or without: it fills up batches, and a lone image has nothing to fill up."""
    anyres = AnyRes.load(write_llava_next(tmp_path))
    _assert_equal(tmp_path, {True: anyres, False: anyres})


def test_video_pixels_equal_the_stock_processor(tmp_path: Path) -> None:
    pixels = ClipPixels.load(write_checkpoint(tmp_path), "video")
    shapes = [(1 + at % 9, *size) for at, size in enumerate(SIZES)]
    videos = [np.random.default_rng(at).integers(0, 256, (*shape, 3), np.uint8) for at, shape in enumerate(shapes)]
    calls = [(tmp_path, {"videos": [torch.from_numpy(video).permute(0, 3, 1, 2)]}) for video in videos]
    for video, made in zip(videos, process(calls), strict=True):
        assert torch.equal(pixels(video), made["pixel_values_videos"][0]), video.shape


def _assert_equal(checkpoint: Path, by_pad: Mapping[bool, AnyRes | ClipPixels]) -> None:
    images = [random_image(*size, seed=at).frames for at, size in enumerate(SIZES)]
    cases = list(product(by_pad, images))
    calls = [{"images": [image[0]], "input_data_format": "channels_last", "do_pad": pad} for pad, image in cases]
    for (pad, image), made in zip(cases, process([(checkpoint, call) for call in calls]), strict=True):
        expected = made["pixel_values"]
        assert torch.equal(by_pad[pad](image), expected[0] if expected.ndim == 5 else expected), (pad, image.shape)


def _set(checkpoint: Path, **settings: object) -> None:
    file = checkpoint / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


# In floats, 196 x 343 pixels come to 6.999999999999999 columns of patches.
@pytest.mark.parametrize("size", [*SIZES, (196, 343), (147, 392), (1, 2000), (2000, 1), (720, 1280)], ids=str)
def test_the_layout_of_tiles_is_the_stock_models(size: tuple[int, int]) -> None:
    side = 4
    anyres = AnyRes(pinpoints=PINPOINTS, edge=336, mean=MEAN, std=STD)
    layout = anyres.layout(size, side)
    best = select_best_resolution(size, [list(pinpoint) for pinpoint in PINPOINTS])
    passes, tokens = 1 + best[0] * best[1] // 336**2, 1 + side * side
    features = torch.arange(passes * tokens).view(passes, tokens, 1)[:, 1:]
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=336, patch_size=336 // side),
        image_grid_pinpoints=[list(pinpoint) for pinpoint in PINPOINTS],
    )
    packed, _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config), [features], torch.tensor([size]), "default", torch.tensor([-1])
    )
    assert layout.source.tolist() == packed[0].squeeze(1).tolist()
    for view, (rows, columns) in enumerate(layout.grid.tolist()):
        own = layout.patch[(layout.view == view) & (layout.patch >= 0)]
        assert own.tolist() == list(range(rows * columns))
    assert int((layout.patch < 0).sum()) == layout.grid[1, 0]


@pytest.mark.parametrize("size", [(15, 3000), (3000, 15), (200, 1500), (1500, 63)], ids=str)
def test_a_long_image_is_padded_without_the_square_of_its_longer_edge(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, image, edge = ClipPixels(size=56, crop=56, mean=MEAN, std=STD, pad=True), random_image(*size), max(size)
    square = np.zeros((1, edge, edge, 3), dtype=np.uint8) + np.array([int(255 * v) for v in MEAN], dtype=np.uint8)
    top, left = ((edge - length) // 2 for length in size)
    square[:, top : top + size[0], left : left + size[1]] = image.frames
    expected = replace(pixels, pad=False)(square)
    largest, resize = [0], preprocess.resize

    def watched(images: torch.Tensor, to: tuple[int, int]) -> torch.Tensor:
        largest[0] = max(largest[0], images.numel())
        return resize(images, to)

    monkeypatch.setattr(preprocess, "resize", watched)
    assert torch.equal(pixels(image.frames), expected)
    assert largest[0] == 3 * edge * max(56, min(size[0], preprocess.ROWS))


def test_a_thread_of_an_image_is_refused_before_it_takes_all_memory() -> None:
    pixels = ClipPixels(size=336, crop=336, mean=MEAN, std=STD)
    with pytest.raises(InvalidInput, match=r"1 x 100000; the longer may be 200 times"):
        pixels(np.zeros((1, 100_000, 1, 3), dtype=np.uint8))
