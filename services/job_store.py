"""Jobs in the state store: requests, results, and leases, by which one ingress at a time works on a job.

`job:ID` is the request; `job-results:ID` its lines in the order in which they came; `job-seen:ID` a bit for each
question that has one; `job-tally:ID` what is said of a job without reading its request, which may have megabytes: how
many questions it has since when, how many lines are errors, the bytes of all, and whose it is; `job-lease:ID` which
ingress works on it now. `jobs:of:TENANT` and `jobs:open` are indexes by the time of creation. What is damaged is
CorruptState, and ends that job alone.
"""

import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar, cast

from pydantic import ValidationError
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from occam.errors import CorruptState
from services.errors import NotFound, TooManyJobs
from services.job_records import JobRecord
from services.settings import Settings
from services.state import State

T = TypeVar("T")
Kept = Literal["kept", "there", "full", "lost"]

_OPEN = "jobs:open"
_PAGE = 64  # lines that are read at a time
_FULL_RETRY_S = 60.0
_COUNT = re.compile(rb"\d{1,18}")

# Asked again after an answer that was lost, it finds the lease its own; a job that was deleted meanwhile has none.
_CLAIM = """
if redis.call('ZSCORE', KEYS[2], ARGV[3]) == false then return 0 end
if redis.call('GET', KEYS[1]) == ARGV[1] then return 1 end
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
"""
_EXTEND = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"

