"""Rows of numbers in 8 bits: symmetric, in 127 steps of each row's own largest magnitude."""

import torch
from torch import Tensor

_STEPS = 127
# A row of zeros has some scale too, so nothing is divided by zero.
_LEAST_SCALE = torch.finfo(torch.float32).tiny


def quantize_rows(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [.., D] and float32 scales [.., 1] of numbers [.., D]: each is off by half a scale at most.

    A row that is not finite has a scale that is not, so that what is made of it says so.
    """
    rows = tensor.float()
    largest = rows.abs().amax(dim=-1, keepdim=True)
    # Rounded down: 127 scales of the largest float32 there is are still finite.
    scales = torch.nextafter(largest / _STEPS, torch.zeros_like(largest)).clamp_min_(_LEAST_SCALE)
    scales = torch.where(largest.isfinite(), scales, largest)
    return (rows / scales).round_().to(torch.int8), scales
