"""The tower run once for all strategies that see the same of it: an evaluation asks about one clip a hundred ways."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from occam.config import RegisterMode, RegisterPlacement
from occam.models.base import TowerOutput, VideoLM
from occam.types import FrameBatch

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class _Run:
    output: TowerOutput
    seconds: float


class RememberedTower:
    """A model that encodes each chunk of one clip once, and says what encoding it again would have taken.

    saved_s: seconds of the runs that were not made
    """

    def __init__(self, lm: VideoLM, clock: Clock) -> None:
        self.saved_s = 0.0
        self._lm = lm
        self._clock = clock
        self._runs: dict[tuple[Any, ...], _Run] = {}

    @property
    def model(self) -> VideoLM:
        """All that the model is, but for its tower."""
        return cast(VideoLM, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lm, name)

    def encode(
        self, chunks: Sequence[FrameBatch], register: RegisterMode | None, placement: RegisterPlacement
    ) -> list[TowerOutput]:
        """See `VideoLM`."""
        return [self._encode(media, register, placement) for media in chunks]

    def _encode(self, media: FrameBatch, register: RegisterMode | None, placement: RegisterPlacement) -> TowerOutput:
        key = (media.offset, len(media), register, placement)
        if key in self._runs:
            self.saved_s += self._runs[key].seconds
        else:
            started = self._clock()
            [output] = self._lm.encode([media], register, placement)
            self._runs[key] = _Run(output=output, seconds=self._clock() - started)
        return self._runs[key].output
