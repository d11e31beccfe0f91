"""Run in another process: the stock `transformers` processors, which need torchvision, over a stand-in for it.

python -m tests.parity.stock_processors JOBS RESULTS, both files of `torch.save`. Jobs are dicts: `checkpoint`, and the
keywords of one call of the checkpoint's processor; `text` may be left out, then pixels alone are made. Results are
dicts of what each call returned, or the message of the ValueError it raised.

torchvision has no CPU wheel that fits every torch. The stand-in has the three functions that these processors call, as
torchvision computes them on uint8 CPU tensors; all the rest (sizes, order, folding, patches, text) is stock.
"""

import importlib.machinery
import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class InterpolationMode(Enum):
    NEAREST = "nearest"
    NEAREST_EXACT = "nearest-exact"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    BOX = "box"
    HAMMING = "hamming"
    LANCZOS = "lanczos"


def resize(image: Tensor, size: Sequence[int], interpolation: InterpolationMode, antialias: bool) -> Tensor:
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    flat = image.reshape(-1, *image.shape[-3:])
    resized = F.interpolate(flat, size=tuple(size), mode=interpolation.value, antialias=antialias)
    return resized.reshape(*image.shape[:-2], *size)


def normalize(image: Tensor, mean: Tensor, std: Tensor, inplace: bool) -> Tensor:
    return (image - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)


def grayscale_to_rgb(image: Tensor) -> Tensor:
    assert image.shape[-3] == 3
    return image


def install() -> None:
    """Put the stand-in where `import torchvision` finds it."""
    modules = {
        name: ModuleType(name)
        for name in (
            "torchvision",
            "torchvision.io",
            "torchvision.transforms",
            "torchvision.transforms.functional",
            "torchvision.transforms.v2",
            "torchvision.transforms.v2.functional",
        )
    }
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        module.__path__ = []
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    vars(modules["torchvision"])["__version__"] = "0.28.0"
    functions = {
        "InterpolationMode": InterpolationMode,
        "resize": resize,
        "normalize": normalize,
        "grayscale_to_rgb": grayscale_to_rgb,
        "pil_to_tensor": None,
    }
    for name in ("torchvision.transforms", "torchvision.transforms.functional", "torchvision.transforms.v2.functional"):
        vars(modules[name]).update(functions)
    sys.modules.update(modules)


def main(jobs: Path, results: Path) -> None:
    install()
    torch.set_num_threads(1)
    from transformers import AutoProcessor

    processors: dict[str, Any] = {}
    made = []
    for job in torch.load(jobs, weights_only=False):
        checkpoint = job.pop("checkpoint")
        processor = processors.setdefault(checkpoint, None) or AutoProcessor.from_pretrained(checkpoint)
        processors[checkpoint] = processor
        try:
            made.append({"output": dict(processor(**job, return_tensors="pt"))})
        except ValueError as error:
            made.append({"error": str(error)})
    torch.save(made, results)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
