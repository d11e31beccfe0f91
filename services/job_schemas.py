"""The HTTP models of jobs: many questions about many videos, answered when there is time."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from services.answer_schemas import AnswerBody
from services.errors import MalformedRequest
from services.schemas import MAX_NAME, MAX_QUESTION, Asking, ErrorDetail, Request, one_of

JobStatus = Literal["queued", "running", "done", "failed"]

MAX_LISTED = 10_000
"""Videos, and questions, that one request can name; how many questions they make is a setting."""

EXAMPLE_JOB: dict[str, Any] = {
    "videos": [{"id": "video-9hT2xQ7LrW0aBcDe"}, {"url": "https://example.org/clip.mp4"}],
    "questions": ["What color is the circle?", {"question": "Is it raining?", "max_tokens": 4}],
}


class VideoName(Request):
    """A video, by the id of a posted one or by its address."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=one_of("id", "url"))

    id: str | None = Field(default=None, min_length=1, max_length=MAX_NAME)
    url: str | None = Field(default=None, min_length=1, max_length=8192)

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.id is None) == (self.url is None):
            raise ValueError("A video is named by its id or by its url, and by one of them")
        return self


class JobQuestion(Asking):
    """A question with its options, as in a query; they go before the job's own."""

    question: str = Field(min_length=1, max_length=MAX_QUESTION)
    session_id: None = Field(default=None, description="A job begins sessions of its own.")


class JobRequest(Asking):
    """Questions to ask of every video; the options stand for all of them."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [EXAMPLE_JOB]})

    videos: list[VideoName] = Field(min_length=1, max_length=MAX_LISTED)
    questions: list[Annotated[str, Field(min_length=1, max_length=MAX_QUESTION)] | JobQuestion] = Field(
        min_length=1, max_length=MAX_LISTED
    )
    session_id: None = Field(default=None, description="A job begins sessions of its own.")
    follow_ups: bool = Field(
        default=False,
        description="Whether the questions of a video are one conversation, in order; else each is on its own.",
    )

    @property
    def total(self) -> int:
        """Questions in all."""
        return len(self.videos) * len(self.questions)

    def queries(self) -> list[JobQuestion]:
        """The questions with all of their options; MalformedRequest for a text that is none."""
        shared = self.model_dump(exclude_unset=True, exclude={"videos", "questions", "follow_ups"})
        try:
            return [JobQuestion.model_validate(shared | _given(question)) for question in self.questions]
        except ValidationError as error:
            finding = error.errors()[0]
            place = ".".join(str(part) for part in finding["loc"])
            raise MalformedRequest(f"questions: {place}: {finding['msg']}.", "questions") from error


def _given(question: str | JobQuestion) -> dict[str, object]:
    return {"question": question} if isinstance(question, str) else question.model_dump(exclude_unset=True)


class ResultLine(BaseModel):
    """One line of a job's results: an answer, or the error that the question would have got over HTTP."""

    video: VideoName
    question: str
    index: int = Field(description="Number of the question in the job: number of the video x questions + its own.")
    answer: AnswerBody | None = None
    error: ErrorDetail | None = None

    def to_json(self) -> bytes:
        """The line without its end; in ASCII, since readers differ in what else ends a line."""
        left_out: dict[str, Any] = {
            "video": {"url" if self.video.url is None else "id"},
            "error" if self.error is None else "answer": True,
        }
        return self.model_dump_json(exclude=left_out, ensure_ascii=True).encode()


EXAMPLE_STATUS: dict[str, Any] = {
    "id": "job-Jm2qXr9sTfY0aBcDe",
    "status": "running",
    "total": 4,
    "done": 3,
    "failed": 0,
    "created": 1764000000,
    "error": None,
}


class JobBody(BaseModel):
    """A job. It is `done` when every question has its line in the results, `failed` if what was kept is damaged."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_STATUS]})

    id: str
    status: JobStatus
    total: int = Field(description="Questions in all: videos x questions.")
    done: int = Field(description="Questions that have their line in the results.")
    failed: int = Field(description="Those of them whose line is an error.")
    created: int = Field(description="Seconds since the epoch.")
    error: ErrorDetail | None = Field(default=None, description="Why the job `failed`.")


class JobList(BaseModel):
    """A page of the caller's jobs, the newest first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"object": "list", "data": [EXAMPLE_STATUS], "has_more": False}]}
    )

    object: Literal["list"] = "list"
    data: list[JobBody]
    has_more: bool = Field(description="Whether there are older ones: ask with `after`, the id of the last one here.")
