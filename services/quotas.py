"""Quotas of tenants, counted in the state store: over all ingresses, and while it is away nothing is free."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import ceil

from occam.errors import InvalidInput, StoreUnavailable, VideoTooLarge
from services.allowances import Allowance
from services.errors import QuotaExceeded
from services.state import State

_MINUTE_S, _DAY_S = 60, 86_400

_TAKE = """
-- KEYS: counter; ARGV: how much, limit, seconds to live
local used = tonumber(redis.call('GET', KEYS[1]) or '0')
if used + tonumber(ARGV[1]) > tonumber(ARGV[2]) then return {0, used} end
redis.call('INCRBY', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {1, used}
"""
_GIVE_BACK = "if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('DECRBY', KEYS[1], ARGV[1]) end"


@dataclass(frozen=True)
class Reservation:
    """Seconds of video that are paid for, by the counter of the day on which they were; possibly none."""

    state: State
    counter: str
    milliseconds: int

    async def give_back(self) -> None:
        """Nothing was decoded. If the store is away they stay paid for, until the day is over."""
        if not self.milliseconds:
            return
        with suppress(StoreUnavailable):
            await self.state.run(_GIVE_BACK, (self.counter,), self.milliseconds)


class Quotas:
    """Counts what tenants use, by minutes and by days (UTC). StoreUnavailable where that cannot be counted."""

    def __init__(
        self, state: State, allowance: Callable[[str], Allowance], clock: Callable[[], float] = time.time
    ) -> None:
        self._state = state
        self._allowance = allowance
        self._clock = clock

    async def take_request(self, tenant: str) -> None:
        """Count one request; QuotaExceeded, and not counted, where the minute has had as many as it may."""
        await self._take(tenant, 1)

    async def take_addresses(self, tenant: str, count: int) -> None:
        """Count a request for each address that one request fetches; it was counted itself, as that of the first.

        All or none of them: QuotaExceeded where the minute has not so many left, InvalidInput where none ever has.
        """
        limit = self._allowance(tenant).requests
        if limit and count > limit:
            raise InvalidInput(
                f"The request names {count} addresses, each of which counts as one, more than the quota of {limit} "
                "requests a minute (OCCAM_QUOTA_REQUESTS).",
                "videos",
            )
        if count > 1:
            await self._take(tenant, count - 1)

    async def _take(self, tenant: str, count: int) -> None:
        limit = self._allowance(tenant).requests
        if not limit:
            return
        window, left_s = divmod(self._clock(), _MINUTE_S)
        counter = f"quota:requests:{tenant}:{int(window)}"
        taken, used = await self._state.run(_TAKE, (counter,), count, limit, 2 * _MINUTE_S)
        if not taken:
            found = f"has {limit - used} left, and {count} more are needed" if used < limit else "is used up"
            raise QuotaExceeded(
                f"The quota of {limit} requests a minute {found} (OCCAM_QUOTA_REQUESTS).",
                retry_after_s=_MINUTE_S - left_s,
            )

    def counts_video(self, tenant: str) -> bool:
        """Whether seconds of video must be reserved before they are decoded."""
        return self._allowance(tenant).video_seconds > 0

    async def reserve(self, tenant: str, seconds: float) -> Reservation:
        """Pay for seconds that are to be decoded now; QuotaExceeded where the day has not so many left.

        VideoTooLarge where no day ever has.
        """
        limit = self._allowance(tenant).video_seconds
        if not (limit and seconds):
            return Reservation(self._state, counter="", milliseconds=0)
        if seconds > limit:
            raise VideoTooLarge(
                f"The video has {seconds:g} s to be decoded, more than the quota of {limit:g} s a day "
                "(OCCAM_QUOTA_VIDEO_SECONDS)."
            )
        window, passed_s = divmod(self._clock(), _DAY_S)
        counter = f"quota:video:{tenant}:{int(window)}"
        # Whole milliseconds: sums of fractions would not come out even.
        amount = ceil(seconds * 1000)
        taken, used = await self._state.run(_TAKE, (counter,), amount, ceil(limit * 1000), 2 * _DAY_S)
        if not taken:
            raise QuotaExceeded(
                f"The video has {seconds:g} s to be decoded, and of the quota of {limit:g} s a day "
                f"{limit - used / 1000:g} s are left (OCCAM_QUOTA_VIDEO_SECONDS).",
                retry_after_s=_DAY_S - passed_s,
            )
        return Reservation(self._state, counter, amount)
