"""The evidence of a turn as it is kept with its session: a bit and a byte for each patch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, TypeAdapter, with_config

from occam.types import Evidence, FrameEvidence
from services.overlay import Patches

MAX_PATCHES = 1 << 18
"""Patches of a turn whose evidence is kept: more than a model's positions, and 400 KB at most."""
KEPT_TURNS = 16
"""Turns of a session whose evidence is kept, the latest."""


@with_config(ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"))
@dataclass(frozen=True, kw_only=True)
class _View:
    medium: int
    index: int
    rows: int
    columns: int
    kept: bytes
    levels: bytes


_VIEWS = TypeAdapter(tuple[_View, ...])


def pack(evidence: Evidence) -> bytes | None:
    """The evidence in few bytes; None where there is none, or too much of it."""
    if not 0 < sum(frame.of for frame in evidence.frames) <= MAX_PATCHES:
        return None
    full = _full(evidence)
    return _VIEWS.dump_json(tuple(_packed(frame, full) for frame in evidence.frames))


def unpack(raw: bytes, medium: int, index: int) -> list[Patches]:
    """The views of one frame; none where it has none, or `raw` is not what `pack` gave."""
    try:
        views = [view for view in _VIEWS.validate_json(raw) if (view.medium, view.index) == (medium, index)]
        return [_patches(view) for view in views]
    except ValueError:  # of pydantic, or of numpy, over sizes that do not fit one another
        return []


def _full(evidence: Evidence) -> float:
    """The score that gets the highest level: twice the threshold, which then lies in the middle; else the highest."""
    if evidence.threshold > 0:
        return 2 * evidence.threshold
    highest = [float(np.nanmax(frame.scores)) for frame in evidence.frames if np.isfinite(frame.scores).any()]
    return max(highest, default=0.0)


def _packed(frame: FrameEvidence, full: float) -> _View:
    tested = np.isfinite(frame.scores)
    shares = np.where(tested, frame.scores, 0) / full if full > 0 else np.zeros(frame.scores.shape)
    levels = np.where(tested, 1 + 254 * shares.clip(0, 1), 0).astype(np.uint8)
    return _View(
        medium=frame.medium,
        index=frame.index,
        rows=frame.grid[0],
        columns=frame.grid[1],
        kept=np.packbits(frame.stage2).tobytes(),
        levels=levels.tobytes(),
    )


def _patches(view: _View) -> Patches:
    shape = view.rows, view.columns
    return Patches(kept=_bits(view.kept, shape), levels=np.frombuffer(view.levels, np.uint8).reshape(shape))


def _bits(packed: bytes, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))[: shape[0] * shape[1]]
    return bits.astype(bool).reshape(shape)
