"""From logits to the next token, where it is not the likeliest."""

import torch
from torch import Tensor

from occam.config import SamplingParams
from occam.transfer import to_device


def seeded(params: SamplingParams) -> torch.Generator:
    """The chance of one answer."""
    return torch.Generator().manual_seed(params.seed)


def draw(logits: Tensor, params: SamplingParams, random: torch.Generator) -> int:
    """An id by seeded nucleus sampling, from float32 logits [V] on any device; the temperature is above 0.

    The race of exponentials by which `torch.multinomial` draws one, its chance from the CPU whatever the device.
    """
    shares, order = torch.softmax(logits / params.temperature, dim=-1).sort(descending=True)
    nucleus = shares.cumsum(0) - shares < params.top_p
    waits = to_device(torch.empty(len(logits)).exponential_(1, generator=random), logits.device)
    return int(order[(shares * nucleus / waits).argmax()])
