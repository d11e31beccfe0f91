"""What an evaluation is asked to do, as the command line says it."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from occam.errors import InvalidInput

Option = str | int | float | bool

FULL = "none"
CONTROL = "random"
FLOOR = "nothing"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A strategy with options: `random`, or `occam:register=mean_threshold:cut=4`; the text is its label."""

    label: str
    name: str
    options: tuple[tuple[str, Option], ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """InvalidInput for an option without a value."""
        name, *given = text.strip().split(":")
        if not name or any("=" not in option for option in given):
            raise InvalidInput(f"A strategy is NAME or NAME:OPTION=VALUE:..., got {text!r}.", "strategies")
        pairs = (option.split("=", 1) for option in given)
        return cls(label=text.strip(), name=name, options=tuple((key, _value(value)) for key, value in pairs))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An evaluation.

    tasks: `embedded`, `FILE.jsonl` or `NAME:FOLDER`; budgets: average shares of the patches kept, in (0, 1]
    out: a folder, with one of its own for each task; limit: questions of a task; seed: of what is drawn
    against: strategies that the others are compared with, those among them that are run
    tuning: clips set aside to set thresholds on; pictures: clips whose kept patches are drawn
    """

    tasks: tuple[str, ...]
    strategies: tuple[Spec, ...]
    budgets: tuple[float, ...]
    out: Path
    against: tuple[str, ...] = (FULL, CONTROL)
    limit: int | None = None
    seed: int = 0
    tuning: int = 50
    pictures: int = 3

    @classmethod
    def of(cls, tasks: Sequence[str], strategies: str, budgets: str, against: str, out: str, **numbers: Any) -> "Plan":
        """From the command line's texts, lists with commas."""
        try:
            shares = tuple(float(text) for text in budgets.split(","))
        except ValueError:
            raise InvalidInput(f"Budgets are numbers with commas between them, got {budgets!r}.", "budgets") from None
        specs = tuple(Spec.parse(text) for text in strategies.split(","))
        compared = tuple(text.strip() for text in against.split(","))
        return cls(tasks=tuple(tasks), strategies=specs, budgets=shares, against=compared, out=Path(out), **numbers)

    def __post_init__(self) -> None:
        for budget in self.budgets:
            if not 0 < budget <= 1:
                raise InvalidInput(f"A budget is a share above 0 and up to 1, got {budget:g}.", "budgets")
        for name, least in (("limit", 1), ("seed", 0), ("tuning", 1), ("pictures", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidInput(f"{name} must be at least {least}, got {value}.", name)
        for name, listed in (
            ("strategies", [spec.label for spec in self.strategies]),
            ("budgets", list(self.budgets)),
            ("task", list(self.tasks)),
        ):
            if not listed or len(set(listed)) < len(listed):
                raise InvalidInput(f"{name} must name something, and nothing twice, got {listed}.", name)


def _value(text: str) -> Option:
    """A number or truth value where it is one, else the text."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, bool | int | float) else text
