"""`occam models`: the models at hand and the families of those that are not, without loading a model."""

import json
from dataclasses import asdict, dataclass

from occam.calibration import ARTEFACT_NAME, Calibration
from occam.errors import InvalidInput, NotCalibrated, UnknownModel
from occam.models.checkpoint import embedded_models, locate, weights_digest
from occam.models.registry import FAMILIES, adapter_of, family_of


@dataclass(frozen=True, kw_only=True)
class FamilyEntry:
    """A family of checkpoints: its `model_type`, what it takes, and how many frames of a video by default."""

    family: str
    media: tuple[str, ...]
    frames: int

    def __str__(self) -> str:
        frames = f"{self.frames} frames" if "video" in self.media else ""
        return f"{self.family:<14}{' and '.join(self.media):<18}{frames}".rstrip()


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model at hand; `calibration` is what its artefact says (cut, register, rule, ...), None without a valid one.

    family: None where the checkpoint cannot be told
    calibrated: whether strategy `occam` can run
    problem: why the artefact or the checkpoint is of no use: `stale`, `broken` or `unusable`, and a sentence; else None
    """

    name: str
    family: str | None
    calibrated: bool
    calibration: Calibration | None
    problem: str | None

    def __str__(self) -> str:
        return f"{self.name:<24}{self.family or '?':<14}{self._calibration}"

    @property
    def _calibration(self) -> str:
        found = self.calibration
        if self.problem is not None:
            return " ".join(self.problem.split())
        if found is None:
            return "not calibrated: strategy none"
        if not self.calibrated:
            return f"{len(found.neurons)} register neurons, no lambdas: strategy none"
        return f"{found.verdict}; cut {found.cut}, lambda1 {found.lambda1:.4g}, lambda2 {found.lambda2:.4g}"


def models(names: list[str]) -> list[ModelEntry]:
    """The models of these names or paths; the embedded ones, if none are named."""
    return [_entry(name) for name in names or embedded_models()]


def families() -> list[FamilyEntry]:
    """Every family that checkpoints are read of."""
    return [
        FamilyEntry(family=family, media=adapter_of(family).media, frames=adapter_of(family).frames)
        for family in FAMILIES
    ]


def as_json(listed: list[ModelEntry], known: list[FamilyEntry]) -> str:
    """Both lists as one JSON object."""
    return json.dumps({"models": [asdict(m) for m in listed], "families": [asdict(f) for f in known]})


def _entry(name: str) -> ModelEntry:
    directory = locate(name)
    family: str | None = None
    found: Calibration | None = None
    problem: str | None = None
    try:
        family = family_of(directory)
        artefact = directory / ARTEFACT_NAME
        found = Calibration.load(artefact, weights_digest(directory)) if artefact.exists() else None
    except NotCalibrated as error:
        problem = f"stale: {error.message}"
    except UnknownModel as error:
        problem = f"unusable: {error.message}"
    except InvalidInput as error:
        problem = f"broken: {error.message}"
    return ModelEntry(
        name=name,
        family=family,
        calibrated=found is not None and found.complete,
        calibration=found,
        problem=problem,
    )
