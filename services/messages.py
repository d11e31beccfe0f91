"""What crosses between the parts of the service: frozen plain data, so that all of it pickles."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

from occam.config import Quantization, SamplingParams, Wire
from occam.kv.key import KVKey
from occam.stats import StageStats, Usage
from occam.types import Answer, FrameBatch, Framing, MediaKind, MediumShape, Turn
from services.origin import Origin

UPLOAD = "upload:"
"""What the address of an uploaded video begins with; its digest follows."""

Tier = Literal["memory", "node", "redis", "embeddings", "none"]
ProgressStage = Literal["fetch", "decode", "encode", "prefill", "generate"]


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
    def is_upload(self) -> bool:
        """Whether its bytes came with a request, as a form, and are known by their digest."""
        return self.url.startswith(UPLOAD)

    @property
    def address(self) -> str:
        """The URL as it is remembered: of one that holds the image itself, only a digest."""
        inside = self.url[:5].lower() == "data:"
        return f"data:{sha256(self.url.encode()).hexdigest()}" if inside else self.url


@dataclass(frozen=True, kw_only=True)
class Medium:
    """A video or an image as the decoder described it: its bytes by digest, its facts, and the frames that are wanted.

    url: its source's address; frames: frames in the source; indices: those that are wanted
    width, height: of an upright frame, in pixels
    seconds: length of the range they were taken from; walked_s: seconds that decoding them walks through
    decoder: backend and version that decodes them
    """

    kind: MediaKind
    url: str
    digest: str
    duration_s: float
    width: int
    height: int
    frames: int
    seconds: float
    walked_s: float = 0.0  # in records of versions that did not know it
    indices: tuple[int, ...]
    decoder: str

    @property
    def charged_s(self) -> float:
        """Seconds of video that decoding it costs of a quota: those that were asked for, or more if it takes more."""
        return max(self.seconds, self.walked_s)

    @property
    def is_upload(self) -> bool:
        """See `Source.is_upload`."""
        return self.url.startswith(UPLOAD)

    @property
    def shape(self) -> MediumShape:
        """Its size, and about when its frames are: as if all were shown for the same time."""
        frame_s = self.duration_s / self.frames
        times = tuple(index * frame_s for index in self.indices)
        return MediumShape(kind=self.kind, height=self.height, width=self.width, pts_seconds=times)


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
class UploadPiece:
    """The bytes of an upload from `offset` on; they are sent one piece after the other."""

    upload: str
    offset: int
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One question for a worker.

    media: in the order of the prompt, all in front of the first turn
    turns: the session so far as ids; history: (question, answer) texts before it, where there is no session
    evidence: whether the answer shall carry the kept patches of every frame
    salt: of those who share the media's cached states; may_decode: else a state that is in no cache is NotCached
    progress: whether it shall be told how far the media's state is while it is built
    origin: the request that it comes from
    """

    media: tuple[Medium, ...]
    pruning: PruningChoice
    system: str
    turns: tuple[Turn, ...]
    history: tuple[tuple[str, str], ...]
    question: str
    sampling: SamplingParams
    evidence: bool
    salt: str
    may_decode: bool = True
    progress: bool = False
    origin: Origin = field(default_factory=Origin)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a stage of the work on an answer is; nothing is told of a state that a cache has.

    done, total: frames of all media; of `generate`, which is told once as it begins, tokens at most
    seconds: what the stage has taken so far, in the sense of the answer's timings
    """

    stage: ProgressStage
    done: int
    total: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Warmed:
    """The state of a posted video, by key, and the tier that it came from."""

    key: KVKey
    cache: Tier


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


Event = Progress | Text | Finished


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What questions about the same media would take.

    encoded: exact; stage1, stage2: by averages, None where there are none; state_tokens: of the state behind the media
    turns: tokens of each question's turn; past: of turns before them; cached: whether a tier has that state
    decode_s, encode_s: to make it, both_s: as they overlap; token_s: of the lower layers over one token
    measured: whether all seconds are by what was measured
    """

    encoded: int
    stage1: int | None
    stage2: int | None
    state_tokens: int
    turns: tuple[int, ...]
    past: int
    cached: bool
    kv_bytes: int
    decode_s: float
    encode_s: float
    both_s: float
    token_s: float
    measured: bool


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What a worker serves; `pruning` is what questions get that choose none, `framing` what patches cover."""

    name: str
    family: str
    digest: str
    media: tuple[MediaKind, ...]
    frames: int
    max_positions: int
    calibrated: bool
    quantization: Quantization
    wire: Wire
    pruning: PruningChoice
    framing: Framing


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question as either dialect puts it. Its media are named by a video's id, by address, or by the session.

    tenant: who asks; digest: of the one source's bytes, where they are known; others are refused then
    background: whether nobody waits for it, so that questions that somebody waits for go first
    streamed: whether pieces of the answer go out as they come, so that the answer cannot be begun anew
    deadline_s: in which it must be answered; None leaves that to the service
    """

    text: str
    tenant: str
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
    digest: str | None = None
    background: bool = False
    streamed: bool = False
    deadline_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A finished answer; seconds are counted from when the request came in, `stats` is all it made the node do.

    drawable: whether its evidence was kept, so that it can be drawn over the frames
    """

    finished: Finished
    session_id: str
    model: str
    stats: tuple[StageStats, ...]
    ttft_s: float
    total_s: float
    drawable: bool = False
