"""From logits to the next token, where it is not the likeliest."""

import torch
from torch import Tensor

from occam.config import SamplingParams


def seeded(params: SamplingParams) -> torch.Generator:
    """The chance of one answer."""
    return torch.Generator().manual_seed(params.seed)


def draw(logits: Tensor, params: SamplingParams, random: torch.Generator) -> int:
    """An id by seeded nucleus sampling, from float32 logits [V]; the temperature is above 0."""
    shares, order = torch.softmax(logits.cpu() / params.temperature, dim=-1).sort(descending=True)
    nucleus = shares.cumsum(0) - shares < params.top_p
    return int(order[torch.multinomial(shares * nucleus, 1, generator=random)])
