"""Pruning strategies: one file per method, pure functions over scores; `compact` alone applies a mask."""

from collections.abc import Callable
from typing import Any

from occam import config
from occam.pruning import budgeted
from occam.pruning.none import KeepAll
from occam.pruning.nothing import KeepNothing
from occam.pruning.occam_token import OccamTokenStrategy
from occam.pruning.strategy import Strategy
from occam.pruning.systematic import SystematicStrategy

_RULES: dict[type[config.Pruning], Callable[[Any], Strategy]] = {
    config.NoPruning: KeepAll,
    config.Nothing: KeepNothing,
    config.OccamToken: OccamTokenStrategy,
    config.Systematic: SystematicStrategy,
    config.Random: budgeted.RandomStrategy,
    config.Uniform: budgeted.UniformStrategy,
    config.FastV: budgeted.FastVStrategy,
    config.IWP: budgeted.IWPStrategy,
    config.SparseVLM: budgeted.SparseVLMStrategy,
    config.VisionZip: budgeted.VisionZipStrategy,
    config.DivPrune: budgeted.DivPruneStrategy,
    config.CDPruner: budgeted.CDPrunerStrategy,
    config.EVS: budgeted.EVSStrategy,
    config.VidCom2: budgeted.VidCom2Strategy,
    config.DTD: budgeted.DTDStrategy,
}


def strategy_for(pruning: config.Pruning) -> Strategy:
    """The strategy that a configuration names."""
    return _RULES[type(pruning)](pruning)
