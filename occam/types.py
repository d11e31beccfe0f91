"""The data that crosses between rooms, in numpy alone: frames in, an answer with its evidence out."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from occam.stats import StageStats, VisualTokenCounts

MediaKind = Literal["video", "image"]


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameBatch:
    """Decoded frames of one video, upright, in presentation order; or one image.

    frames: uint8 [T, H, W, 3], RGB, C-contiguous
    pts_seconds: float64 [T], presentation time from the container
    indices: int64 [T], index of each frame in the source's presentation order
    digest: SHA-256 (hex) of the source's bytes
    kind: `image` batches hold one frame
    planned: frames that the whole video gives this conversation; models that spread a budget of pixels over them
    decide by it (None: these)
    offset: frames of the same video in the batches before this one; what begins at 0 is a medium of its own
    """

    frames: npt.NDArray[np.uint8]
    pts_seconds: npt.NDArray[np.float64]
    indices: npt.NDArray[np.int64]
    digest: str
    kind: MediaKind = "video"
    planned: int | None = None
    offset: int = 0

    def __post_init__(self) -> None:
        shape = self.frames.shape
        if self.frames.dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise ValueError(f"frames must be non-empty uint8 [T, H, W, 3], got {self.frames.dtype} {list(shape)}")
        if not self.frames.flags.c_contiguous:
            raise ValueError("frames must be C-contiguous")
        for name, dtype in (("pts_seconds", np.float64), ("indices", np.int64)):
            got = getattr(self, name)
            if got.dtype != dtype or got.shape != shape[:1]:
                raise ValueError(f"{name} must be {np.dtype(dtype)} [{shape[0]}], got {got.dtype} {list(got.shape)}")
        if not np.all(np.isfinite(self.pts_seconds)) or np.any(np.diff(self.pts_seconds) < 0):
            raise ValueError("pts_seconds must be finite and must not decrease")
        if self.kind == "image" and len(self) != 1:
            raise ValueError(f"an image is one frame, got {len(self)}")

    def __len__(self) -> int:
        return int(self.frames.shape[0])

    def __repr__(self) -> str:
        times = f"{self.pts_seconds[0]:.3f}..{self.pts_seconds[-1]:.3f} s"
        return f"FrameBatch({list(self.frames.shape)}, {times}, {self.digest[:8]})"

    def chunk(self, start: int, stop: int) -> "FrameBatch":
        """Frames start..stop-1 as a batch of their own (contiguous views, nothing is copied)."""
        return FrameBatch(
            frames=self.frames[start:stop],
            pts_seconds=self.pts_seconds[start:stop],
            indices=self.indices[start:stop],
            digest=self.digest,
            kind=self.kind,
            planned=self.planned or len(self),
            offset=self.offset + start,
        )


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Which part of a frame a model's grid of patches covers: all of it, unless `crop` says that the middle is.

    size: length of the shortest edge that a frame is resized to; crop: edge of the square that is cut from its middle
    pad: frames are first padded to a square
    """

    size: int = 0
    crop: int = 0
    pad: bool = False

    def box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the grid in pixels of the frame; outside of it, where it was padded."""
        if not self.crop:
            return 0.0, 0.0, float(width), float(height)
        short = max(height, width) if self.pad else min(height, width)
        edges = [short if self.pad else length for length in (width, height)]
        before = [(edge - length) // 2 for edge, length in zip(edges, (width, height), strict=True)]
        resized = [int(edge * self.size / short) for edge in edges]
        starts = [(length - self.crop) // 2 for length in resized]
        scales = [edge / length for edge, length in zip(edges, resized, strict=True)]
        left, top = (start * scale - b for start, scale, b in zip(starts, scales, before, strict=True))
        return left, top, left + self.crop * scales[0], top + self.crop * scales[1]


@dataclass(frozen=True, kw_only=True)
class MediumShape:
    """A video or an image before it is decoded: pixels of an upright frame, and times of the wanted ones, about."""

    kind: MediaKind
    height: int
    width: int
    pts_seconds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One finished turn of a conversation as token ids: ids, never text, are the conversation's truth.

    suffix_ids: everything after the state of the turn before: question, role markers, generation prompt
    generated_ids: the ids the model produced, in order
    closing_ids: the template's ids that end the turn, where the model did not produce them itself
    """

    suffix_ids: tuple[int, ...]
    generated_ids: tuple[int, ...]
    closing_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameEvidence:
    """What was kept of one view (a frame, a temporal group, an image or its tiles) for one question.

    medium: which of the conversation's videos and images it shows, from 0
    index: index of the (first) frame in the source; pts_s: presentation time in seconds
    of: patch tokens the tower produced; grid: their rows and columns
    stage1: bool [rows, cols], kept by stage I; stage2: bool [rows, cols], kept by stage II
    scores: float32 [rows, cols], stage II score where stage I kept the patch, NaN elsewhere
    """

    medium: int
    index: int
    pts_s: float
    of: int
    grid: tuple[int, int]
    stage1: npt.NDArray[np.bool_]
    stage2: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]

    @property
    def kept(self) -> int:
        """Patches that reached the upper layers."""
        return int(self.stage2.sum())


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Why the answer rests on what it rests on: kept patches per frame and the stage II threshold they passed.

    threshold: lambda2 times the reference's score; NaN where nothing was tested (strategy `none`)
    """

    threshold: float
    frames: tuple[FrameEvidence, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One finished answer of the engine.

    prompt_tokens: tokens that entered the language model, the register not counted
    reused_tokens: those of them whose lower layers were in the state already
    finish_reason: `stop` (the model ended) or `length` (the limit did)
    busy_s: seconds of the passes it took part in, each divided among those in it
    """

    text: str
    turn: Turn
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    visual_tokens: VisualTokenCounts
    evidence: Evidence
    busy_s: float = 0.0
    stats: tuple[StageStats, ...] = field(default=())
