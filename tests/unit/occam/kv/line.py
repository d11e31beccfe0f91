"""A simulated tier and engine on a clock of their own: what a lookup takes on a line of given latency and bandwidth."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Literal, NamedTuple, Protocol, Self

from occam.errors import FetchDeclined, FetchGivenUp
from occam.kv.break_even import BreakEven, Offer
from occam.kv.fetch import Fetch

MB = 1_000_000
BATCH = 8 * MB
CHECK_BYTES_PER_S = 1000 * MB
PROBES, PROBE_S = 3, 1.0

Taken = Literal["fetched", "computed", "given up"]


class Timed(Protocol):
    """What a lookup took, and computing in its place would have."""

    @property
    def seconds(self) -> float: ...

    @property
    def rebuild_s(self) -> float: ...


class Lookup(NamedTuple):
    """What became of a lookup, its seconds, and those of computing in its place."""

    taken: Taken
    seconds: float
    rebuild_s: float


@dataclass
class Line:
    """Lookups of one state of `nbytes`, over a line that may be changed between them.

    noise: standard deviation of the logarithm of every time, and so often (of 1) a batch takes five times as long
    """

    nbytes: int
    bandwidth: float
    latency_s: float
    rebuild_s: float
    noise: float = 0.0
    outliers: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self.now = 0.0
        self.random = Random(self.seed)
        self.chooser = BreakEven(lambda: self.now)
        self.offer = Offer(nbytes=self.nbytes, encoded=self.nbytes // 1000, tokens=100)

    def started(self, share: float = 0.5) -> Self:
        """As before a worker's first request: probed, and computing expected to take `share` of what it does."""
        self._probe(self.chooser, self.now + PROBE_S)
        tower_s, prefill_s = share * self.rebuild_s * 2 / 3, share * self.rebuild_s / 3
        self.chooser.expect(patch_s=tower_s / self.offer.encoded, token_s=prefill_s / self.offer.tokens)
        return self

    def _probe(self, chooser: BreakEven, until_s: float) -> None:
        """Write a megabyte and fetch it a few times, as long as there is time."""
        takes_s = self.latency_s + MB / self.bandwidth
        self.now += takes_s
        for _ in range(PROBES):
            if self.now + self.latency_s + takes_s > until_s:
                return
            with chooser.asking():
                self.now += self.latency_s * self.noisy()
            with chooser.fetching(Offer(nbytes=MB, encoded=1)) as fetch:
                self._fetch(fetch, MB)

    @property
    def fetch_s(self) -> float:
        """Seconds of a fetch without noise, what is then checked included."""
        batches = -(-self.nbytes // BATCH)
        return self.latency_s * batches + self.nbytes / self.bandwidth + self.nbytes / CHECK_BYTES_PER_S

    def lookup(self) -> Lookup:
        """Fetch the state, or compute it if that is what the chooser wants."""
        started, rebuild_s = self.now, self.rebuild_s * self.noisy()
        taken: Taken = "fetched"
        try:
            with self.chooser.asking():
                self.now += self.latency_s * self.noisy()
            with self.chooser.fetching(self.offer) as fetch:
                self._fetch(fetch, self.nbytes)
        except FetchGivenUp:
            taken = "given up"
        except FetchDeclined:
            taken = "computed"
        if taken != "fetched":
            self._compute(rebuild_s)
        return Lookup(taken, self.now - started, rebuild_s)

    def compute(self) -> None:
        """Build the state and tell the chooser."""
        self._compute(self.rebuild_s * self.noisy())

    def _compute(self, seconds: float) -> None:
        self.now += seconds
        self.chooser.built(encoded=self.offer.encoded, tokens=self.offer.tokens, seconds=seconds, prefill_s=seconds / 3)

    def noisy(self) -> float:
        """A factor that is 1 without noise."""
        return self.random.lognormvariate(0, self.noise) * (5 if self.random.random() < self.outliers else 1)

    def _fetch(self, fetch: Fetch, total: int) -> None:
        line = self.noisy()
        for start in range(0, total, BATCH):
            nbytes = min(BATCH, total - start)
            patience_s = fetch.patience_s(nbytes)
            takes_s = self.latency_s * self.noisy() + nbytes / self.bandwidth * line * self.noisy()
            if patience_s is not None and takes_s > patience_s:
                self.now += patience_s
                raise FetchGivenUp("late")
            self.now += takes_s
            fetch.arrived(nbytes)
        self.now += total / CHECK_BYTES_PER_S
        fetch.complete()


def running_ratios(lookups: Sequence[Timed]) -> list[float]:
    """After each lookup, the seconds of all so far over those of computing."""
    taken_s = accumulate(each.seconds for each in lookups)
    return [
        taken / rebuilt for taken, rebuilt in zip(taken_s, accumulate(each.rebuild_s for each in lookups), strict=True)
    ]


def above(ratios: Sequence[Sequence[float]], number: int) -> int:
    """Cells that are above 1.05 after so many of their lookups."""
    return sum(of_cell[number - 1] > 1.05 for of_cell in ratios)


def summary(ratios: Sequence[Sequence[float]]) -> str:
    """How cells stand after some of their lookups, in words."""
    lines = []
    for number in (1, 3, 10, 30, 60, 200):
        most = max(of_cell[number - 1] for of_cell in ratios)
        lines.append(
            f"time against computing after {number}: at most {most:.3f}, above 1.05 in {above(ratios, number)}"
        )
    return "\n".join(lines)
