"""Strategies `random` and `uniform`: what a selection has to beat, and on video often does not."""

import torch
from torch import Tensor


def random_mask(total: int, count: int, seed: int) -> Tensor:
    """`count` tokens of `total` by a seeded draw, bool [total] on the CPU.

    One seed gives nested sets for growing counts, on every device, and leaves the global generators alone.
    """
    order = torch.randperm(total, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return torch.zeros(total, dtype=torch.bool, device="cpu").index_fill(0, order[: max(count, 0)], True)


def uniform_mask(total: int, count: int) -> Tensor:
    """`count` tokens of `total` evenly apart in raster order, bool [total] on the CPU.

    Token (2 i + 1) total / (2 count), rounded down: the middle of the i-th of `count` equal stretches.
    """
    count = min(max(count, 0), total)
    steps = torch.arange(count, device="cpu")
    places = (2 * steps + 1) * total // max(2 * count, 1)
    return torch.zeros(total, dtype=torch.bool, device="cpu").index_fill(0, places, True)
