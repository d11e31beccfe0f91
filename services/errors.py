"""What can go wrong in the service itself, on top of the library's own exceptions."""

from occam.errors import InvalidInput, OccamError


class MalformedRequest(InvalidInput):
    """The request does not have the shape of the API."""

    code = "malformed"


class NotFound(InvalidInput):
    """No such route, video or session."""

    code = "not_found"


class SessionBusy(InvalidInput):
    """Another turn of the session is being answered; turns of one session do not run side by side."""

    code = "session_busy"


class DeadlineExceeded(OccamError):
    """The request was not finished within the service's deadline."""

    code = "deadline_exceeded"


class ReplicaLost(OccamError):
    """The process that worked on the request died."""

    code = "replica_lost"
