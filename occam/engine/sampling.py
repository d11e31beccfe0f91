"""From logits to the next token."""

import torch
from torch import Tensor

from occam.config import SamplingParams


class Sampler:
    """Greedy at temperature 0, else seeded nucleus sampling."""

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self.generator = torch.Generator().manual_seed(params.seed)

    def __call__(self, logits: Tensor) -> int:
        """The next id from float32 logits [V]."""
        if self.params.temperature == 0:
            return int(logits.argmax())
        shares, order = torch.softmax(logits.cpu() / self.params.temperature, dim=-1).sort(descending=True)
        nucleus = shares.cumsum(0) - shares < self.params.top_p
        return int(order[torch.multinomial(shares * nucleus, 1, generator=self.generator)])
