"""Seconds of several things run in turn, so that what disturbs the machine disturbs them alike."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.bench.stopwatch import Stopwatch

Run = Callable[[], object]


@dataclass(frozen=True)
class Rounds:
    """Seconds by name, one of each round."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Of one of them."""
        return statistics.median(self.seconds[name])

    def ratio(self, over: str, under: str) -> float:
        """Median of the rounds' own ratios."""
        pairs = zip(self.seconds[over], self.seconds[under], strict=True)
        return statistics.median(one / other for one, other in pairs)


def alternating(device: str, runs: Mapping[str, Run], repeats: int) -> Rounds:
    """Every run in turn, `repeats` times, behind one round that does not count; a GPU is waited for round each."""
    watch = Stopwatch(device)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            started = watch.now()
            run()
            seconds[name].append(watch.now() - started)
    return Rounds(seconds)
