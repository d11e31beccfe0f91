"""The finder and the shift, on a tower with planted neurons: known units blow up on known patches."""

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from occam.models.clip_tower import ClipTower
from occam.registers import Watch, effective_tokens, find_register_neurons, outlier_patches, shift_to_register

PLANTED = ((1, 7), (1, 30))
BRIGHT = 5


def tower(planted: bool, seed: int = 0) -> ClipTower:
    """Five blocks over 5 x 5 patches; in block 1 the planted units fire on patches of value 1 and write a huge norm."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=5, num_attention_heads=4, image_size=20, patch_size=4
    )
    model = CLIPVisionModel(config).eval().requires_grad_(False)
    if planted:
        # Direction 0 of the residual stream carries the trigger; the embedding writes it for a bright patch only.
        patch = model.embeddings.patch_embedding.weight
        patch -= patch.mean(dim=(1, 2, 3), keepdim=True)
        patch[0] = 0.003
        mlp = model.encoder.layers[1].mlp
        for _, unit in PLANTED:
            mlp.fc1.weight[unit] = 0
            mlp.fc1.weight[unit, 0] = 12.0
            mlp.fc1.bias[unit] = -24.0
            mlp.fc2.weight[:, unit] = 0
            mlp.fc2.weight[3, unit] = 6.0
        # What carries the norm is what CLS looks at: that is what makes it a sink.
        attention = model.encoder.layers[3].self_attn
        attention.q_proj.bias[:] = 1.0
        attention.k_proj.weight[:, 3] = 1.0
    return ClipTower(model, -2, PLANTED)


def pixels(frames: int, seed: int = 1) -> torch.Tensor:
    """Noise, and one bright patch a frame, somewhere else in each."""
    torch.manual_seed(seed)
    images = torch.randn(frames, 3, 20, 20) * 0.1
    for frame in range(frames):
        row, column = divmod((BRIGHT + 7 * frame) % 25, 5)
        images[frame, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1.0
    return images


def watch(watched: ClipTower, pixels: torch.Tensor) -> Watch:
    """In batches of two frames, as a large tower has to be watched."""
    return lambda neurons: (watched.trace(batch, neurons) for batch in pixels.split(2))


def test_the_finder_returns_exactly_the_planted_neurons() -> None:
    report = find_register_neurons(watch(tower(planted=True), pixels(6)), start=2, step=2)
    assert set(report.neurons) == set(PLANTED)
    assert report.accepted
    assert report.largest_norm_before > 1 >= report.largest_norm_after
    assert report.n_eff_before < 2 < report.n_eff_after
    assert report.register_share > 0.5


def test_a_tower_without_outliers_gets_an_empty_report_that_is_not_accepted() -> None:
    torch.manual_seed(0)
    report = find_register_neurons(watch(tower(planted=False), torch.randn(4, 3, 20, 20) * 0.1))
    assert report.neurons == ()
    assert not report.accepted


def test_the_register_takes_the_norm_of_every_frame() -> None:
    watched = tower(planted=True)
    before, after = watched.trace(pixels(6), None), watched.trace(pixels(6), PLANTED)
    assert outlier_patches(before.norms[1]).sum(dim=1).tolist() == [1] * 6
    assert not outlier_patches(after.norms[1]).any()


def test_the_largest_activation_is_taken_per_neuron_and_per_frame_and_cls_is_untouched() -> None:
    hidden = torch.tensor(
        [[[9.0, 9.0], [1.0, 2.0], [3.0, 0.5], [0.0, 0.0]], [[8.0, 8.0], [5.0, 4.0], [6.0, 7.0], [0.0, 0.0]]]
    )
    shifted = shift_to_register(hidden, torch.tensor([1]), first=1)
    assert shifted[:, -1].tolist() == [[0.0, 2.0], [0.0, 7.0]]
    assert shifted[:, 1:-1, 1].abs().sum() == 0
    assert torch.equal(shifted[:, 0], hidden[:, 0])
    assert torch.equal(shifted[:, 1:-1, 0], hidden[:, 1:-1, 0])


@pytest.mark.parametrize("count", [1, 5, 40])
def test_effective_tokens_of_even_attention_is_their_number(count: int) -> None:
    assert effective_tokens(torch.full((2, count), 0.01)).tolist() == pytest.approx([count, count], rel=1e-4)
