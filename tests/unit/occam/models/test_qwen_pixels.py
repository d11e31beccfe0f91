"""Preprocessing against the stock processors, bit for bit: sizes, frame counts, caps, patches; and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from occam.errors import InvalidInput
from occam.models.qwen_pixels import QwenPixels
from occam.types import FrameBatch, MediaKind
from tests.parity.checkpoint_qwen import random_frames, write_checkpoint
from tests.parity.stock_processors import process

SIZES = [(48, 64), (16, 16), (17, 31), (3, 5), (40, 9), (9, 300), (301, 20), (128, 96), (33, 47), (200, 200), (8, 1500)]
VIDEOS = [
    *((count, *size) for size in SIZES for count in (2, 3, 5)),
    *((count, *size) for size in ((48, 64), (96, 40), (120, 160)) for count in (4, 7, 16, 30)),
]
REFUSED = [(3, 2000), (1611, 8)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def stock(checkpoint: Path) -> list[Any]:
    calls: list[dict[str, Any]] = [
        {"images": [channels_first(random_frames(1, *size))[0]]} for size in (*SIZES, *REFUSED)
    ]
    for cap in (True, False):
        calls += [
            {
                "videos": [channels_first(random_frames(*video))],
                "video_metadata": [{"fps": 2.0, "frames_indices": list(range(video[0])), "total_num_frames": video[0]}],
                "do_sample_frames": False,
                "cap_pixels_per_frame": cap,
            }
            for video in (*VIDEOS, *((2, *size) for size in REFUSED))
        ]
    return process([(checkpoint, call) for call in calls])


def channels_first(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def media(frames: np.ndarray, kind: MediaKind, planned: int | None = None) -> FrameBatch:
    count = len(frames)
    return FrameBatch(
        frames=frames,
        pts_seconds=np.arange(count, dtype=float),
        indices=np.arange(count),
        digest="",
        kind=kind,
        planned=planned,
    )


def test_images_equal_the_stock_processor(checkpoint: Path, stock: list[Any]) -> None:
    pixels = QwenPixels.load(checkpoint, "image")
    for size, expected in zip(SIZES, stock, strict=False):
        patches, grid = pixels(media(random_frames(1, *size), "image"))
        assert [list(grid)] == expected["image_grid_thw"].tolist()
        assert torch.equal(patches, expected["pixel_values"])


@pytest.mark.parametrize("cap", [True, False])
def test_videos_equal_the_stock_processor(checkpoint: Path, stock: list[Any], tmp_path: Path, cap: bool) -> None:
    pixels = QwenPixels.load(checkpoint if cap else uncapped(checkpoint, tmp_path), "video")
    first = len(SIZES) + len(REFUSED) + (0 if cap else len(VIDEOS) + len(REFUSED))
    for video, expected in zip(VIDEOS, stock[first:], strict=False):
        patches, grid = pixels(media(random_frames(*video), "video"))
        assert [list(grid)] == expected["video_grid_thw"].tolist()
        assert torch.equal(patches, expected["pixel_values_videos"])


def uncapped(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint's video settings, saying that there is no cap."""
    content = json.loads((checkpoint / "video_preprocessor_config.json").read_text())
    (folder / "video_preprocessor_config.json").write_text(json.dumps(content | {"cap_pixels_per_frame": False}))
    return folder


def test_the_cap_and_the_budget_both_bind_somewhere(checkpoint: Path, tmp_path: Path) -> None:
    """Otherwise the comparisons compare less than they seem to."""
    capped = QwenPixels.load(checkpoint, "video")
    free = QwenPixels.load(uncapped(checkpoint, tmp_path), "video")
    assert capped.digest != free.digest
    few, many = (media(random_frames(count, 120, 160), "video") for count in (2, 30))
    assert capped.size(few) < free.size(few) < (120, 160)
    assert capped.size(many) < capped.size(few)


def test_chunks_of_one_video_are_its_slices(checkpoint: Path) -> None:
    pixels = QwenPixels.load(checkpoint, "video")
    video = media(random_frames(29, 120, 160), "video")
    assert pixels.size(video) < pixels.size(media(video.frames[:2], "video"))
    whole, (groups, rows, columns) = pixels(video)
    chunks = [pixels(video.chunk(start, min(start + 2, 29))) for start in range(0, 29, 2)]
    assert groups == 15
    assert all(grid == (1, rows, columns) for _, grid in chunks)
    assert torch.equal(torch.cat([patches for patches, _ in chunks]), whole)


def test_a_video_of_one_frame_is_that_frame_twice(checkpoint: Path) -> None:
    """The stock processor refuses it; its own padding of an odd end says what it would be."""
    pixels, frame = QwenPixels.load(checkpoint, "video"), random_frames(1)
    once, grid = pixels(media(frame, "video"))
    twice, same = pixels(media(frame.repeat(2, axis=0), "video"))
    assert grid == same
    assert torch.equal(once, twice)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_what_is_all_edge_is_refused_where_the_stock_processor_refuses(
    checkpoint: Path, stock: list[Any], kind: MediaKind
) -> None:
    first = len(SIZES) + (len(REFUSED) + len(VIDEOS) if kind == "video" else 0)
    for size, expected in zip(REFUSED, stock[first : first + len(REFUSED)], strict=True):
        assert "aspect ratio must be smaller than 200" in expected
        with pytest.raises(InvalidInput, match="200 times the shorter") as raised:
            QwenPixels.load(checkpoint, kind)(media(random_frames(2 if kind == "video" else 1, *size), kind))
        assert raised.value.param == kind
