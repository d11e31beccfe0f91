"""What media and questions will become, known by their sizes alone: nothing is decoded, encoded or run."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from torch import Tensor

from occam.config import Pruning
from occam.engine.prefix import empty_state
from occam.models.base import VideoLM
from occam.pruning import strategy_for
from occam.tensors import PrefixState
from occam.types import FrameBatch, MediumShape


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tokens of a conversation that begins with media.

    encoded: patches that the tower will give, before any stage; beside: all other tokens of the state behind the media
    turns: tokens of each question's turn; token_nbytes: bytes of the state for one token
    """

    encoded: int
    beside: int
    turns: tuple[int, ...]
    token_nbytes: int


def plan(
    lm: VideoLM,
    media: Sequence[MediumShape],
    encoded: int,
    pruning: Pruning,
    system: str,
    questions: Sequence[str],
    first: bool,
) -> Plan:
    """The plan of questions about media of `encoded` patches; `first`: of first turns, else of ones behind others.

    InvalidInput where the model takes no medium of such a size.
    """
    keep_cls = strategy_for(pruning).keep_cls
    others = [lm.others(chunk, keep_cls) for medium in media for chunk in _blank(medium, lm.info.group)]
    return Plan(
        encoded=encoded,
        beside=len(lm.prompt.prefix_ids(system)) + sum(others),
        turns=tuple(len(lm.prompt.turn_ids(question, first)[0]) for question in questions),
        token_nbytes=_token_nbytes(empty_state(lm, pruning)),
    )


def _blank(medium: MediumShape, group: int) -> list[FrameBatch]:
    """A medium's groups of frames without their pixels: of memory that nobody touches there is none."""
    pixels = np.zeros((group, medium.height, medium.width, 3), np.uint8)
    pts = np.array(medium.pts_seconds, np.float64)
    return [
        FrameBatch(
            frames=pixels[: len(pts[start : start + group])],
            pts_seconds=pts[start : start + group],
            indices=np.arange(len(pts[start : start + group])),
            digest="",
            kind=medium.kind,
            planned=len(pts),
            offset=start,
        )
        for start in range(0, len(pts), group)
    ]


def _token_nbytes(state: PrefixState) -> int:
    """Bytes of a state's rows for one token, by a state that has none."""
    first = (state.ids, state.view, state.patch, state.hidden, *state.planes)
    second = (state.positions, *state.keys, *state.values)
    return sum(_row_nbytes(rows, 0) for rows in first) + sum(_row_nbytes(rows, 1) for rows in second)


def _row_nbytes(rows: Tensor, axis: int) -> int:
    return prod(length for index, length in enumerate(rows.shape) if index != axis) * rows.element_size()
