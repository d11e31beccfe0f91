"""What a question must be, by itself and in its session."""

from typing import Any

from occam.errors import InvalidInput
from services.errors import NotFound
from services.messages import FrameChoice, Question
from services.records import Session


def check_sources(question: Question, max_images: int) -> None:
    """InvalidInput where the media are none, or more than one conversation has."""
    kinds = [source.kind for source in question.sources]
    if not kinds:
        raise InvalidInput(
            "The conversation has no media. Give a video_url or image_url part, or a session_id.", "messages"
        )
    if kinds.count("video") > 1:
        raise InvalidInput(f"A conversation has one video, the messages have {kinds.count('video')}.", "messages")
    if kinds.count("image") > max_images:
        raise InvalidInput(
            f"The messages have {kinds.count('image')} images, more than the limit of {max_images}.", "messages"
        )
    if question.frames != FrameChoice() and "video" not in kinds:
        raise InvalidInput("start_s, end_s, fps and max_frames choose frames of a video, and there is none.", "occam")


def check_same(question: Question, session: Session) -> None:
    """A session stays with what it was begun with: what a follow-up says of it again must agree."""
    if question.video_id not in (None, session.video_id):
        raise NotFound("There is no session with this id for this video.", "session_id")
    asked: dict[str, tuple[Any, Any]] = {
        "model": (question.model, session.model),
        "media": (
            tuple(source.address for source in question.sources) or None,
            tuple(medium.url for medium in session.media),
        ),
        "system": (question.system or None, session.system),
        "strategy": (question.pruning.strategy, session.pruning.strategy),
    }
    kept = session.pruning.options
    asked |= {name: (value, kept.get(name)) for name, value in question.pruning.options.items()}
    for name, (new, old) in asked.items():
        if new not in (None, old):
            raise InvalidInput(
                f"The session keeps the {name} that it was begun with; begin a new one to change it.", name
            )
    if question.frames != FrameChoice():
        raise InvalidInput("The frames of a session are chosen by its first question.", "start_s")
    if question.history and question.history != session.texts:
        raise InvalidInput(
            f"The messages do not tell the session's {len(session.texts)} finished turns as they were. Leave them out "
            "to go on with the session, or leave out the session_id to begin anew from them.",
            "messages",
        )
