"""The calibration artefact: what OccamToken needs to know of one checkpoint, as a small JSON beside it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from occam.config import Evaluators, OccamToken, RegisterMode
from occam.errors import InvalidInput
from occam.registers import Neuron

ARTEFACT_NAME = "occam.json"
ARTEFACT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """One checkpoint's calibration.

    weights: SHA-256 of the checkpoint's weights; an artefact of other weights is refused
    cut, register, neurons, lambda1, lambda2, evaluators: the defaults of `OccamToken` for this model; without lambdas
    it is what `occam registers` found, and strategy `occam` waits for `occam calibrate`
    statistics: what was measured when it was made (the finder's acceptance figures, retention)
    """

    weights: str
    cut: int
    register: RegisterMode
    neurons: tuple[Neuron, ...] = ()
    lambda1: float | None = None
    lambda2: float | None = None
    evaluators: Evaluators = "turn"
    statistics: Mapping[str, float] = field(default_factory=dict)
    version: int = ARTEFACT_VERSION

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
            evaluators=self.evaluators,
        )

    @property
    def digest(self) -> str:
        """SHA-256 of what changes a prefix state: the register's mode and neurons."""
        return hashlib.sha256(json.dumps([self.register, self.neurons]).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write the artefact as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path, weights: str) -> "Calibration":
        """Read an artefact made for `weights` (SHA-256); InvalidInput if it is another's, or of another version."""
        content = json.loads(path.read_text())
        if content.get("version") != ARTEFACT_VERSION:
            raise InvalidInput(
                f"The calibration {path.name} has version {content.get('version')}, this release reads "
                f"{ARTEFACT_VERSION}. Run `occam calibrate` again.",
                "model",
            )
        if content["weights"] != weights:
            raise InvalidInput(
                f"The calibration {path.name} was made for weights {content['weights'][:12]}, the checkpoint has "
                f"{weights[:12]}. Run `occam calibrate` again.",
                "model",
            )
        neurons = tuple((int(block), int(unit)) for block, unit in content.pop("neurons"))
        return cls(neurons=neurons, **content)
