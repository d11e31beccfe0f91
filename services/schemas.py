"""The HTTP models of requests, videos, models and errors. Field names are the contract with users."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, WithJsonSchema

from occam.config import SEEDS, STRATEGIES, Quantization, SamplingParams, Wire
from occam.types import MediaKind
from pipelines.ingest.sample import MAX_FPS
from services.messages import FrameChoice, Option, PruningChoice, ServedModel
from services.records import VideoRecord

MAX_TEXT = 32_768
"""Characters of all texts of one request together; what they cost grows with the square of their length."""
MAX_NAME = 512
"""Characters of an id or a model's name: more than any has, and too few to be a burden."""

MAX_QUESTION = 8192
"""Characters of one question."""


def one_of(*names: str) -> dict[str, Any]:
    """What the OpenAPI document says of fields of which exactly one is given."""
    return {"oneOf": [{"required": [name], "properties": {name: {"type": "string"}}} for name in names]}


def _unicode(text: str) -> str:
    """JSON can escape half a character, which no encoder takes; a length limit makes pydantic find it by itself."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has half a character at position {error.start}") from None
    return text


Unicode = Annotated[str, AfterValidator(_unicode)]


def _known(name: str) -> str:
    if name not in STRATEGIES:
        raise ValueError(f"there is no strategy {name!r}; there are {', '.join(STRATEGIES)}")
    return name


Strategy = Annotated[str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(STRATEGIES)})]
"""A strategy's name."""


GivenOption = bool | int | float | str | Annotated[tuple[int, ...], Strict(False)]
"""A strategy's option as JSON has it, where a tuple is a list."""


class Request(BaseModel):
    """A request body of our own: unknown fields are errors, since a misspelt option would be ignored in silence."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Options(Request):
    """How a question is put to the video; what is left out is the model's default."""

    strategy: Strategy | None = Field(default=None, description="Pruning strategy.")
    lambda1: float | None = Field(default=None, ge=0, description="Stage I threshold factor; 0 keeps every token.")
    lambda2: float | None = Field(default=None, ge=0, description="Stage II threshold factor; 0 keeps every token.")
    budget: float | None = Field(
        default=None, gt=0, description="Patches that a strategy of fixed count keeps: up to 1 a share, above a number."
    )
    options: dict[str, GivenOption] = Field(
        default_factory=dict, max_length=16, description="Further settings of the strategy, by their names."
    )
    start_s: float | None = Field(default=None, ge=0, description="Begin of the range that is looked at, in seconds.")
    end_s: float | None = Field(default=None, gt=0, description="End of the range that is looked at, in seconds.")
    fps: float | None = Field(
        default=None, gt=0, le=MAX_FPS, description="Frames a second, instead of the model's fixed number."
    )
    max_frames: int | None = Field(default=None, ge=1, le=1024, description="At most so many frames.")
    session_id: str | None = Field(
        default=None, max_length=MAX_NAME, description="Session of an earlier answer, to ask a follow-up."
    )
    evidence: bool = Field(default=False, description="Whether the answer shall say which patches it rests on.")
    deadline_s: float | None = Field(
        default=None, gt=0, description="Seconds to the end of the answer, no more than the service's own limit."
    )

    @property
    def frame_choice(self) -> FrameChoice:
        """The frames that are asked for."""
        return FrameChoice(fps=self.fps, max_frames=self.max_frames, start_s=self.start_s, end_s=self.end_s)

    @property
    def pruning_choice(self) -> PruningChoice:
        """The pruning that is asked for."""
        named = {"lambda1": self.lambda1, "lambda2": self.lambda2, "budget": self.budget}
        given: dict[str, Option] = {name: value for name, value in named.items() if value is not None}
        return PruningChoice(strategy=self.strategy, options=self.options | given)


class Asking(Options):
    """How a question is put to a model."""

    model: str | None = Field(
        default=None,
        max_length=MAX_NAME,
        description="One of `GET /v1/models`; the first one that takes videos if left out.",
    )
    max_tokens: int = Field(default=64, ge=1, le=4096)
    temperature: float = Field(default=0.0, ge=0, le=2)
    seed: int = Field(default=0, ge=SEEDS[0], le=SEEDS[1])

    @property
    def sampling(self) -> SamplingParams:
        """How the answer is to be decoded."""
        return SamplingParams(max_new_tokens=self.max_tokens, temperature=self.temperature, seed=self.seed)


