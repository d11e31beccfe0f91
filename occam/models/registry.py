"""From a model's name to a loaded adapter; a family's module is imported when one of its models is asked for."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from occam.calibration import ARTEFACT_NAME, Calibration
from occam.config import EngineConfig
from occam.errors import InvalidInput, UnknownModel
from occam.models.base import VideoLM
from occam.models.batches import batches_of
from occam.models.checkpoint import locate, read_settings, weights_digest

FAMILIES = {
    "qwen3_vl": ("occam.models.qwen3_vl", "Qwen3VL"),
    "qwen3_vl_moe": ("occam.models.qwen3_vl", "Qwen3VLMoe"),
    "video_llava": ("occam.models.video_llava", "VideoLlava"),
    "llava": ("occam.models.llava", "Llava"),
    "llava_next": ("occam.models.llava", "LlavaNext"),
}
"""`model_type` of the checkpoint's config -> (module, adapter)."""


def family_of(directory: Path) -> str:
    """The checkpoint's family; UnknownModel where no adapter knows it, InvalidInput where its config is broken."""
    family = str(read_settings(directory / "config.json").get("model_type"))
    if family not in FAMILIES:
        raise UnknownModel(f"Models of type {family!r} are not supported; supported: {', '.join(FAMILIES)}.", "model")
    return family


def stored_calibration(model: str, weights: str) -> Calibration | None:
    """The artefact beside a checkpoint, with or without lambdas; None where there is none for these weights."""
    artefact = locate(model) / ARTEFACT_NAME
    if not artefact.exists():
        return None
    try:
        return Calibration.load(artefact, weights)
    except InvalidInput:
        return None


def adapter_of(family: str) -> type[Any]:
    """The adapter's class; its `media` and `frames` say what the family takes."""
    module, name = FAMILIES[family]
    adapter: type[Any] = getattr(importlib.import_module(module), name)
    return adapter


def load_model(config: EngineConfig, calibrated: bool = True) -> VideoLM:
    """Load the model that `config` names, by default with its calibration where one lies beside it."""
    directory = locate(config.model)
    loaded = adapter_of(family_of(directory)).load(config.model, directory, weights_digest(directory), config)
    lm: VideoLM = replace(loaded, batches=batches_of(config, loaded.info.group))
    artefact = directory / ARTEFACT_NAME
    if not calibrated or not artefact.exists():
        return lm
    calibration = Calibration.load(artefact, lm.info.digest)
    return lm.calibrated(calibration) if calibration.complete else lm
