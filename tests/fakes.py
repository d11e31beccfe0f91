"""Stand-ins for the engine and for media: quick, deterministic, and honest about what they were given.

They are injected into the real deployments, so that real Ray Serve is tested without weights and without decoders.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import torch

from occam.config import EngineConfig, NoPruning, OccamToken, Pruning, SamplingParams
from occam.engine.plan import Plan
from occam.engine.sharing import TowerLoad
from occam.errors import InvalidInput, SourceUnavailable, UnsupportedVideo
from occam.models.base import ModelInfo
from occam.stats import StageStats, VisualTokenCounts
from occam.tensors import MediaTokens, MediumTokens, PrefixState
from occam.types import Answer, Evidence, FrameBatch, FrameEvidence, MediaKind, MediumShape, Turn
from services.media import upload_limits
from services.messages import DecodedChunk, Described, FrameChoice, Medium, Source
from services.settings import Settings
from services.upload_files import UploadFiles

PATCHES = 4
END = 0
MEDIA: dict[str, tuple[MediaKind, ...]] = {"fake-images": ("image",), "fake-both": ("video", "image")}


class FakeEngine:
    """An engine whose answer is a digest of its name, of everything in the state and of the question.

    It takes videos, or what `MEDIA` says of its name.
    Each frame becomes `PATCHES` tokens with ids of its brightness; stage I keeps half of them, stage II one a frame.
    Words in the question make it behave: `slow` (50 ms a word), `endless` (as slow, for minutes), `crash` (a bug),
    `pid` (says its process), `who` (says its name).
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.info = ModelInfo(
            name=config.model,
            family="fake",
            digest="0" * 64,
            config_digest="2" * 64,
            text_digest="1" * 64,
            preprocessing="fake",
            frames=8,
            media=MEDIA.get(config.model, ("video",)),
            layers=2,
            cut=1,
            max_positions=4096,
            calibration=None,
        )

    @classmethod
    def load(cls, config: EngineConfig) -> "FakeEngine":
        return cls(config)

    def warm_up(self) -> None:
        pass

    def pruning(self, strategy: str | None = None, **options: Any) -> Pruning:
        if strategy == "none":
            return NoPruning()
        settings = {"lambda1": 1.0, "lambda2": 1.0, "cut": 1, "register": "zero_token"}
        return OccamToken(**settings | options)

    def asked(self, pruning: Pruning, question: str) -> Pruning:
        return pruning

    def chunk(self, pruning: Pruning, frames: int) -> int:
        return self.config.chunk_frames

    def plan(
        self, media: Sequence[MediumShape], pruning: Pruning, system: str, questions: Sequence[str], first: bool = True
    ) -> Plan:
        frames = sum(len(medium.pts_seconds) for medium in media)
        return Plan(
            encoded=frames * PATCHES,
            beside=1 + len(_ids(system)),
            turns=tuple(len(_ids(question)) for question in questions),
            token_nbytes=44,
        )

    def key_facts(self, pruning: Pruning) -> dict[str, str | int | float]:
        return {"model": self.info.name, "strategy": pruning.name, "lambda1": getattr(pruning, "lambda1", 0.0)}

    def visual_tokens(self, kind: MediaKind, frames: int, height: int, width: int) -> int:
        return frames * PATCHES

    def begin(self, pruning: Pruning, system: str = "") -> PrefixState:
        return _state(torch.tensor([1, *_ids(system)]), torch.zeros(0, dtype=torch.int64), frames=0)

    def append(
        self, state: PrefixState, frames: FrameBatch, pruning: Pruning
    ) -> tuple[PrefixState, tuple[StageStats, ...]]:
        tokens, encoding = self.encode(frames, pruning)
        grown, prefill = self.extend(state, tokens, begins=frames.offset == 0)
        return grown, (encoding, prefill)

    def tower_load(self, frames: FrameBatch, pruning: Pruning) -> TowerLoad:
        return TowerLoad(kind=None, views=0, room=0)

    def encode_together(self, chunks: Sequence[tuple[FrameBatch, Pruning]]) -> list[tuple[MediaTokens, StageStats]]:
        return [self.encode(*chunk) for chunk in chunks]

    def encode(self, frames: FrameBatch, pruning: Pruning) -> tuple[MediaTokens, StageStats]:
        started = time.monotonic()
        if frames.kind not in self.info.media:
            raise InvalidInput(f"{self.info.name} does not take this kind: {frames.kind}.", "model")
        count = frames.frames.shape[0]
        kept = count * PATCHES // 2
        brightness = torch.from_numpy(frames.frames.reshape(count, -1)[:, 0].astype(np.int64))
        ids = brightness.repeat_interleave(PATCHES // 2) + 1000
        tokens = MediaTokens(
            ids=ids,
            embeddings=ids.float()[:, None],
            positions=torch.arange(kept)[None],
            view=torch.arange(count).repeat_interleave(PATCHES // 2),
            patch=torch.zeros(kept, dtype=torch.int64),
            length=kept,
            encoded=count * PATCHES,
            pts_seconds=torch.from_numpy(frames.pts_seconds),
            indices=torch.from_numpy(frames.indices),
            grid=torch.tensor([[2, 2]]).expand(count, 2),
            register_sum=torch.zeros(1, 1),
            register_count=0,
        )
        return tokens, StageStats(
            stage="encode", started_s=started, ended_s=time.monotonic(), tokens_in=tokens.encoded, tokens_out=kept
        )

    def extend(self, state: PrefixState, tokens: MediaTokens, begins: bool) -> tuple[PrefixState, StageStats]:
        now, first = time.monotonic(), len(state.view_pts)
        grown = _state(
            torch.cat([state.ids, tokens.ids]),
            torch.cat([_visual(state), first + tokens.view]),
            frames=first + len(tokens.indices),
        )
        kept = len(tokens.ids)
        return grown, StageStats(stage="prefill_lower", started_s=now, ended_s=now, tokens_in=kept, tokens_out=kept)

    def fits_media(self, medium: MediumTokens) -> bool:
        return all(chunk.embeddings.shape[1] == 1 for chunk in medium.chunks)

    def fits(self, pruning: Pruning, state: PrefixState) -> bool:
        return state.shape == self.begin(pruning).shape

    def replay(self, state: PrefixState, turns: Sequence[Turn]) -> PrefixState:
        ids = [i for turn in turns for i in (*turn.suffix_ids, *turn.generated_ids, *turn.closing_ids)]
        grown = _state(torch.cat([state.ids, torch.tensor(ids)]), _visual(state), frames=len(state.view_pts))
        return replace(grown, approximate=state.approximate)

    def turn_of(self, question: str, answer: str, first: bool) -> Turn:
        return Turn(suffix_ids=tuple(_ids(question)), generated_ids=(*_ids(answer), END))

    def generation(
        self, state: PrefixState, question: str, pruning: Pruning, sampling: SamplingParams
    ) -> "FakeGeneration":
        return FakeGeneration(
            self.stream(state, question, pruning, sampling), 0.05 if "slow" in question or "endless" in question else 0
        )

    def start(self, generations: "Sequence[FakeGeneration]") -> None:
        self.step(generations)

    def step(self, generations: "Sequence[FakeGeneration]") -> None:
        time.sleep(max(each.pass_s for each in generations))
        for each in generations:
            each.take()

    def stream(
        self, state: PrefixState, question: str, pruning: Pruning, sampling: SamplingParams
    ) -> Iterator[str | Answer]:
        started = time.monotonic()
        if "crash" in question:
            raise RuntimeError("a bug")
        frames = len(state.view_pts)
        seen = sha256(repr((self.info.name, state.ids.tolist(), question)).encode()).hexdigest()[:8]
        words = [f"saw {frames} frames", f" turn {int((state.ids == END).sum())}", f" digest {seen}"]
        if "pid" in question:
            words.append(f" pid {os.getpid()}")
        if "who" in question:
            words.append(f" by {self.info.name}")
        if "slow" in question:
            words += [" and"] * 40
        if "endless" in question:
            words += [" on"] * 10_000
        words = words[: sampling.max_new_tokens]
        yield from words
        text = "".join(words)
        suffix = tuple(_ids(question))
        yield Answer(
            text=text,
            turn=Turn(suffix_ids=suffix, generated_ids=(*_ids(text), END)),
            finish_reason="stop",
            prompt_tokens=len(state) + len(suffix),
            reused_tokens=len(state),
            completion_tokens=len(words),
            visual_tokens=VisualTokenCounts(encoded=frames * PATCHES, stage1=frames * PATCHES // 2, stage2=frames),
            evidence=_evidence(frames),
            busy_s=time.monotonic() - started,
            stats=(StageStats(stage="generate", started_s=started, ended_s=time.monotonic(), tokens_out=len(words)),),
        )


class FakeGeneration:
    """A stream that is taken a word a pass, its answer with the last one; `pass_s`: what a pass takes at least."""

    tokens = 1

    def __init__(self, events: Iterator[str | Answer], pass_s: float) -> None:
        self.pass_s = pass_s
        self.answer: Answer | None = None
        self.error: Exception | None = None
        self._events = events
        self._next: str | Answer | None = None
        self._pieces: list[str] = []

    def take(self) -> None:
        """The next word, and the answer if it was the last."""
        event = next(self._events) if self._next is None else self._next
        if isinstance(event, str):
            self._pieces.append(event)
            self._next = event = next(self._events)
        if isinstance(event, Answer):
            self.answer = event

    def fail(self, error: Exception) -> None:
        self.error = error

    def forget(self) -> None:
        """It remembers nothing."""

    def pieces(self) -> list[str]:
        pieces, self._pieces = self._pieces, []
        return pieces


class FakeMedia:
    """Media by name: `fake://NAME?frames=16&delay=0.1` is a video of 16 frames whose chunks take 0.1 s each.

    With `fetch=5`, describing it takes so many seconds.

    Asked for as an image, it is one frame whose brightness depends on its name.
    `fake://fatal` kills the first process that describes it, and `fake://fatal-frames` that decodes it.
    `fake://missing` cannot be fetched, `fake://corrupt` cannot be decoded.
    """

    def __init__(self, settings: Settings) -> None:
        self._here: set[str] = set()
        self._directory = Path(settings.directory)
        self.uploads = UploadFiles(
            self._directory / "uploads", upload_limits(settings), settings.upload_bytes, 2 * settings.upload_s
        )

    async def describe(self, source: Source, choice: FrameChoice, frames: int, digest: str | None) -> Described:
        parts = urlsplit(source.url)
        kind = source.kind or "video"
        if parts.hostname == "fatal":
            self._die_once("describe")
        await asyncio.sleep(float(parse_qs(parts.query).get("fetch", ["0"])[0]))
        if parts.hostname == "missing":
            raise SourceUnavailable("The source answered with status 404.", "url")
        if choice.start_s and choice.start_s > 100:
            raise InvalidInput("start_s lies behind the end of the video.", "start_s")
        options = parse_qs(parts.query)
        total = 1 if kind == "image" else int(options.get("frames", ["16"])[0])
        wanted = min(frames, choice.max_frames or frames, total)
        if not source.is_upload:
            digest = sha256(parts.netloc.encode()).hexdigest()
        elif digest is None or not self.uploads.copies.path(digest).exists():
            raise SourceUnavailable("Upload it again.", "url")
        stats: tuple[StageStats, ...] = ()
        if digest not in self._here:
            now = time.monotonic()
            stats = (StageStats(stage="fetch", started_s=now - 0.25, ended_s=now),)
            self._here.add(digest)
        medium = Medium(
            kind=kind,
            url=source.address,
            digest=digest,
            duration_s=0.0 if kind == "image" else total / 8,
            width=8,
            height=8,
            frames=total,
            indices=tuple(int(choice.start_s or 0) + i * total // wanted for i in range(wanted)),
            seconds=0.0 if kind == "image" else total / 8,
            decoder="fake 1",
        )
        return Described(medium=medium, stats=stats)

    async def decode(self, medium: Medium, chunk_frames: int) -> AsyncGenerator[DecodedChunk]:
        if medium.is_upload and not self.uploads.copies.path(medium.digest).exists():
            raise SourceUnavailable("Upload it again.", "url")
        delay = float(parse_qs(urlsplit(medium.url).query).get("delay", ["0"])[0])
        for start in range(0, len(medium.indices), chunk_frames):
            indices = np.array(medium.indices[start : start + chunk_frames])
            if "fatal-frames" in medium.url and start:
                self._die_once("decode")
            if "corrupt" in medium.url and start:
                raise UnsupportedVideo("The video breaks off after 2 of 8 frames.")
            started = time.monotonic()
            await asyncio.sleep(delay)
            shades = indices.astype(np.uint8) if medium.kind == "video" else np.uint8([int(medium.digest[:2], 16)])
            frames = np.zeros((len(indices), 8, 8, 3), np.uint8) + shades[:, None, None, None]
            yield DecodedChunk(
                frames=FrameBatch(
                    frames=frames,
                    pts_seconds=indices / 8.0,
                    indices=indices.astype(np.int64),
                    digest=medium.digest,
                    kind=medium.kind,
                    planned=len(medium.indices),
                    offset=start,
                ),
                backend="fake",
                stats=StageStats(stage="decode", started_s=started, ended_s=time.monotonic()),
            )

    async def forget(self, digest: str) -> None:
        self._here.discard(digest)

    def _die_once(self, where: str) -> None:
        if not (mark := self._directory / f"died-in-{where}").exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    async def missing_walls(self) -> tuple[str, ...]:
        return ("landlock", "namespaces")


def _ids(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def _visual(state: PrefixState) -> torch.Tensor:
    return state.view[state.view >= 0]


def _state(ids: torch.Tensor, visual: torch.Tensor, frames: int) -> PrefixState:
    """A state of these ids; those from 1000 on are visual, in frame order."""
    count = len(ids)
    view = torch.full((count,), -1)
    view[ids >= 1000] = visual
    kv = ids.float()[None, :, None].clone()
    return PrefixState(
        ids=ids,
        positions=torch.arange(count)[None],
        view=view,
        patch=torch.where(view >= 0, 0, -1),
        keys=(kv,),
        values=(kv,),
        hidden=ids.float()[:, None].clone(),
        planes=(),
        register_sum=torch.zeros(1, 1),
        register_count=0,
        view_medium=torch.zeros(frames, dtype=torch.int64),
        view_pts=torch.arange(frames, dtype=torch.float64),
        view_index=torch.arange(frames),
        view_grid=torch.tensor([[2, 2]]).expand(frames, 2),
        next_position=count,
        encoded=frames * PATCHES,
        turns=int((ids == END).sum()),
    )


def _evidence(frames: int) -> Evidence:
    stage1 = np.array([[True, True], [False, False]])
    stage2 = np.array([[True, False], [False, False]])
    scores = np.array([[0.5, 0.1], [np.nan, np.nan]], np.float32)
    return Evidence(
        threshold=0.25,
        frames=tuple(
            FrameEvidence(
                medium=0, index=i, pts_s=i / 8, of=PATCHES, grid=(2, 2), stage1=stage1, stage2=stage2, scores=scores
            )
            for i in range(frames)
        ),
    )
