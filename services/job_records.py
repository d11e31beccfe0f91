"""What is kept of a job, as it comes out of the store again: not to be trusted."""

import json
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from occam.errors import CorruptState
from services.answer_schemas import AnswerBody
from services.job_schemas import JobRequest, ResultLine
from services.schemas import ErrorDetail

ERROR_BYTES = 1024
"""Room that is kept for a question's error, so that a job without room for answers still says so of each."""
_MESSAGE = 400


class JobRecord(BaseModel):
    """A job: who asks for what since when (seconds since the epoch)."""

    model_config = ConfigDict(frozen=True)

    id: str
    tenant: str
    created: float
    request: JobRequest

    @property
    def least_bytes(self) -> int:
        """Bytes of the request, and of its results if every line were an error."""
        questions, videos = self.request.questions, self.request.videos
        texts = sum(len(json.dumps(each if isinstance(each, str) else each.question)) for each in questions)
        names = sum(len(json.dumps(video.id or video.url)) for video in videos)
        lines = len(videos) * texts + len(questions) * names + self.request.total * ERROR_BYTES
        return len(self.model_dump_json(exclude_unset=True)) + lines


def line_of(record: JobRecord, index: int, question: str, outcome: AnswerBody | ErrorDetail) -> tuple[bytes, int]:
    """The line of a question, and the bytes of it that `least_bytes` does not count (below 0: less than that)."""
    video = record.request.videos[index // len(record.request.questions)]
    answer = outcome if isinstance(outcome, AnswerBody) else None
    error = outcome if isinstance(outcome, ErrorDetail) else None
    if error is not None:
        error = error.model_copy(update={"message": error.message[:_MESSAGE]})
    line = ResultLine(video=video, question=question, index=index, answer=answer, error=error).to_json()
    return line, len(line) - len(json.dumps(question)) - len(json.dumps(video.id or video.url)) - ERROR_BYTES


class PastLine(BaseModel):
    """What a conversation that is taken up again needs of a line."""

    class Text(BaseModel):
        """The answer's text."""

        answer: str

    index: int
    question: str
    answer: Text | None = None

    @classmethod
    def read(cls, line: bytes) -> Self:
        """A line out of the store; CorruptState for one that is none."""
        try:
            return cls.model_validate_json(line)
        except ValidationError as error:
            raise CorruptState("A result of the job is damaged.") from error


def sound(line: bytes) -> bytes:
    """A line as it goes out: one that is no JSON object, or more lines than one, is an error by itself."""
    try:
        if isinstance(json.loads(line), dict) and b"\n" not in line:
            return line
    except ValueError:
        pass
    detail = ErrorDetail(type="server_error", code=CorruptState.code, message="A result of the job is damaged.")
    return json.dumps({"error": detail.model_dump()}).encode()
