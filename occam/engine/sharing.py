"""Which chunks of several requests go through the tower together."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from occam.config import Pruning
from occam.models.base import VideoLM
from occam.pruning import strategy_for
from occam.stats import StageStats
from occam.types import FrameBatch


@dataclass(frozen=True, kw_only=True)
class TowerLoad:
    """What a chunk asks of the tower.

    kind: what it has in common with those that may share its batches, None where none may
    views: that it brings; room: for so many more in the last of its batches, which else are blank
    """

    kind: Hashable
    views: int
    room: int


def tower_load(lm: VideoLM, media: FrameBatch, pruning: Pruning) -> TowerLoad:
    """Of one chunk; nothing is run. A strategy that wants a whole video gets its batches for itself."""
    strategy, batch = strategy_for(pruning), lm.batch_views(media.kind)
    if not batch or strategy.whole:
        return TowerLoad(kind=None, views=0, room=0)
    views, kind = len(lm.shown(media)), (media.kind, strategy.register, strategy.placement, lm.grid(media))
    return TowerLoad(kind=kind, views=views, room=-views % batch)


def sharing(waiting: Sequence[TowerLoad]) -> list[int]:
    """Which of those that wait the tower takes next: the first, and of its kind whom its batches have room for.

    Nobody waits for company: it is whoever came while the engine was at work.
    """
    room, together = waiting[0].room, [0]
    for place, other in enumerate(waiting[1:], start=1):
        if waiting[0].kind is not None and other.kind == waiting[0].kind and other.views <= room:
            together.append(place)
            room -= other.views
    return together


def shared(stats: Sequence[StageStats]) -> list[StageStats]:
    """Of one pass, a stage of each chunk in it: its seconds divided by the tokens that went in."""
    if len(stats) == 1:
        return list(stats)
    tokens = sum(stage.tokens_in for stage in stats)
    return [replace(stage, shared_s=stage.seconds * stage.tokens_in / tokens) for stage in stats]
