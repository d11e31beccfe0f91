"""How many bytes each tenant's uploads take, in the state store: kept ones, and those under way on any ingress.

`uploads:of:TENANT` has, by the id of a video, the bytes and the digest of its file. An entry counts while there is
`upload:ID`, which is there as long as the upload may be under way, or `video:ID`, the record. So nothing that dies,
expires or is deleted has to be taken out for the sum to be right.
"""

from services.errors import QuotaExceeded
from services.settings import Settings
from services.state import State

_FULL_RETRY_S = 60.0

_TAKE = """
-- KEYS: index; ARGV: id, bytes, digest or '', limit, seconds that the upload may be under way
local sum, counted = tonumber(ARGV[2]), {[ARGV[3]] = true}
local entries = redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
    local id = entries[i]
    local bytes, digest = string.match(entries[i + 1], '^(%d+) (%w*)$')
    if not bytes or redis.call('EXISTS', 'upload:' .. id, 'video:' .. id) == 0 then
        redis.call('HDEL', KEYS[1], id)
    elseif id ~= ARGV[1] and (digest == '' or not counted[digest]) then
        sum = sum + tonumber(bytes)
        counted[digest] = true
    end
end
if sum > tonumber(ARGV[4]) then return sum end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. ' ' .. ARGV[3])
redis.call('SET', 'upload:' .. ARGV[1], '', 'EX', ARGV[5])
return 0
"""


class UploadRoom:
    """The bound on one tenant's uploads, where it is below that on all of them. An outage is StoreUnavailable."""

    def __init__(self, settings: Settings, state: State) -> None:
        self._state = state
        self._most = settings.most_upload_bytes
        self._is_bound = self._most < settings.upload_bytes
        # What comes behind the upload itself, until there is a record, has a deadline too.
        self._ttl_s = int(settings.upload_s + settings.deadline_s) + 1

    async def take(self, tenant: str, video_id: str, nbytes: int, digest: str = "") -> None:
        """Have room for the file of a video, instead of what it had; QuotaExceeded where its tenant has no more.

        digest: once it is known; files of the same bytes take their room once
        """
        if not self._is_bound:
            return
        index = f"uploads:of:{tenant}"
        total = await self._state.run(_TAKE, (index,), video_id, nbytes, digest, self._most, self._ttl_s)
        if total:
            raise QuotaExceeded(
                f"With this video your uploads may take {total} bytes, over the limit of {self._most} for one tenant "
                "(OCCAM_TENANT_UPLOAD_BYTES). Delete a video that was uploaded, or come back when some have expired.",
                "file",
                _FULL_RETRY_S,
            )

    async def give_back(self, video_id: str) -> None:
        """The upload is over: from now on it takes room if it has a record."""
        if self._is_bound:
            with self._state.talking() as redis:
                await redis.delete(f"upload:{video_id}")
