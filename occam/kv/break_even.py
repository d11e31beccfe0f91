"""Whether what a tier has is fetched or computed again: whichever takes less time, by what both took here lately.

A state spares all of the computing. Embeddings, which may lie beside it and have less bytes, spare the tower alone, and
leave the lower layers to be run. There is a choice for each: embeddings against the tower, and a state against the
quicker of computing and of such embeddings. Asked in turn, first the state, they take the quickest of the three ways.

A fetch goes on as long as what is left of it promises to take less time than computing anew; that is asked before it
begins and with every batch that arrives. A line that was too slow is tried again after one declined lookup, then after
2, 4, .. `MAX_DECLINED`. And what is lost is accounted for: the seconds of asking a tier and of fetching in vain are
paid from a credit that starts with one computation, grows by `SAVED` of every other and by what fetches gain, and holds
one computation at most when a fetch begins. While it is overdrawn the tier is left alone. So all lookups together take
at most 1 + `SAVED` times what computing every state takes, plus one computation and one fetch given up for each lookup
that runs at the same time; with several tiers, that much more for each. Embeddings may cost as much again of what the
tower takes.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

from occam.errors import FetchDeclined, FetchGivenUp, StoreUnavailable

RECENT = 7  # observations that a pace is the median of
SAVED = 0.015  # of the seconds that computing takes may be lost on a tier
LATE = 0.05  # of the seconds that computing takes are waited for any batch
MAX_DECLINED = 64  # lookups between two tries of a line that is too slow
FEW_BUILT = 3  # states after which the pace of computing is trusted


class Pace:
    """Seconds per unit: the median of the last seven, so that few outliers move little; a change shows after four."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=RECENT)

    def observe(self, seconds: float, units: int = 1) -> None:
        """Learn that `units` took `seconds`; nothing follows from none."""
        if units:
            self._recent.append(seconds / units)

    def seconds(self, units: int = 1) -> float | None:
        """What `units` would take; nothing for none of them, else None before anything was seen."""
        if not units:
            return 0.0
        return median(self._recent) * units if self._recent else None


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A state that a tier has, or embeddings: the bytes on the line, the patches the tower made for it, and its tokens.

    tokens: those that the lower layers ran on, 0 for embeddings
    embeddings: bytes on the line of what would spare a state's tower, about; None where nothing would
    """

    nbytes: int
    encoded: int
    tokens: int = 0
    embeddings: int | None = None

    @property
    def smaller_beside(self) -> bool:
        """Whether embeddings that have less bytes may lie beside it."""
        return self.embeddings is not None and self.embeddings < self.nbytes


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


@dataclass
class _Builds:
    """What computing took one engine: `earned_s` of credit for each tier, and the seconds fetched since by any."""

    encode: Pace = field(default_factory=Pace)
    prefill: Pace = field(default_factory=Pace)
    count: int = 0
    earned_s: float = 0.0
    fetched_since_s: float = 0.0


class BreakEven:
    """The choice between one tier and one engine, from the seconds that both took; for one event loop.

    beside: the choice for another tier of the same engine; of computing, what one of them is told all know
    embeddings: the choice for those of the same tier, where it keeps them; it is told what the tower took
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        beside: "BreakEven | None" = None,
        embeddings: "BreakEven | None" = None,
    ) -> None:
        self._clock = clock
        self._embeddings = embeddings
        self._round_trip, self._transfer = Pace(), Pace()
        self._builds: _Builds = _Builds() if beside is None else beside._builds
        self._spent_s = 0.0
        self._declined, self._declines_before_try = 0, 1
        self._awaited = self._gone = False

    def built(self, *, encoded: int, tokens: int, seconds: float, prefill_s: float) -> None:
        """Learn that a state took `seconds` to compute, waiting for frames included, `prefill_s` of it for prefill.

        encoded, seconds: without those of media whose embeddings were fetched
        """
        builds = self._builds
        builds.encode.observe(seconds - prefill_s, encoded)
        builds.prefill.observe(prefill_s, tokens)
        builds.earned_s += SAVED * seconds if builds.count else seconds
        builds.count += 1
        builds.fetched_since_s = 0.0
        if self._embeddings is not None and encoded:
            self._embeddings.built(encoded=encoded, tokens=0, seconds=seconds - prefill_s, prefill_s=0.0)

    def encode_s(self, encoded: int) -> float | None:
        """What decoding and encoding so many patches would take, or None before anything was computed."""
        return self._builds.encode.seconds(encoded)

    def prefill_s(self, tokens: int) -> float | None:
        """What the lower layers over so many tokens would take, or None before anything was computed."""
        return self._builds.prefill.seconds(tokens)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Time a question of a few bytes to the tier; raises FetchDeclined while the credit is overdrawn."""
        if self._embeddings is not None:
            self._embeddings._awaited = False
        if self._overdrawn:
            self._declined += 1
            raise FetchDeclined("Asking the tier has cost more lately than it has saved.")
        started_s = self._clock()
        try:
            yield
            self._round_trip.observe(self._clock() - started_s)
        finally:
            self._spend(self._clock() - started_s)

    def missed(self) -> None:
        """Learn that the tier does not have what was asked for; embeddings that should be there have no price then."""
        self._gone = self._gone or self._awaited

    @contextmanager
    def fetching(self, offer: Offer) -> Iterator[Fetch]:
        """Time a fetch; raises FetchDeclined where computing is quicker."""
        rebuild_s = self._rebuild_s(offer)
        if self._embeddings is not None:
            self._embeddings._awaited = True  # until the state is there: they are, where it is
        fetch = Fetch(offer.nbytes, self._hoped_s(offer, rebuild_s), rebuild_s, self._clock)
        try:
            yield fetch
        except (StoreUnavailable, FetchGivenUp):
            self._lost(fetch.elapsed_s, offer, rebuild_s)
            raise
        finally:
            if fetch.complete_s is None:
                self._spend(fetch.elapsed_s)
            else:
                self._won(fetch.complete_s, offer, rebuild_s)

    @property
    def _overdrawn(self) -> bool:
        """Whether nothing is left to pay another question with."""
        return self._spent_s > self._builds.earned_s

    def _rebuild_s(self, offer: Offer) -> float | None:
        """What the quickest way without this fetch would take, or None before anything was computed."""
        ways = (self._compute_s(offer), self._embeddings_s(offer))
        return min((seconds for seconds in ways if seconds is not None), default=None)

    def _embeddings_s(self, offer: Offer) -> float | None:
        """What the state would take over its media's embeddings, or None before any were fetched."""
        if (
            self._embeddings is None
            or offer.embeddings is None
            or self._embeddings._gone
            or self._embeddings._overdrawn
        ):
            return None
        fetch_s, prefill_s = self._embeddings._fetch_s(offer.embeddings), self._builds.prefill.seconds(offer.tokens)
        asking_s = self._round_trip.seconds()
        return None if fetch_s is None or prefill_s is None or asking_s is None else asking_s + fetch_s + prefill_s

    def _compute_s(self, offer: Offer) -> float | None:
        """What computing would take, or None before anything was computed."""
        builds = self._builds
        encode_s, prefill_s = builds.encode.seconds(offer.encoded), builds.prefill.seconds(offer.tokens)
        return None if not builds.count or encode_s is None or prefill_s is None else encode_s + prefill_s

    def _fetch_s(self, nbytes: int) -> float | None:
        """What fetching `nbytes` would take, or None before anything was fetched."""
        round_trip_s, transfer_s = self._round_trip.seconds(), self._transfer.seconds(nbytes)
        return None if round_trip_s is None or transfer_s is None else round_trip_s + transfer_s

    def _hoped_s(self, offer: Offer, rebuild_s: float | None) -> float | None:
        """What a fetch shall take, None where nothing is known; raises FetchDeclined where computing is quicker."""
        if rebuild_s is None:
            return None
        self._spent_s = max(self._spent_s, self._builds.earned_s - (self._compute_s(offer) or rebuild_s))
        fetch_s = self._fetch_s(offer.nbytes)
        if fetch_s is not None and fetch_s < rebuild_s and not self._stale(fetch_s, rebuild_s):
            return fetch_s
        if fetch_s is None and self._embeddings is not None and offer.smaller_beside and not self._declined:
            self._declined += 1
            raise FetchDeclined("Of a line that is not known yet, embeddings shall tell: they are smaller.")
        if fetch_s is None or (fetch_s >= rebuild_s and self._declined >= self._declines_before_try):
            self._declined = 0
            return rebuild_s / 2  # a try is of a line that would be twice as quick as computing
        self._declined += 1
        raise FetchDeclined(
            f"Fetching {offer.nbytes} bytes should take {fetch_s:.3f} s, computing them {rebuild_s:.3f} s."
        )

    def _stale(self, fetch_s: float, rebuild_s: float) -> bool:
        """Whether to compute although fetching looks quicker, because it was long ago that anything was computed.

        That costs `SAVED` of what fetches take, or as much as they take while few states were computed: of two paces
        the wrong one would stay if nothing ever tested it. What other tiers gave counts too, so that all of them say
        so together: else a lookup would only go on to the next.
        """
        share = 1.0 if self._builds.count < FEW_BUILT else SAVED
        return share * self._builds.fetched_since_s > rebuild_s - fetch_s

    def _won(self, seconds: float, offer: Offer, rebuild_s: float | None) -> None:
        """A fetch came through."""
        self._gone = False
        self._transfer.observe(max(seconds - (self._round_trip.seconds() or 0.0), 0.0), offer.nbytes)
        self._builds.fetched_since_s += seconds
        if rebuild_s is not None:
            self._spent_s -= rebuild_s - seconds
            self._put_off_tries(was_worth_it=seconds < rebuild_s)

    def _lost(self, seconds: float, offer: Offer, rebuild_s: float | None) -> None:
        """A fetch did not come through: how slow it was is not known, only that it was slower than computing."""
        self._transfer.observe(max(seconds, rebuild_s or 0.0), offer.nbytes)
        self._put_off_tries(was_worth_it=False)

    def _put_off_tries(self, was_worth_it: bool) -> None:
        """Try a slow line again after twice as many lookups as the last time, or at once if that was worth it."""
        self._declines_before_try = 0 if was_worth_it else min(max(2 * self._declines_before_try, 1), MAX_DECLINED)

    def _spend(self, seconds: float) -> None:
        """Pay from the credit, once there is one."""
        if self._builds.count:
            self._spent_s += seconds
