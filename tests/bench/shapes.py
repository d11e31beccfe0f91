"""Weights of real dimensions made where they are used: written to disk and read again, they would take minutes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from transformers import PreTrainedModel

from occam.calibration import ARTEFACT_NAME
from occam.config import EngineConfig
from occam.models import qwen3_vl, video_llava
from tests import real_checkpoints


@contextmanager
def made_in_place() -> Iterator[None]:
    """While it lasts, the folder of a real checkpoint's dimensions has the small one's weights, which nobody reads."""
    with (
        mock.patch.object(real_checkpoints, "_replace", _configured),
        mock.patch.object(video_llava, "load_stock", _random),
        mock.patch.object(qwen3_vl, "load_stock", _random),
    ):
        yield


def _configured(folder: Path, build: Callable[[], PreTrainedModel]) -> None:
    """The configuration alone of what would be built."""
    (folder / ARTEFACT_NAME).unlink()
    with torch.device("meta"):
        build().config.save_pretrained(folder)


def _random(cls: type[PreTrainedModel], directory: Path, config: EngineConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    settings = cls.config_class.from_pretrained(directory)
    with torch.device(config.device):
        model = cls._from_config(settings, dtype=getattr(torch, config.dtype), attn_implementation="sdpa")
    return model.eval().requires_grad_(False)
