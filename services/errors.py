"""What can go wrong in the service itself, on top of the library's own exceptions."""

from occam.errors import InvalidInput, OccamError, Overloaded


class InvalidKey(OccamError):
    """The request has no API key, or none that is known."""

    code = "invalid_api_key"


class CrossSite(OccamError):
    """Without keys a page of another site may have sent the request, and its browser cannot know whose it is."""

    code = "cross_site"


class QuotaExceeded(Overloaded):
    """The tenant has used up its quota; `retry_after_s` says when there is more."""

    code = "quota_exceeded"


class NotCached(OccamError):
    """The state is in no cache, and its frames may not be decoded before they are paid for."""

    code = "not_cached"


class MalformedRequest(InvalidInput):
    """The request does not have the shape of the API."""

    code = "malformed"


class WrongContentType(InvalidInput):
    """The request's body is of a type that is not taken here."""

    code = "wrong_content_type"


class NotFound(InvalidInput):
    """No such route, video or session."""

    code = "not_found"


class SessionBusy(InvalidInput):
    """Another turn of the session is being answered; turns of one session do not run side by side."""

    code = "session_busy"


class DeadlineExceeded(OccamError):
    """The request was not finished within the service's deadline."""

    code = "deadline_exceeded"


class WorkerFull(Overloaded):
    """One worker has as many visual tokens to encode as it takes on; another may have fewer."""


class ReplicaLost(OccamError):
    """The process that worked on the request died."""

    code = "replica_lost"


class TooManyJobs(Overloaded):
    """The tenant has as many jobs as are kept; deleting one, or the end of one's time, makes room."""

    code = "too_many_jobs"


class ResultsTooLarge(OccamError):
    """The results of a job would take more bytes than a job may."""

    code = "results_too_large"
