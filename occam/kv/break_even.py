"""Whether a cached state is fetched or computed again: whichever takes less time, by what both took here lately.

Two rules. A fetch goes on as long as what is left of it promises to take less time than computing anew; that is asked
before it begins and with every batch that arrives. And what is lost is accounted for: asking a tier, and fetching in
vain, are paid from a credit that starts at one computation, grows by `SAVED` of the seconds of each, and by what
fetches gain, up to one computation. While it is overdrawn the tier is left alone; when it is full, a line that was too
slow is tried again. So all requests together take at most (1 + `SAVED`) times what computing every state takes, plus
one computation and the overrun of one fetch (`Fetch.patience_s`), whatever the line does.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from occam.errors import FetchDeclined, FetchGivenUp, StoreUnavailable

RECENT = 5
SAVED = 0.01
LATE = 0.05


class Pace:
    """Seconds per unit: the median of the last five, so one outlier moves nothing and a change shows after three."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)

    def observe(self, seconds: float, units: int = 1) -> None:
        """Learn that `units` took `seconds`; nothing follows from none."""
        if units:
            self._recent.append(seconds / units)

    def seconds(self, units: int = 1) -> float | None:
        """What `units` would take, or None before anything was seen."""
        return median(self._recent) * units if self._recent else None


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A state that a tier has: its bytes on the line, the patches the tower made for it, and its tokens."""

    nbytes: int
    encoded: int
    tokens: int


class Fetch:
    """One fetch under way.

    hoped_s: seconds that all bytes should take; rebuild_s: that computing would; both None where nothing is known
    """

    def __init__(self, nbytes: int, hoped_s: float | None, rebuild_s: float | None, clock: Callable[[], float]) -> None:
        self._nbytes = nbytes
        self._hoped_s = hoped_s
        self._rebuild_s = rebuild_s
        self._clock = clock
        self._started_s = clock()
        self._arrived = 0
        self.complete_s: float | None = None

    def patience_s(self, nbytes: int) -> float | None:
        """Seconds that the next `nbytes` may take; raises FetchGivenUp where it is quicker to compute.

        Twice what they should take, by what was hoped or by the pace so far, whichever is slower; at least `LATE` of
        computing, and None (no limit) while it is not known what that takes. So a line that is dead from the start
        costs `LATE` of computing, or twice the first batch's time; one that breaks down costs that on top of what it
        took until then, which is less than computing takes.
        """
        if self._hoped_s is None or self._rebuild_s is None:
            return None
        per_byte = self._hoped_s / self._nbytes
        if self._arrived:
            per_byte = max(per_byte, self.elapsed_s / self._arrived)
            if per_byte * (self._nbytes - self._arrived) > self._rebuild_s:
                raise FetchGivenUp("The rest of the state would take longer to fetch than all of it to compute.")
        return max(2 * per_byte * nbytes, LATE * self._rebuild_s)

    def arrived(self, nbytes: int) -> None:
        """Count bytes that have come."""
        self._arrived += nbytes

    def complete(self) -> None:
        """Say that the state is there, checked and ready."""
        self.complete_s = self.elapsed_s

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return self._clock() - self._started_s


class BreakEven:
    """The choice between one tier and one engine, from the seconds that both took; for one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._round_trip, self._transfer = Pace(), Pace()
        self._encode, self._prefill = Pace(), Pace()
        self._credit_s: float | None = None

    def built(self, *, encoded: int, tokens: int, seconds: float, prefill_s: float) -> None:
        """Learn that a state took `seconds` to compute, waiting for frames included, `prefill_s` of it for prefill."""
        self._encode.observe(seconds - prefill_s, encoded)
        self._prefill.observe(prefill_s, tokens)
        self._credit_s = seconds if self._credit_s is None else self._credit_s + SAVED * seconds

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Time a question of a few bytes to the tier; raises FetchDeclined while the credit is overdrawn."""
        if self._credit_s is not None and self._credit_s < 0:
            raise FetchDeclined("Asking the tier has cost more lately than it has saved.")
        started_s = self._clock()
        try:
            yield
        except StoreUnavailable:
            self._spend(self._clock() - started_s)
            raise
        self._round_trip.observe(self._clock() - started_s)
        self._spend(self._clock() - started_s)

    @contextmanager
    def fetching(self, offer: Offer) -> Iterator[Fetch]:
        """Time a fetch; raises FetchDeclined where computing is quicker."""
        rebuild_s = self._rebuild_s(offer)
        fetch = Fetch(offer.nbytes, self._hoped_s(offer, rebuild_s), rebuild_s, self._clock)
        try:
            yield fetch
        except (StoreUnavailable, FetchGivenUp):
            self._spend(fetch.elapsed_s)
            # How slow it was is not known, only that it was slower than computing.
            self._transfer.observe(max(fetch.elapsed_s, rebuild_s or 0.0), offer.nbytes)
            raise
        if fetch.complete_s is not None:
            self._transfer.observe(max(fetch.complete_s - (self._round_trip.seconds() or 0.0), 0.0), offer.nbytes)
            if rebuild_s is not None:
                self._earn(rebuild_s - fetch.complete_s, rebuild_s)

    def _rebuild_s(self, offer: Offer) -> float | None:
        encode_s, prefill_s = self._encode.seconds(offer.encoded), self._prefill.seconds(offer.tokens)
        return None if encode_s is None or prefill_s is None else encode_s + prefill_s

    def _hoped_s(self, offer: Offer, rebuild_s: float | None) -> float | None:
        """What a fetch shall take; raises FetchDeclined where that is too long and there is no credit to try again."""
        if rebuild_s is None:
            return None
        round_trip_s, transfer_s = self._round_trip.seconds(), self._transfer.seconds(offer.nbytes)
        fetch_s = None if transfer_s is None else transfer_s + (round_trip_s or 0.0)
        if fetch_s is not None and fetch_s < rebuild_s:
            return fetch_s
        if fetch_s is not None and (self._credit_s or 0.0) < rebuild_s:
            raise FetchDeclined(
                f"Fetching {offer.nbytes} bytes would take {fetch_s:.3f} s, computing them {rebuild_s:.3f} s."
            )
        # A try, which must be worth its risk: of a line twice as quick as computing.
        return rebuild_s / 2

    def _spend(self, seconds: float) -> None:
        if self._credit_s is not None:
            self._credit_s -= seconds

    def _earn(self, seconds: float, limit_s: float) -> None:
        """Gains lift the credit to one computation at most: a good past must not pay for a long bad time."""
        if self._credit_s is not None:
            self._credit_s = min(self._credit_s + seconds, max(self._credit_s, limit_s))
