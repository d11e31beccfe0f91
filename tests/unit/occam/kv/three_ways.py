"""The simulated tier and engine of `line.py` with three ways to a state: fetched, prefilled on embeddings, computed."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from occam.errors import FetchDeclined, FetchGivenUp
from occam.kv.break_even import BreakEven, Offer
from tests.unit.occam.kv.line import BATCH, CHECK_BYTES_PER_S, Line

Way = Literal["state", "embeddings", "computed"]
TOKENS = 100


class Taken(NamedTuple):
    """What a lookup came to, its seconds, and those of computing everything in its place."""

    way: Way
    seconds: float
    rebuild_s: float


@dataclass
class ThreeWays(Line):
    """A state of `nbytes` beside its media's embeddings, which are missing where they have no bytes.

    prefill: share of computing that the lower layers take
    """

    embeddings: int = 0
    prefill: float = 1 / 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tower = BreakEven(lambda: self.now)
        self.chooser = BreakEven(lambda: self.now, embeddings=self.tower)
        self.patches = self.nbytes // 1000
        self.state = Offer(nbytes=self.nbytes, encoded=self.patches, tokens=TOKENS, embeddings=self.embeddings or None)

    @property
    def ways_s(self) -> dict[Way, float]:
        """Seconds of each way without noise, behind a lookup that found the state's entry."""
        fetched = self.latency_s + self._line_s(self.embeddings) + self.prefill * self.rebuild_s
        ways: dict[Way, float] = {"state": self._line_s(self.nbytes), "computed": self.rebuild_s}
        return ways | ({"embeddings": fetched} if self.embeddings else {})

    def take(self) -> Taken:
        """A state, by whichever way the chooser wants."""
        started, rebuild_s = self.now, self.rebuild_s * self.noisy()
        way: Way = "state"
        if not self._fetched(self.chooser, self.state):
            way = self._built(rebuild_s)
        return Taken(way, self.now - started, rebuild_s)

    def build(self) -> None:
        """Compute all of it, nothing being there."""
        self._built(self.rebuild_s * self.noisy(), missing=True)

    def _built(self, rebuild_s: float, missing: bool = False) -> Way:
        prefill_s = self.prefill * rebuild_s
        tower_s, patches = rebuild_s - prefill_s, self.patches
        way: Way = "computed"
        if not missing and self._fetched(self.tower, Offer(nbytes=self.embeddings, encoded=self.patches)):
            tower_s, patches, way = 0.0, 0, "embeddings"
        self.now += tower_s + prefill_s
        self.chooser.built(encoded=patches, tokens=TOKENS, seconds=tower_s + prefill_s, prefill_s=prefill_s)
        return way

    def _fetched(self, chooser: BreakEven, offer: Offer) -> bool:
        """Whether an entry was asked for, was there, and came."""
        try:
            with chooser.asking():
                self.now += self.latency_s * self.noisy()
            if not offer.nbytes:
                chooser.missed()
                return False
            with chooser.fetching(offer) as fetch:
                self._fetch(fetch, offer.nbytes)
        except (FetchDeclined, FetchGivenUp):
            return False
        return True

    def _line_s(self, nbytes: int) -> float:
        return self.latency_s * -(-nbytes // BATCH) + nbytes / self.bandwidth + nbytes / CHECK_BYTES_PER_S
