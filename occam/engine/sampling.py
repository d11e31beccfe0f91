"""From logits to the next tokens.

Legend: B sequences, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from occam.config import SamplingParams


def seeded(params: SamplingParams) -> torch.Generator:
    """The chance of one answer."""
    return torch.Generator().manual_seed(params.seed)


def choose(logits_BV: Tensor, asked: Sequence[tuple[SamplingParams, torch.Generator]]) -> list[int]:
    """The next id of each sequence from float32 logits: greedy at temperature 0, else seeded nucleus sampling."""
    greedy = logits_BV.argmax(dim=-1).tolist()
    return [
        best if params.temperature == 0 else _drawn(logits_V, params, random)
        for best, logits_V, (params, random) in zip(greedy, logits_BV, asked, strict=True)
    ]


def _drawn(logits_V: Tensor, params: SamplingParams, random: torch.Generator) -> int:
    shares, order = torch.softmax(logits_V.cpu() / params.temperature, dim=-1).sort(descending=True)
    nucleus = shares.cumsum(0) - shares < params.top_p
    return int(order[torch.multinomial(shares * nucleus, 1, generator=random)])
