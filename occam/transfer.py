"""From the host to the device, where a GPU needs not be waited for, and where it must be: the one place that knows."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the CPU on `device`, in `dtype` if one is named; for a GPU through pinned memory, behind its queue.

    The pinned copy is not reused before it has been read: torch's allocator sees to that.
    """
    tensor = tensor.to(dtype or tensor.dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def upload(ids: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers as int64 [N] on `device`."""
    return to_device(torch.tensor(ids, dtype=torch.int64), device)


def wait_for(device: str) -> None:
    """Return when a GPU has done all that it was given; a CPU has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
