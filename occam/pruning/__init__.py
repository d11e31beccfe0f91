"""Pruning strategies: one file per method, pure functions over scores; `compact` alone applies a mask."""

from occam.config import NoPruning, Pruning
from occam.pruning.none import KeepAll
from occam.pruning.occam_token import OccamTokenStrategy
from occam.pruning.strategy import Strategy


def strategy_for(pruning: Pruning) -> Strategy:
    """The strategy that a configuration names."""
    return KeepAll() if isinstance(pruning, NoPruning) else OccamTokenStrategy(pruning)
