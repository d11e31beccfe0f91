"""A simulated tier and engine on a clock of their own: what a lookup takes on a line of given latency and bandwidth."""

from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

from occam.errors import FetchDeclined, FetchGivenUp
from occam.kv.break_even import BreakEven, Fetch, Offer

MB = 1_000_000
BATCH = 8 * MB
CHECK_BYTES_PER_S = 1000 * MB

Taken = Literal["fetched", "computed", "given up"]


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