# Two look at a tenant's other jobs, whose entries may be damaged or gone: those weigh nothing.
_WEIGH = """
local function weight(index, most)
    local sum = 0
    for _, id in ipairs(redis.call('ZRANGE', index, 0, -1)) do
        local bytes = redis.pcall('HGET', 'job-tally:' .. id, 'bytes')
        local count = type(bytes) == 'string' and tonumber(bytes)
        if count and count >= 0 and count <= most then sum = sum + count end
    end
    return sum
end
"""
_ADD = (
    _WEIGH
    + """
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    if redis.call('EXISTS', 'job:' .. id) == 0 then redis.call('ZREM', KEYS[1], id) end
end
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[4]) then return 'many' end
if weight(KEYS[1], tonumber(ARGV[6])) + tonumber(ARGV[5]) > tonumber(ARGV[6]) then return 'full' end
redis.call('SET', 'job:' .. ARGV[1], ARGV[2])
redis.call('HSET', 'job-tally:' .. ARGV[1], 'failed', 0, 'bytes', ARGV[5], 'tenant', ARGV[7],
    'total', ARGV[8], 'created', ARGV[9])
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
return 'kept'
"""
)
# One step, and only for whoever holds the lease: so no question has two lines, however many ingresses think it theirs.
_KEEP = (
    _WEIGH
    + """
local id = ARGV[1]
if redis.call('GET', 'job-lease:' .. id) ~= ARGV[2] or redis.call('EXISTS', 'job:' .. id) == 0 then return 'lost' end
if redis.call('GETBIT', 'job-seen:' .. id, ARGV[3]) == 1 then return 'there' end
if ARGV[5] == '0' and weight(KEYS[1], tonumber(ARGV[7])) + tonumber(ARGV[6]) > tonumber(ARGV[7]) then return 'full' end
redis.call('HINCRBY', 'job-tally:' .. id, 'bytes', ARGV[6])
redis.call('HINCRBY', 'job-tally:' .. id, 'failed', ARGV[5])
redis.call('RPUSH', 'job-results:' .. id, ARGV[4])
redis.call('SETBIT', 'job-seen:' .. id, ARGV[3], 1)
return 'kept'
"""
)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is. created: seconds since the epoch; leased: an ingress works on it; ended: none will any more."""

    total: int
    created: int
    done: int
    failed: int
    leased: bool
    ended: bool


_DAMAGED = ("WRONGTYPE", "not an integer", "not a valid float", "hash value", "out of range")
"""What Redis says of a value that is not what it should be; scripts pass it on as text."""


class JobStore:
    """Jobs by id; an outage is StoreUnavailable."""

    def __init__(self, settings: Settings, state: State) -> None:
        self._state = state
        self._ttl_s = int(settings.job_ttl_s)
        self._lease_ms = int(settings.job_lease_s * 1000)
        self._max_jobs = settings.max_jobs
        self._max_bytes = settings.max_job_bytes

    async def add(self, record: JobRecord, nbytes: int) -> None:
        """Keep a job, with room for `nbytes` of it; TooManyJobs where its tenant has no more."""
        raw = record.model_dump_json(exclude_unset=True)
        keys = (_index(record.tenant), _OPEN)
        limits = (self._max_jobs, nbytes, self._max_bytes)
        facts = (record.id, raw, record.created, *limits, record.tenant, record.request.total, int(record.created))
        with self._answering() as redis:
            kept = await redis.register_script(_ADD)(keys, facts)
        if kept == b"many":
            raise TooManyJobs(
                f"There are {self._max_jobs} jobs, which is the limit. Delete one whose results you have.",
                retry_after_s=_FULL_RETRY_S,
            )
        if kept == b"full":
            raise TooManyJobs(
                f"The job takes {nbytes} bytes at least, and all jobs together may take {self._max_bytes}. Delete one "
                "whose results you have.",
                retry_after_s=_FULL_RETRY_S,
            )

    async def has(self, job_id: str, tenant: str) -> bool:
        """Whether this tenant has such a job."""
        with self._answering() as redis:
            return await redis.zscore(_index(tenant), job_id) is not None and bool(await redis.exists(_job(job_id)))

    async def record(self, job_id: str) -> JobRecord | None:
        """A job's request; None where the job is gone."""
        with self._answering() as redis:
            if await redis.strlen(_job(job_id)) > self._max_bytes:
                raise CorruptState("The job's request is damaged.")
            raw = await redis.get(_job(job_id))
        if raw is None:
            return None
        try:
            record = JobRecord.model_validate_json(raw)
        except ValidationError as error:
            raise CorruptState("The job's request is damaged.") from error
        if record.id != job_id:
            raise CorruptState("The job's request is another's.")
        return record

    async def progress(self, job_id: str) -> Progress | None:
        """How far a job is; None where it is gone."""
        with self._answering() as redis:
            pipeline = redis.pipeline(transaction=True)
            pipeline.exists(_job(job_id))
            pipeline.hmget(_tally(job_id), "total", "created", "failed")
            pipeline.bitcount(_seen(job_id))
            pipeline.exists(_lease(job_id))
            pipeline.zscore(_OPEN, job_id)
            there, counts, done, leased, opened = await pipeline.execute()
        if not there:
            return None
        if not all(_COUNT.fullmatch(count or b"") for count in counts):
            raise CorruptState("The job's tally is damaged.")
        total, created, failed = map(int, counts)
        return Progress(
            total=total, created=created, done=done, failed=failed, leased=bool(leased), ended=opened is None
        )

    async def page(self, tenant: str, after: str | None, limit: int) -> list[str]:
        """Ids of the tenant's jobs, the newest first, behind that of `after`; NotFound where that is none."""
        with self._answering() as redis:
            start = 0
            if after is not None:
                rank = cast(int | None, await redis.zrevrank(_index(tenant), after))
                if rank is None:
                    raise NotFound("There is no job with this id.", "after")
                start = rank + 1
            ids = cast(list[bytes], await redis.zrevrange(_index(tenant), start, start + limit - 1))
        return [raw.decode() for raw in ids]

    async def lines(self, job_id: str, after: int) -> AsyncGenerator[bytes]:
        """The lines that are there, but for the first `after`."""
        while True:
            with self._answering() as redis:
                lines = cast(list[bytes], await redis.lrange(_results(job_id), after, after + _PAGE - 1))
            for line in lines:
                yield line
            after += len(lines)
            if len(lines) < _PAGE:
                return

    async def delete(self, job_id: str, tenant: str) -> None:
        """Forget a job; whoever works on it has lost it."""
        with self._answering() as redis:
            pipeline = redis.pipeline(transaction=True)
            pipeline.zrem(_OPEN, job_id)
            pipeline.zrem(_index(tenant), job_id)
            pipeline.delete(*_entries(job_id), _lease(job_id))
            await pipeline.execute()

    async def open(self) -> list[tuple[str, str]]:
        """The jobs that have not ended, the oldest first, with their tenants ("" where that is damaged)."""
        with self._answering() as redis:
            ids = [raw.decode() for raw in cast(list[bytes], await redis.zrange(_OPEN, 0, -1))]
            pipeline = redis.pipeline(transaction=False)
            for job_id in ids:
                pipeline.hget(_tally(job_id), "tenant")
            tenants = await pipeline.execute(raise_on_error=False)
        return [
            (job_id, tenant.decode(errors="replace") if isinstance(tenant, bytes) else "")
            for job_id, tenant in zip(ids, tenants, strict=True)
        ]

    async def claim(self, job_id: str, token: str) -> bool:
        """Take the lease of an open job that nobody holds; whether that was so."""
        with self._answering() as redis:
            return bool(await redis.register_script(_CLAIM)((_lease(job_id), _OPEN), (token, self._lease_ms, job_id)))

    async def extend(self, job_id: str, token: str) -> bool:
        """Hold the lease for its whole time again; whether it was still held."""
        with self._answering() as redis:
            return bool(await redis.register_script(_EXTEND)((_lease(job_id),), (token, self._lease_ms)))

    async def release(self, job_id: str, token: str) -> None:
        """Give the lease back, if it is still held."""
        with self._answering() as redis:
            await redis.register_script(_RELEASE)((_lease(job_id),), (token,))

    async def seen(self, job_id: str, total: int) -> set[int]:
        """Numbers of the questions that have their line."""
        with self._answering() as redis:
            bits = cast(bytes, await redis.getrange(_seen(job_id), 0, total // 8))
        return {n for n in range(total) if n // 8 < len(bits) and bits[n // 8] >> (7 - n % 8) & 1}

    async def keep(self, record: JobRecord, token: str, index: int, line: bytes, *, failed: bool, grown: int) -> Kept:
        """Keep the line of question `index`.

        grown: bytes that it takes on top of those that are counted; what is not an error may be `full`. `there` where
        the question has a line, `lost` where the lease is another's or the job is gone
        """
        facts = (record.id, token, index, line, int(failed), grown, self._max_bytes)
        with self._answering() as redis:
            kept = await redis.register_script(_KEEP)((_index(record.tenant),), facts)
        return cast(Kept, kept.decode())

    async def end(self, job_id: str) -> None:
        """Take a job from the open ones; what is kept of it has its time from now on."""
        with self._answering() as redis:
            pipeline = redis.pipeline(transaction=True)
            pipeline.zrem(_OPEN, job_id)
            for name in _entries(job_id):
                pipeline.expire(name, self._ttl_s)
            await pipeline.execute()

    @contextmanager
    def _answering(self) -> Iterator[Redis]:
        with self._state.talking() as redis:
            try:
                yield redis
            except ResponseError as error:
                # All else is the store's trouble: full disks, lost replicas, rights.
                if any(words in str(error) for words in _DAMAGED):
                    raise CorruptState("What is kept of the job is damaged.") from error
                raise


def _entries(job_id: str) -> tuple[str, ...]:
    return _job(job_id), _results(job_id), _seen(job_id), _tally(job_id)


def _index(tenant: str) -> str:
    return f"jobs:of:{tenant}"


def _job(job_id: str) -> str:
    return f"job:{job_id}"


def _results(job_id: str) -> str:
    return f"job-results:{job_id}"


def _seen(job_id: str) -> str:
    return f"job-seen:{job_id}"


def _tally(job_id: str) -> str:
    return f"job-tally:{job_id}"


def _lease(job_id: str) -> str:
    return f"job-lease:{job_id}"
