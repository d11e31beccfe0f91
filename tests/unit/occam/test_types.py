"""The data that crosses between rooms refuses what it cannot hold, and errors survive a pickle."""

import pickle

import numpy as np
import pytest

from occam import errors
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
