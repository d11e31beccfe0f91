"""What a prefix state was computed by, for the key that stands for it in a cache."""

from dataclasses import fields

import torch
import transformers

from occam.config import EngineConfig, OccamToken, Pruning
from occam.models.base import VideoLM
from occam.pruning import strategy_for


def key_facts(lm: VideoLM, config: EngineConfig, pruning: Pruning) -> dict[str, str | int | float]:
    """Every fact that two runs must share for their prefix states to be interchangeable; lambda2 is not one."""
    info = lm.info
    facts: dict[str, str | int | float] = {
        "model": info.digest,
        "config": info.config_digest,
        "text": info.text_digest,
        "preprocessing": info.preprocessing,
        "device": torch.device(config.device).type,
        "hardware": _hardware(torch.device(config.device)),
        "dtype": config.dtype,
        "quantization": config.quantization,
        "threads": config.threads,
        "batch_views": ", ".join(f"{kind} {lm.batch_views(kind)}" for kind in info.media),
        "chunk_frames": "whole" if strategy_for(pruning).whole else config.chunk_frames,
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "strategy": pruning.name,
    }
    early = {field.name: getattr(pruning, field.name) for field in fields(pruning) if field.name not in pruning.late}
    facts |= {name: str(value) if isinstance(value, tuple) else value for name, value in early.items()}
    if isinstance(pruning, OccamToken):
        facts["neurons"] = info.calibration.digest if info.calibration else ""
    return facts


def _hardware(device: torch.device) -> str:
    """What chooses the kernels, and by them the last bits: the CPU's instruction set, or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
