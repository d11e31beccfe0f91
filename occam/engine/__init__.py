"""The engine: encode, stage I, lower layers, stage II, upper layers, decode."""

from occam.engine.engine import Engine

__all__ = ["Engine"]
