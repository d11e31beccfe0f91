"""From a model's name to a loaded adapter; a family's module is imported when one of its models is asked for."""

import importlib
import json
from pathlib import Path

from occam.calibration import ARTEFACT_NAME, Calibration
from occam.config import EngineConfig
from occam.errors import UnknownModel
from occam.models.base import VideoLM
from occam.models.checkpoint import locate, weights_digest

FAMILIES = {"video_llava": ("occam.models.video_llava", "VideoLlava")}
"""`model_type` of the checkpoint's config -> (module, adapter)."""


def family_of(directory: Path) -> str:
    """The checkpoint's family; UnknownModel where no adapter knows it."""
    family = str(json.loads((directory / "config.json").read_text()).get("model_type"))
    if family not in FAMILIES:
        raise UnknownModel(f"Models of type {family!r} are not supported; supported: {', '.join(FAMILIES)}.", "model")
    return family


def load_model(config: EngineConfig) -> VideoLM:
    """Load the model that `config` names, with its calibration where one lies beside it."""
    directory = locate(config.model)
    module, name = FAMILIES[family_of(directory)]
    digest = weights_digest(directory)
    artefact = directory / ARTEFACT_NAME
    calibration = Calibration.load(artefact, digest) if artefact.exists() else None
    adapter = getattr(importlib.import_module(module), name)
    loaded: VideoLM = adapter.load(config.model, directory, digest, calibration, config)
    return loaded
