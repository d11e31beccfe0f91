"""Muon against torch's own, and the learning rate's course."""

import pytest
import torch
from torch import nn

from pipelines.training.optim import Muon, build_optimizers, orthogonalize, set_rate


def test_muon_is_torchs_but_for_bf16():
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(*shape) * 0.02) for shape in ((48, 96), (96, 48), (48, 48), (48, 96))]
    theirs = [nn.Parameter(value.detach().clone()) for value in ours]
    start = [value.detach().clone() for value in ours]
    one = Muon(ours, lr=1e-2)
    two = torch.optim.Muon(theirs, lr=1e-2, momentum=0.95, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        one.step()
        two.step()
    for mine, other, before in zip(ours, theirs, start, strict=True):
        assert (mine - other).norm() < 0.02 * (mine - before).norm()


@pytest.mark.parametrize("shape", [(2, 32, 80), (2, 80, 32), (1, 32, 32)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)))
    assert 0.3 < values.min() <= values.max() < 1.3


def test_the_rate_rises_holds_and_falls_to_zero():
    layer = nn.Linear(4, 4)
    optimizers = build_optimizers(layer, (), muon_lr=1.0, adamw_lr=0.5)
    seen = []
    for step in range(100):
        set_rate(optimizers, step, steps=100, warmup=10, decay=0.4)
        seen.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
    muon, adamw = zip(*seen, strict=True)
    assert muon[0] == pytest.approx(0.1)
    assert muon[9:61] == pytest.approx([1.0] * 52)
    assert muon[80] == pytest.approx(0.5)
    assert muon[99] == pytest.approx(0.025)
    assert adamw[30] == pytest.approx(0.5)


def test_every_trained_parameter_has_exactly_one_optimizer():
    body, head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), nn.Embedding(7, 4)
    optimizers = build_optimizers(body, (head,), muon_lr=1.0)
    given = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, given)) == sorted(map(id, [*body.parameters(), *head.parameters()]))