class QueryRequest(Asking):
    """A question about a posted video."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"question": "What color is the circle?"}]},
    )

    question: str = Field(min_length=1, max_length=MAX_QUESTION)
    stream: bool = Field(
        default=False, description="Server-sent events: `progress`, `text` pieces, then the whole `answer`."
    )


class VideoRequest(Request):
    """A video to be fetched."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"url": "https://example.org/clip.mp4"}]})

    url: str = Field(min_length=1, max_length=8192)


class VideoBody(BaseModel):
    """A posted video. Questions may be asked while it is still `processing` (its frames are being encoded)."""

    id: str = Field(examples=["video-9hT2xQ7LrW0aBcDe"])
    status: Literal["processing", "ready", "failed"]
    duration_s: float = Field(examples=[4.0])
    frames: int = Field(description="Frames in the file.", examples=[64])
    digest: str = Field(description="SHA-256 of the file.")
    error: "ErrorDetail | None" = Field(default=None, description="Why the frames cannot be had, where `failed`.")

    @classmethod
    def of(cls, record: VideoRecord) -> "VideoBody":
        """The body that shows a record."""
        video = record.video
        error = None
        if record.status == "failed":
            error = ErrorDetail(type="invalid_request_error", code=record.error_code, message=record.error)
        return cls(
            id=record.id,
            status=record.status,
            duration_s=video.duration_s,
            frames=video.frames,
            digest=video.digest,
            error=error,
        )


EXAMPLE_MODELS: dict[str, Any] = {
    "object": "list",
    "data": [
        {
            "id": "tiny-video-llava",
            "object": "model",
            "created": 0,
            "owned_by": "occam",
            "family": "video_llava",
            "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "media": ["video", "image"],
            "frames": 8,
            "max_positions": 4096,
            "calibrated": True,
            "quantization": "none",
            "kv_wire": "exact",
            "defaults": {"strategy": "occam", "lambda1": 1.0, "lambda2": 1.0},
        }
    ],
}


class ModelBody(BaseModel):
    """A served model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "occam"
    family: str
    digest: str = Field(description="SHA-256 of the weights.")
    media: list[MediaKind] = Field(description="What it takes: `video_url` parts, `image_url` parts, or both.")
    frames: int = Field(description="Frames sampled by default of a video.")
    max_positions: int
    calibrated: bool = Field(description="Whether strategy `occam` can run.")
    quantization: Quantization = Field(description="`int8`: linear maps in 8 bits (`OCCAM_QUANTIZATION`).")
    kv_wire: Wire = Field(description="`int8`: states that came from the shared tier are approximate.")
    defaults: dict[str, str | float | None] = Field(description="Pruning of questions that choose none.")

    @classmethod
    def of(cls, name: str, served: ServedModel) -> "ModelBody":
        """The body that shows a model."""
        pruning = served.pruning
        return cls(
            id=name,
            family=served.family,
            digest=served.digest,
            media=list(served.media),
            frames=served.frames,
            max_positions=served.max_positions,
            calibrated=served.calibrated,
            quantization=served.quantization,
            kv_wire=served.wire,
            defaults={
                "strategy": pruning.strategy,
                "lambda1": pruning.number("lambda1"),
                "lambda2": pruning.number("lambda2"),
            },
        )


class ModelList(BaseModel):
    """Every served model, the default one first."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_MODELS]})

    object: Literal["list"] = "list"
    data: list[ModelBody]


class Alive(BaseModel):
    """A probe that succeeds."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """What is live: models, the cache tiers, how durable sessions and videos are, and what guards decoding."""

    status: Literal["ready"] = "ready"
    models: list[str]
    kv: str = Field(examples=["memory, private redis"])
    state: str = Field(examples=["private redis, lost when the service stops"])
    sandbox: str = Field(description="Walls round decoding that the host lacks.", examples=["complete"])
    quantization: Quantization = Field(description="`int8`: models hold and multiply linear maps in 8 bits.")
    kv_wire: Wire = Field(description="How states reach the shared tier: bit for bit, or smaller and approximate.")


class ErrorDetail(BaseModel):
    """What went wrong: `code` for programs, `message` for people, `param` the field at fault."""

    type: str = Field(examples=["invalid_request_error"])
    code: str = Field(examples=["forbidden_source"])
    message: str = Field(examples=["The host example.org is not among the hosts that may be fetched."])
    param: str | None = None
    request_id: str | None = None


class ErrorBody(BaseModel):
    """The one shape of every error."""

    error: ErrorDetail
