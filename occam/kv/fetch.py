"""A fetch under way, and how long one may wait for the rest of it."""

from collections.abc import Callable
from math import inf

from occam.errors import FetchGivenUp

LATE = 0.05  # of the seconds that computing takes are waited for any batch, and are the least that a try may cost


class Fetch:
    """One fetch under way.

    hoped_s: seconds that all bytes should take; rebuild_s: that computing would; both None where nothing is known
    most_s: seconds after which it is given up in any case
    """

    def __init__(
        self,
        nbytes: int,
        clock: Callable[[], float],
        hoped_s: float | None = None,
        rebuild_s: float | None = None,
        most_s: float = inf,
    ) -> None:
        self._nbytes = nbytes
        self._clock = clock
        self._hoped_s = hoped_s
        self._rebuild_s = rebuild_s
        self._most_s = most_s
        self._started_s = clock()
        self._arrived = 0
        self.complete_s: float | None = None

    def patience_s(self, nbytes: int) -> float | None:
        """Seconds that the next `nbytes` may take; raises FetchGivenUp where it is quicker to compute.

        Twice what they should take, by what was hoped or by the pace so far, whichever is slower; at least `LATE` of
        computing, and None (no limit) while it is not known what that takes. So a line that is dead from the start
        costs `LATE` of computing, or twice the first batch's time; one that breaks down costs that on top of what it
        took until then, which is less than computing takes. A try costs `most_s`.
        """
        if self._hoped_s is None or self._rebuild_s is None:
            return None
        left_s = self._most_s - self.elapsed_s
        if left_s <= 0:
            raise FetchGivenUp("The try of a line has taken as long as it may.")
        per_byte = self._hoped_s / self._nbytes
        if self._arrived:
            per_byte = max(per_byte, self.elapsed_s / self._arrived)
            if per_byte * (self._nbytes - self._arrived) > self._rebuild_s:
                raise FetchGivenUp("The rest of the state would take longer to fetch than all of it to compute.")
        return min(max(2 * per_byte * nbytes, LATE * self._rebuild_s), left_s)

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
