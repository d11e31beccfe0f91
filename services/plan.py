"""What a load takes: tokens, bytes in Redis, and workers. The models' own arithmetic; frames are never looked at."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from occam.config import Pruning, SamplingParams, Wire
from occam.engine import Engine
from occam.kv import codec
from occam.kv.embeddings import MediumManifest
from occam.types import FrameBatch, MediumShape
from pipelines.ingest.sample import sample
from services.media import sampling_of
from services.messages import FrameChoice
from services.settings import Settings, model_name

DAY_S = 86_400.0
_TIMELINE_FPS = 25.0
_QUESTION = "What happens in the video?"


@dataclass(frozen=True, kw_only=True)
class Load:
    """Videos that come in a day, all alike, and the questions about each.

    peak: the busiest second's videos over those of an average one
    """

    videos_per_day: float
    questions: int
    seconds: float
    width: int
    height: int
    frames: FrameChoice
    answer_tokens: int
    peak: float

    def shape(self, frames: int) -> MediumShape:
        """Which frames of a video are looked at; frames: the model's fixed number."""
        pts_seconds = np.arange(max(1, round(self.seconds * _TIMELINE_FPS))) / _TIMELINE_FPS
        indices = sample(pts_seconds, sampling_of(self.frames, frames))
        times = tuple(pts_seconds[indices].tolist())
        return MediumShape(kind="video", height=self.height, width=self.width, pts_seconds=times)


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a load takes with one model and one share of visual tokens kept by stage I.

    visual_tokens, kv_bytes, embedding_bytes: of one video, before any stage and as they are stored
    kv_stored, embeddings_stored: whether an entry of that size goes into Redis at all
    redis_bytes: of all videos that live at a time; tokens_per_second: visual ones to encode, at the peak
    rate: of them that one worker encodes in a second beside answering; gpus: as many as its workers take
    """

    model: str
    strategy: str
    retention: float
    frames: int
    visual_tokens: int
    kv_bytes: int
    embedding_bytes: int
    kv_stored: bool
    embeddings_stored: bool
    redis_bytes: int
    tokens_per_second: float
    rate: float
    workers: int
    gpus: float


def size(settings: Settings, engine: Engine, load: Load, retentions: Sequence[float], rate: float | None) -> list[Size]:
    """What the load takes with nothing pruned, and with the model's own pruning by each share that stage I keeps.

    rate: see `Size`; None: a run measures it
    """
    shape, rows = load.shape(engine.info.frames), []
    by_default = engine.pruning()
    pruned = [(by_default, retentions)] if by_default.name != "none" else []
    for pruning, shares in [(engine.pruning("none"), (1.0,)), *pruned]:
        pace = rate or measured_rate(engine, pruning, load)
        rows += [_row(settings, engine, load, shape, pruning, share, pace) for share in shares]
    return rows


def measured_rate(engine: Engine, pruning: Pruning, load: Load) -> float:
    """Visual tokens a second of a worker at this load's mix: one video of noise encoded, and its questions answered."""
    shape = load.shape(engine.info.frames)
    engine.warm_up()
    started = time.monotonic()
    state, encoded = engine.begin(pruning), 0
    for chunk in _noise(shape, engine.chunk(pruning, len(shape.pts_seconds))):
        tokens, _ = engine.encode(chunk, pruning)
        state, _ = engine.extend(state, tokens, begins=chunk.offset == 0)
        encoded += tokens.encoded
    for _ in range(load.questions):
        for _ in engine.stream(state, _QUESTION, pruning, SamplingParams(max_new_tokens=load.answer_tokens)):
            pass
    return encoded / (time.monotonic() - started)


def stored_bytes(engine: Engine, pruning: Pruning, shape: MediumShape, kept: int, wire: Wire) -> tuple[int, int]:
    """Bytes of a video's state, and of its embeddings, as Redis gets them, where stage I keeps so many patches."""
    planned, frames = engine.plan([shape], pruning, "", ()), len(shape.pts_seconds)
    empty = codec.describe(engine.begin(pruning))
    state = replace(empty, wire=wire, tokens=planned.beside + kept, views=frames)
    chunks = -(-frames // engine.chunk(pruning, frames))
    none = (0,) * chunks
    embeddings = MediumManifest(
        dtype=empty.dtype,
        axes=empty.axes,
        width=empty.width,
        levels=empty.levels,
        tokens=_shared_out(planned.beside - empty.tokens + kept, chunks),
        views=_shared_out(frames, chunks),
        length=none,
        encoded=none,
        register_count=none,
    )
    return state.nbytes, embeddings.nbytes


def _row(
    settings: Settings, engine: Engine, load: Load, shape: MediumShape, pruning: Pruning, share: float, rate: float
) -> Size:
    encoded = engine.visual_tokens(shape.kind, len(shape.pts_seconds), shape.height, shape.width)
    kv, embeddings = stored_bytes(engine, pruning, shape, round(encoded * share), settings.kv_wire)
    kv_stored, embeddings_stored = (nbytes <= settings.kv_entry_bytes for nbytes in (kv, embeddings))
    stored = kv * kv_stored + embeddings * embeddings_stored
    needed = load.videos_per_day / DAY_S * encoded * load.peak
    workers = max(1, math.ceil(needed / rate))
    return Size(
        model=model_name(engine.config.model),
        strategy=pruning.name,
        retention=share,
        frames=len(shape.pts_seconds),
        visual_tokens=encoded,
        kv_bytes=kv,
        embedding_bytes=embeddings,
        kv_stored=kv_stored,
        embeddings_stored=embeddings_stored,
        redis_bytes=round(stored * load.videos_per_day * settings.kv_ttl_s / DAY_S),
        tokens_per_second=needed,
        rate=rate,
        workers=workers,
        gpus=workers * settings.gpus_per_worker,
    )


def _shared_out(count: int, among: int) -> tuple[int, ...]:
    return tuple(count // among + (number < count % among) for number in range(among))


def _noise(shape: MediumShape, size: int) -> list[FrameBatch]:
    """The video's chunks, of frames that are all different."""
    pts, rng = np.array(shape.pts_seconds), np.random.default_rng(0)
    return [
        FrameBatch(
            frames=rng.integers(0, 256, (len(pts[start : start + size]), shape.height, shape.width, 3), np.uint8),
            pts_seconds=pts[start : start + size],
            indices=np.arange(len(pts))[start : start + size],
            digest="",
            kind=shape.kind,
            planned=len(pts),
            offset=start,
        )
        for start in range(0, len(pts), size)
    ]
