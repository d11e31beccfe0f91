"""The HTTP model of a session."""

from pydantic import BaseModel, ConfigDict, Field

from occam.types import MediaKind
from services.messages import Medium
from services.records import Session


class MediumBody(BaseModel):
    """A video or an image of a session."""

    kind: MediaKind
    url: str = Field(description="As it was given; of one that came inside the request, or by upload, a digest.")
    digest: str = Field(description="SHA-256 of the file.")
    duration_s: float
    frames: int = Field(description="Frames in the file.")
    frames_taken: int = Field(description="Frames of it that the answers look at.")

    @classmethod
    def of(cls, medium: Medium) -> "MediumBody":
        """The body that shows a medium."""
        return cls(
            kind=medium.kind,
            url=medium.url,
            digest=medium.digest,
            duration_s=medium.duration_s,
            frames=medium.frames,
            frames_taken=len(medium.indices),
        )


class TurnBody(BaseModel):
    """A question and its answer."""

    question: str
    answer: str


class SessionBody(BaseModel):
    """A conversation over its media, as far as it has come."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "session-3KfLq0mZ5cV1bY8d",
                    "model": "tiny-video-llava",
                    "video_id": "video-9hT2xQ7LrW0aBcDe",
                    "media": [
                        {
                            "kind": "video",
                            "url": "https://example.org/clip.mp4",
                            "digest": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                            "duration_s": 4.0,
                            "frames": 32,
                            "frames_taken": 8,
                        }
                    ],
                    "turns": [{"question": "What color is the circle?", "answer": "red"}],
                    "expires_at": 1790000000,
                }
            ]
        }
    )

    id: str
    model: str
    video_id: str | None = Field(description="The posted video that it is about, if it is about one.")
    media: list[MediumBody]
    turns: list[TurnBody]
    expires_at: int = Field(description="Unix time at which it is forgotten, unless it is followed up before.")

    @classmethod
    def of(cls, session: Session, expires_at: float) -> "SessionBody":
        """The body that shows a session."""
        return cls(
            id=session.id,
            model=session.model,
            video_id=session.video_id,
            media=[MediumBody.of(medium) for medium in session.media],
            turns=[TurnBody(question=question, answer=answer) for question, answer in session.texts],
            expires_at=int(expires_at),
        )
