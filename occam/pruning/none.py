"""Strategy `none`: the stock model, every token kept, CLS tokens included."""

from occam.config import NoPruning
from occam.pruning.strategy import Strategy


class KeepAll(Strategy):
    """No register, no scores, no cut: all decoder layers run on all tokens."""

    keep_cls = True

    def __init__(self, config: NoPruning) -> None:
        del config
