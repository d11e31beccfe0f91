"""From logits to the next tokens, of all that run together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from occam.config import SamplingParams
from occam.transfer import to_device, upload


def seeded(params: SamplingParams) -> torch.Generator:
    """The chance of one answer."""
    return torch.Generator().manual_seed(params.seed)


def choose(logits_BV: Tensor, params: Sequence[SamplingParams], chances: Sequence[torch.Generator]) -> list[int]:
    """The next id of each: the likeliest at temperature 0, else one by its own chance; the device is waited for once.

    logits_BV: float32, on any device; chances: `seeded`, of which only the drawn ones' are used
    """
    ids_B = logits_BV.argmax(dim=-1)
    drawn = [row for row, own in enumerate(params) if own.temperature > 0]
    if drawn:
        rows = upload(drawn, logits_BV.device)
        ids_B[rows] = draw(logits_BV[rows], [params[row] for row in drawn], [chances[row] for row in drawn])
    ids: list[int] = ids_B.tolist()
    return ids


def draw(logits_BV: Tensor, params: Sequence[SamplingParams], chances: Sequence[torch.Generator]) -> Tensor:
    """Ids [B] by seeded nucleus sampling; every temperature is above 0.

    The race of exponentials by which `torch.multinomial` draws one, its chance from the CPU whatever the device.
    """
    device = logits_BV.device
    temperatures, tops = (
        to_device(torch.tensor(values, dtype=torch.float32)[:, None], device)
        for values in ([own.temperature for own in params], [own.top_p for own in params])
    )
    shares, order = torch.softmax(logits_BV / temperatures, dim=-1).sort(descending=True)
    nucleus = shares.cumsum(-1) - shares < tops
    waits = torch.empty(logits_BV.shape)
    for row, chance in zip(waits, chances, strict=True):
        row.exponential_(1, generator=chance)
    winners = (shares * nucleus / to_device(waits, device)).argmax(dim=-1, keepdim=True)
    return order.gather(-1, winners).squeeze(-1)
