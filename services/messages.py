"""What crosses between the parts of the service: frozen plain data, so that all of it pickles."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

from occam.config import SamplingParams
from occam.kv.key import KVKey
from occam.stats import StageStats, Usage
from occam.types import Answer, FrameBatch, MediaKind, Turn

Tier = Literal["memory", "node", "redis", "embeddings", "none"]


@dataclass(frozen=True, kw_only=True)
class FrameChoice:
    """Which frames of a video a user asks for; what is left open is the model's to say.

    fps: so many a second instead of the model's fixed number; max_frames: at most so many; start_s, end_s: in seconds
    """

    fps: float | None = None
    max_frames: int | None = None
    start_s: float | None = None
    end_s: float | None = None


Option = bool | int | float | str | tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PruningChoice:
    """Which pruning a user asks for; what is left open is the model's calibrated default.

    options: the strategy's own, by name
    """

    strategy: str | None = None
    options: Mapping[str, Option] = field(default_factory=dict)

    def number(self, name: str) -> float | None:
        """An option that is a number; None where it is left open."""
        value = self.options.get(name)
        return value if isinstance(value, int | float) else None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A video or an image as a user names it; `kind` is None where its bytes shall say."""

    url: str
    kind: MediaKind | None

    @property
    def is_remote(self) -> bool:
        """Whether its bytes come from a server, as fast as that pleases."""
        return self.url[:8].lower().startswith(("http://", "https://"))

    @property
    def address(self) -> str:
        """The URL as it is remembered: of one that holds the image itself, only a digest."""
        inside = self.url[:5].lower() == "data:"
        return f"data:{sha256(self.url.encode()).hexdigest()}" if inside else self.url


@dataclass(frozen=True, kw_only=True)
class Medium:
    """A video or an image as the decoder described it: its bytes by digest, its facts, and the frames that are wanted.

    url: its source's address; frames: frames in the source; indices: those that are wanted
    seconds: length of the range they were taken from; decoder: backend and version that decodes them
    """

    kind: MediaKind
    url: str
    digest: str
    duration_s: float
    frames: int
    seconds: float
    indices: tuple[int, ...]
    decoder: str


@dataclass(frozen=True, kw_only=True)
class Described:
    """A described medium, and what finding that out took (fetch and probe; nothing where the file was there)."""

    medium: Medium
    stats: tuple[StageStats, ...]


@dataclass(frozen=True, kw_only=True)
class DecodedChunk:
    """Frames of one chunk and the decoder they came from; `stats` is on the node's monotonic clock."""

    frames: FrameBatch
    backend: str
    stats: StageStats


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One question for a worker.

    media: in the order of the prompt, all in front of the first turn
    turns: the session so far as ids; history: (question, answer) texts before it, where there is no session
    evidence: whether the answer shall carry the kept patches of every frame
    """

    media: tuple[Medium, ...]
    pruning: PruningChoice
    system: str
    turns: tuple[Turn, ...]
    history: tuple[tuple[str, str], ...]
    question: str
    sampling: SamplingParams
    evidence: bool


@dataclass(frozen=True, kw_only=True)
class Text:
    """The next piece of the answer."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The end of an answer.

    turns: the whole conversation as ids, this turn included; pruning: as resolved; key: of the media's cached state
    cache: the tier that the media's state, or all of their embeddings, came from; approximate: whether the state went
    over a lossy wire
    stats: what this request made the node do
    """

    answer: Answer
    turns: tuple[Turn, ...]
    pruning: PruningChoice
    key: KVKey
    cache: Tier
    approximate: bool
    usage: Usage
    stats: tuple[StageStats, ...]


Event = Text | Finished


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What a worker serves; `pruning` is what questions get that choose none."""

    name: str
    family: str
    digest: str
    media: tuple[MediaKind, ...]
    frames: int
    max_positions: int
    calibrated: bool
    pruning: PruningChoice


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question as either dialect puts it. Its media are named by a video's id, by address, or by the session.

    streamed: whether pieces of the answer go out as they come, so that the answer cannot be begun anew
    """

    text: str
    model: str | None = None
    video_id: str | None = None
    sources: tuple[Source, ...] = ()
    session_id: str | None = None
    frames: FrameChoice = field(default_factory=FrameChoice)
    pruning: PruningChoice = field(default_factory=PruningChoice)
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()
    sampling: SamplingParams = field(default_factory=SamplingParams)
    evidence: bool = False
    streamed: bool = False


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A finished answer; seconds are counted from when the request came in, `stats` is all it made the node do."""

    finished: Finished
    session_id: str
    model: str
    stats: tuple[StageStats, ...]
    ttft_s: float
    total_s: float
