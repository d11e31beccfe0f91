"""Qwen3-VL's tower: planted register neurons, mutual scores in row blocks, and segments that know nothing of others."""

import pytest
import torch
from torch import Tensor
from transformers import Qwen3VLVisionConfig, Qwen3VLVisionModel

from occam.models import qwen_tower
from occam.models.qwen_tower import Grid, QwenTower
from occam.registers import Watch, find_register_neurons, outlier_patches

PLANTED = ((1, 7), (1, 30))
PATCH, GRID = 4, (6, 6)


def tower(planted: bool) -> QwenTower:
    """Four blocks; in block 1 the planted units fire on patches of value 1 and write a huge norm."""
    torch.manual_seed(0)
    config = Qwen3VLVisionConfig(
        depth=4,
        hidden_size=32,
        intermediate_size=64,
        num_heads=4,
        patch_size=PATCH,
        out_hidden_size=24,
        num_position_embeddings=36,
        deepstack_visual_indexes=[0, 2],
    )
    model = Qwen3VLVisionModel(config).eval().requires_grad_(False)
    if planted:
        # Direction 0 of the residual stream carries the trigger; the embedding writes it for a bright patch only.
        patch, positions = model.patch_embed.proj.weight, model.pos_embed.weight
        patch -= patch.mean(dim=(1, 2, 3, 4), keepdim=True)
        patch[0] = 0.3 / patch[0].numel()
        model.patch_embed.proj.bias[:] = 0
        positions *= 5
        positions[:, 0] = 0
        mlp = model.blocks[1].mlp
        for _, unit in PLANTED:
            mlp.linear_fc1.weight[unit] = 0
            mlp.linear_fc1.weight[unit, 0] = 12.0
            mlp.linear_fc1.bias[unit] = -24.0
            mlp.linear_fc2.weight[:, unit] = 0
            mlp.linear_fc2.weight[3, unit] = 6.0
        # What carries the norm is what all look at, wherever they stand (odd units turn slowly): that makes it a sink.
        qkv = model.blocks[3].attn.qkv
        qkv.bias[1:32:2] = 1.0
        qkv.weight[33:64:2, 3] = 1.0
    return QwenTower(model, PLANTED)


def pixels(segments: int, seed: int = 1) -> Tensor:
    """Noise, and one bright patch a segment, somewhere else in each; [S * P, K]."""
    torch.manual_seed(seed)
    values = torch.randn(segments, GRID[0] * GRID[1], 3 * 2 * PATCH * PATCH) * 0.1
    for segment in range(segments):
        values[segment, (5 + 7 * segment) % 36] = 1.0
    return values.flatten(0, 1)


def grid(segments: int) -> Grid:
    return segments, *GRID


def test_the_finder_returns_exactly_the_planted_neurons() -> None:
    watched, batches = tower(planted=True), pixels(6).split(3 * 36)
    watch: Watch = lambda neurons: (watched.trace(batch, grid(3), neurons) for batch in batches)  # noqa: E731
    report = find_register_neurons(watch, start=2, step=2)
    assert set(report.neurons) == set(PLANTED)
    assert report.accepted
    assert report.largest_norm_before > 1 >= report.largest_norm_after
    assert report.n_eff_before < report.n_eff_after


def test_the_register_takes_the_norm_of_every_segment() -> None:
    watched = tower(planted=True)
    before, after = (watched.trace(pixels(6), grid(6), neurons) for neurons in (None, PLANTED))
    assert outlier_patches(before.norms[1]).sum(dim=1).tolist() == [1] * 6
    assert not outlier_patches(after.norms[1]).any()
    output = watched.encode(pixels(6), grid(6), "neurons")
    assert output.register is not None
    assert output.register_scores is not None
    assert (output.register.norm(dim=-1) > 2 * output.features.norm(dim=-1).flatten(1).amax(dim=1)).all()
    assert (output.register_scores > output.scores.amax(dim=1)).all()


@pytest.mark.parametrize("register", [None, "neurons", "zero_token", "mean_threshold"])
def test_a_segment_comes_out_the_same_alone_and_among_others(register: qwen_tower.RegisterMode | None) -> None:
    watched, values = tower(planted=True), pixels(3)
    together = watched.encode(values, grid(3), register)
    for segment, alone in enumerate(watched.encode(one, grid(1), register) for one in values.split(36)):
        for whole, own in zip(_tensors(together), _tensors(alone), strict=True):
            torch.testing.assert_close(whole[segment : segment + 1], own, atol=1e-5, rtol=1e-5)


def _tensors(output: qwen_tower.TowerOutput) -> list[Tensor]:
    optional = (output.register, output.register_scores)
    some = [tensor for tensor in optional if tensor is not None]
    return [output.features, output.scores, *some, *output.planes, *output.register_planes]


@pytest.mark.parametrize("rows", [1, 7, 36, 1000])
def test_blocks_of_rows_give_the_same_scores(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    watched = tower(planted=True)
    expected = watched.encode(pixels(2), grid(2), "zero_token")
    assert expected.register_scores is not None
    monkeypatch.setattr(qwen_tower, "ROWS", rows)
    scored = watched.encode(pixels(2), grid(2), "zero_token")
    torch.testing.assert_close(scored.scores, expected.scores)
    # Every row of attention sums to one: so do the shares of all that are attended to.
    total = 4 * expected.scores.sum(dim=1) + expected.register_scores
    torch.testing.assert_close(total, torch.ones(2))


def test_without_a_register_the_features_are_the_stock_towers() -> None:
    watched, values = tower(planted=False), pixels(2)
    output = watched.encode(values, grid(2), None)
    stock = watched.vision(values, grid_thw=torch.tensor([grid(2)]))
    torch.testing.assert_close(watched.merged(output.features).flatten(0, 1), stock.pooler_output)
    for level, plane in enumerate(output.planes):
        torch.testing.assert_close(watched.merged(plane, level).flatten(0, 1), stock.deepstack_features[level])
