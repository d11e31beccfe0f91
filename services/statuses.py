"""Errors as users see them, HTTP or not: one table from exceptions to statuses, one shape for all."""

from occam import errors
from services import errors as service
from services.schemas import ErrorBody, ErrorDetail

# The first class that fits decides, so that a subclass stands before its base.
STATUSES: tuple[tuple[type[errors.OccamError], int], ...] = (
    (service.InvalidKey, 401),
    (service.CrossSite, 403),
    (service.MalformedRequest, 400),
    (service.NotFound, 404),
    (errors.UnknownModel, 404),
    (service.SessionBusy, 409),
    (errors.VideoTooLarge, 413),
    (errors.UnsupportedVideo, 415),
    (service.WrongContentType, 415),
    (errors.InvalidInput, 422),
    (service.QuotaExceeded, 429),
    (service.TooManyJobs, 429),
    (errors.Overloaded, 503),
    (errors.StoreUnavailable, 503),
    (service.ReplicaLost, 503),
    (errors.DecodeTimeout, 504),
    (service.DeadlineExceeded, 504),
    (errors.OccamError, 500),
)
NOT_ADMITTED = (401, 403, 429, 503)
"""Statuses of requests that were not let in, of which there is a count."""

_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
    500: "server_error",
}


def status_of(error: errors.OccamError) -> int:
    """The HTTP status of an error."""
    return next(status for kind, status in STATUSES if isinstance(error, kind))


def body_of(error: errors.OccamError, request_id: str | None) -> ErrorBody:
    """The body of an error."""
    return error_body(status_of(error), error.code, error.message, error.param, request_id)


def error_body(status: int, code: str, message: str, param: str | None, request_id: str | None) -> ErrorBody:
    """A body of the one shape."""
    kind = _TYPES.get(status, "invalid_request_error")
    return ErrorBody(error=ErrorDetail(type=kind, code=code, message=message, param=param, request_id=request_id))
