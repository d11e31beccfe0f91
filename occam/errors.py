"""Every exception a caller can meet.

    OccamError
    ├── InvalidInput            the caller's request cannot be served as it stands
    │   ├── UnsupportedVideo    the bytes are no video or image that can be decoded; says what is wrong with them
    │   ├── VideoTooLarge       a limit on bytes, seconds, pixels or frames; names the limit and the value
    │   ├── ForbiddenSource     the address is not one that may be fetched
    │   ├── SourceUnavailable   the address may be fetched, and did not give the bytes
    │   ├── QuestionTooLong     the unpruned length passes the model's positions
    │   ├── NotCalibrated       the strategy needs an artefact that this model does not have
    │   └── UnknownModel        no model of that name is served or loadable
    ├── DecodeTimeout           the decoder did not finish by its deadline
    ├── Overloaded              admission refused; try again after `retry_after_s`
    ├── StoreUnavailable        a cache tier did not answer; costs time only
    ├── CorruptState            a cached state failed its checks; costs time only
    ├── FetchDeclined           a cached state was not fetched, for computing it takes less time
    │   └── FetchGivenUp        the fetch had begun, and took too long
    └── EngineFailure           the engine failed on a request that was valid

Exceptions cross process borders, so all of their state is in `args` and each one pickles.
"""


class OccamError(Exception):
    """Base of every error of this project; `code` is the stable machine-readable name that users see."""

    code = "internal"

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)

    @property
    def message(self) -> str:
        """A plain sentence for the user; names the limit and the value, and no internal address."""
        return str(self.args[0])

    @property
    def param(self) -> str | None:
        """The request field at fault, where there is one."""
        return None if self.args[1] is None else str(self.args[1])

    def __str__(self) -> str:
        return self.message


class InvalidInput(OccamError, ValueError):
    """The caller's request cannot be served as it stands."""

    code = "invalid_input"


class UnsupportedVideo(InvalidInput):
    """The bytes are not a video, or not a still image, that can be decoded."""

    code = "unsupported_video"


class VideoTooLarge(InvalidInput):
    """The video or image passes a limit on bytes, seconds, pixels or frames."""

    code = "video_too_large"


class ForbiddenSource(InvalidInput):
    """The address is not one that may be fetched."""

    code = "forbidden_source"


class SourceUnavailable(InvalidInput):
    """The address may be fetched, and did not give the bytes."""

    code = "source_unavailable"


class QuestionTooLong(InvalidInput):
    """The unpruned length of the conversation passes the model's positions."""

    code = "question_too_long"


class NotCalibrated(InvalidInput):
    """The strategy needs a calibration artefact that this model does not have."""

    code = "not_calibrated"


class UnknownModel(InvalidInput):
    """No model of that name is served or loadable."""

    code = "unknown_model"


class DecodeTimeout(OccamError):
    """The decoder did not finish by its deadline."""

    code = "decode_timeout"


class Overloaded(OccamError):
    """Admission refused the request; `retry_after_s` says when to come back."""

    code = "overloaded"

    def __init__(self, message: str, param: str | None = None, retry_after_s: float = 1.0) -> None:
        super().__init__(message, param)
        self.args = (message, param, retry_after_s)

    @property
    def retry_after_s(self) -> float:
        """Seconds after which the caller may try again."""
        return float(self.args[2])


class StoreUnavailable(OccamError):
    """A cache tier did not answer; callers recompute."""

    code = "store_unavailable"


class CorruptState(OccamError):
    """A cached state failed its checks; callers recompute."""

    code = "corrupt_state"


class FetchDeclined(OccamError):
    """A cached state is not fetched, because computing it takes less time; callers recompute."""

    code = "fetch_declined"


class FetchGivenUp(FetchDeclined):
    """A fetch that had begun took so long that computing the state takes less time."""

    code = "fetch_given_up"


class EngineFailure(OccamError):
    """The engine failed on a request that was valid."""

    code = "engine_failure"
