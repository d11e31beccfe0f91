"""The calibration artefact: what OccamToken needs to know of one checkpoint, as a small JSON beside it."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from occam.config import Evaluators, OccamToken, RegisterMode, Rule
from occam.errors import InvalidInput, NotCalibrated
from occam.registers import Neuron

ARTEFACT_NAME = "occam.json"
ARTEFACT_VERSION = 3


def _is_natural(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_lambda(value: Any) -> bool:
    return value is None or (_is_number(value) and value >= 0)


def _are_pairs(value: Any) -> bool:
    return isinstance(value, tuple) and all(
        isinstance(pair, tuple) and len(pair) == 2 and all(map(_is_natural, pair)) for pair in value
    )


def _are_statistics(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_number, value.values()))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "weights": (lambda value: isinstance(value, str), "a text"),
    "cut": (lambda value: _is_natural(value) and value >= 1, "an integer of at least 1"),
    "register": (lambda value: value in get_args(RegisterMode), f"one of {', '.join(get_args(RegisterMode))}"),
    "rule": (lambda value: value in get_args(Rule), f"one of {', '.join(get_args(Rule))}"),
    "neurons": (_are_pairs, "pairs of integers of at least 0"),
    "lambda1": (_is_lambda, "a finite number of at least 0, or null"),
    "lambda2": (_is_lambda, "a finite number of at least 0, or null"),
    "searched": (lambda value: isinstance(value, str), "a text"),
    "measured": (lambda value: value is None or isinstance(value, str), "a text, or null"),
    "evaluators": (lambda value: value in get_args(Evaluators), f"one of {', '.join(get_args(Evaluators))}"),
    "statistics": (_are_statistics, "finite numbers by name"),
}
"""Of every field of an artefact, what holds of its value, and how to say that."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """One checkpoint's calibration.

    weights: SHA-256 of the checkpoint's weights; an artefact of other weights is refused
    cut, register, rule, neurons, lambda1, lambda2, evaluators: the defaults of `OccamToken` for this model; without
    lambdas it is what `occam registers` found, and strategy `occam` waits for `occam calibrate`
    searched, measured: digests of the clips and questions that neurons were searched on, and lambdas measured on
    statistics: what was measured when it was made (the finder's acceptance figures, the ablation, retention)
    """

    weights: str
    cut: int
    register: RegisterMode
    rule: Rule = "register"
    neurons: tuple[Neuron, ...] = ()
    lambda1: float | None = None
    lambda2: float | None = None
    searched: str = ""
    measured: str | None = None
    evaluators: Evaluators = "turn"
    statistics: Mapping[str, float] = field(default_factory=dict)
    version: int = ARTEFACT_VERSION

    def __post_init__(self) -> None:
        for name, (holds, description) in _FIELDS.items():
            value = getattr(self, name)
            if not holds(value):
                raise InvalidInput(f"A calibration's {name} must be {description}, got {str(value)[:80]!r}.", "model")

    @property
    def complete(self) -> bool:
        """Whether strategy `occam` can run by it."""
        return self.lambda1 is not None and self.lambda2 is not None

    @property
    def defaults(self) -> OccamToken:
        """The strategy as calibrated; ValueError before it is complete."""
        if self.lambda1 is None or self.lambda2 is None:
            raise ValueError("a calibration without lambdas has no defaults")
        return OccamToken(
            lambda1=self.lambda1,
            lambda2=self.lambda2,
            cut=self.cut,
            register=self.register,
            rule=self.rule,
            evaluators=self.evaluators,
        )

    @property
    def verdict(self) -> str:
        """The default reference and, where the published rule gave fewer right answers, by how much."""
        said = f"default reference: {self.register}, rule {self.rule}"
        figures = self.statistics
        if not figures.keys() >= {"accuracy", "accuracy_published", "questions"}:
            return said
        worse = 100 * (figures["accuracy"] - figures["accuracy_published"])
        if worse <= 0:
            return said
        return f"{said}; the published rule was worse by {worse:.1f} points on {figures['questions']:.0f} questions"

    @property
    def digest(self) -> str:
        """SHA-256 of what changes a prefix state: the register's mode and neurons."""
        return hashlib.sha256(json.dumps([self.register, self.neurons]).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the artefact as JSON, in one step; the one that was there stays beside it as `NAME.bak`.

        InvalidInput where the directory cannot be written to.
        """
        fresh = path.with_name(f"{path.name}.new")
        try:
            fresh.write_text(json.dumps(asdict(self), indent=1) + "\n")
            if path.exists():
                shutil.copyfile(path, path.with_name(f"{path.name}.bak"))
            os.replace(fresh, path)
        except OSError as error:
            raise InvalidInput(f"{path} cannot be written: {error.strerror}.", "model") from error

    @classmethod
    def load(cls, path: Path, weights: str) -> "Calibration":
        """Read an artefact made for `weights` (SHA-256).

        NotCalibrated for a stale one, of other weights or another release; InvalidInput for one that is broken.
        """
        try:
            content = json.loads(path.read_text())
        except OSError as error:
            raise InvalidInput(f"The calibration {path.name} cannot be read: {error.strerror}.", "model") from error
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"The calibration {path.name} is not JSON.", "model") from error
        if not isinstance(content, dict) or "version" not in content:
            raise InvalidInput(f"The calibration {path.name} names no version.", "model")
        if content["version"] != ARTEFACT_VERSION:
            raise NotCalibrated(
                f"The calibration {path.name} has version {str(content['version'])[:12]}, this release reads "
                f"{ARTEFACT_VERSION}. Run `occam calibrate` again.",
                "model",
            )
        names = {field.name for field in fields(cls)}
        if content.keys() != names:
            raise InvalidInput(
                f"The calibration {path.name} must have exactly the fields {', '.join(sorted(names))}.", "model"
            )
        if content["weights"] != weights:
            raise NotCalibrated(
                f"The calibration {path.name} was made for weights {str(content['weights'])[:12]}, the checkpoint has "
                f"{weights[:12]}. Run `occam calibrate` again.",
                "model",
            )
        return cls(**content | {"neurons": _tuple(content["neurons"], of=_tuple)})


def _tuple(value: Any, of: Callable[[Any], Any] = lambda item: item) -> Any:
    """A list of JSON as a tuple, its items through `of`; anything else as it is."""
    return tuple(map(of, value)) if isinstance(value, list) else value
