"""The data that crosses between rooms refuses what it cannot hold, and errors survive a pickle."""

import pickle

import numpy as np
import pytest

from occam import errors
from occam.models.preprocess import ClipPixels
from occam.types import FrameBatch


def batch(**changes: object) -> FrameBatch:
    fields: dict[str, object] = {
        "frames": np.zeros((3, 4, 5, 3), dtype=np.uint8),
        "pts_seconds": np.array([0.0, 0.5, 1.0]),
        "indices": np.arange(3),
        "digest": "ab",
    }
    return FrameBatch(**(fields | changes))  # type: ignore[arg-type]


def test_a_chunk_is_a_view() -> None:
    whole = batch()
    part = whole.chunk(1, 3)
    assert len(part) == 2
    assert part.indices.tolist() == [1, 2]
    assert np.shares_memory(part.frames, whole.frames)
    assert (whole.offset, part.offset, part.chunk(1, 2).offset) == (0, 1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": np.zeros((3, 4, 5, 3), dtype=np.float32)}, "uint8"),
        ({"frames": np.zeros((0, 4, 5, 3), dtype=np.uint8)}, "non-empty"),
        ({"frames": np.zeros((3, 4, 10, 3), dtype=np.uint8)[:, :, ::2]}, "contiguous"),
        ({"indices": np.arange(2)}, "indices"),
        ({"pts_seconds": np.array([0.0, 2.0, 1.0])}, "must not decrease"),
        ({"pts_seconds": np.array([0.0, np.nan, 1.0])}, "finite"),
    ],
)
def test_a_batch_refuses_what_is_not_frames(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        batch(**changes)


def every_error() -> list[type[errors.OccamError]]:
    found, queue = [], [errors.OccamError]
    while queue:
        found.append(queue.pop())
        queue.extend(found[-1].__subclasses__())
    return found


@pytest.mark.parametrize("kind", every_error())
def test_errors_survive_a_pickle(kind: type[errors.OccamError]) -> None:
    error = kind("The limit is 3, got 4.", "fps")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.message, copy.param, copy.code) == ("The limit is 3, got 4.", "fps", kind.code)


def test_overloaded_keeps_its_seconds() -> None:
    assert pickle.loads(pickle.dumps(errors.Overloaded("full", retry_after_s=2.5))).retry_after_s == 2.5


@pytest.mark.parametrize(("height", "width"), [(48, 48), (40, 100), (100, 40), (37, 61), (233, 64)])
@pytest.mark.parametrize(("size", "crop", "pad"), [(24, 24, False), (32, 24, False), (24, 24, True), (32, 24, True)])
def test_framing_is_where_the_processor_cuts(height: int, width: int, size: int, crop: int, pad: bool) -> None:
    """A frame whose colours are its coordinates: those of the crop's pixels are where the box has them."""
    pixels = ClipPixels(size=size, crop=crop, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), pad=pad)
    y, x = np.mgrid[:height, :width]
    frame = np.stack([x, y, np.full_like(x, 255)], axis=-1).astype(np.uint8)
    cut = (pixels(frame[None])[0].permute(1, 2, 0).numpy() * 0.5 + 0.5) * 255
    left, top, right, bottom = pixels.framing.box(height, width)
    steps = (np.arange(crop) + 0.5) / crop
    expected_x, expected_y = left + steps * (right - left) - 0.5, top + steps * (bottom - top) - 0.5
    inside = cut[:, :, 2] > 250  # not what was padded
    inside[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    inside[[0, -1]] = inside[:, [0, -1]] = False
    assert inside.any()
    scale = max(1.0, (right - left) / crop)
    assert np.abs(cut[:, :, 0] - expected_x[None, :])[inside].max() <= 0.75 * scale + 0.5
    assert np.abs(cut[:, :, 1] - expected_y[:, None])[inside].max() <= 0.75 * scale + 0.5
