"""The stock `transformers` processors, which need torchvision, over a stand-in for it, in a process of their own.

torchvision has no CPU wheel that fits every torch. The stand-in has the five functions that these processors call, as
torchvision computes them on uint8 CPU tensors; all the rest (sizes, order, folding, patches, text) is stock.
"""

import importlib.machinery
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def resave(checkpoints: Sequence[Path], folders: Sequence[Path]) -> None:
    """Each checkpoint's processor and tokenizer as this release of transformers writes them, into its folder."""
    run = "from tests.parity.stock_processors import write_again; write_again({0!r}, {1!r})"
    names = [[str(path) for path in paths] for paths in (checkpoints, folders)]
    command = [sys.executable, "-W", "error", "-c", run.format(*names)]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True)


def process(calls: Sequence[tuple[Path, dict[str, Any]]]) -> list[Any]:
    """What each checkpoint's processor returns for its call's keywords; a ValueError that it raises, as its message."""
    with tempfile.TemporaryDirectory() as folder:
        jobs, results = Path(folder) / "jobs", Path(folder) / "results"
        torch.save([(str(checkpoint), call) for checkpoint, call in calls], jobs)
        command = ["-W", "error", "-m", "tests.parity.stock_processors", str(jobs), str(results)]
        subprocess.run([sys.executable, *command], cwd=Path(__file__).parents[2], check=True)
        returned: list[Any] = torch.load(results, weights_only=False)
    return returned


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


def pad(image: Tensor, padding: Sequence[int], fill: float | Sequence[float] = 0) -> Tensor:
    """padding: left, top, right, bottom; fill: of all channels or of each."""
    left, top, right, bottom = padding
    channels, height, width = image.shape[-3:]
    colour = torch.tensor(fill).expand(channels).to(image.dtype).view(-1, 1, 1)
    padded = colour.expand(*image.shape[:-2], top + height + bottom, left + width + right).clone()
    padded[..., top : top + height, left : left + width] = image
    return padded


def crop(image: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    return image[..., top : top + height, left : left + width]


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
        "pad": pad,
        "crop": crop,
        "grayscale_to_rgb": grayscale_to_rgb,
        "pil_to_tensor": None,
    }
    for name in ("torchvision.transforms", "torchvision.transforms.functional", "torchvision.transforms.v2.functional"):
        vars(modules[name]).update(functions)
    sys.modules.update(modules)


def write_again(checkpoints: Sequence[str], folders: Sequence[str]) -> None:
    install()
    from transformers import AutoProcessor

    for checkpoint, folder in zip(checkpoints, folders, strict=True):
        AutoProcessor.from_pretrained(checkpoint).save_pretrained(folder)


def main(jobs: Path, results: Path) -> None:
    install()
    torch.set_num_threads(1)
    from transformers import AutoProcessor

    processor = cache(AutoProcessor.from_pretrained)
    returned: list[Any] = []
    for checkpoint, call in torch.load(jobs, weights_only=False):
        try:
            returned.append(dict(processor(checkpoint)(**call, return_tensors="pt")))
        except ValueError as error:
            returned.append(str(error))
    torch.save(returned, results)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
