"""Qwen3-VL's three-axis positions under any mask: what `rotary_emb` receives is what the unpruned sequence has."""

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from occam.engine import prefix
from occam.engine.engine import Engine
from occam.models.base import TowerOutput
from occam.types import FrameBatch
from tests.parity.checkpoint_qwen import HEAD_DIM, MERGE, random_frames
from tests.parity.harness import image_of, pruning_of
from tests.parity.oracle import Rule

MASKS = 10_000
RULE = Rule(lambda1=0.5, lambda2=1, cut=1)
SIZES = ((16, 16), (48, 48), (32, 64), (64, 16))


def clip(count: int, height: int, width: int) -> FrameBatch:
    return FrameBatch(
        frames=random_frames(count, height, width),
        pts_seconds=np.arange(count) * 7.7,
        indices=np.arange(count),
        digest="",
    )


def masks(shape: torch.Size, count: int) -> list[Tensor]:
    """All, none, one group empty, one token; and random ones of every density."""
    rng = torch.Generator().manual_seed(shape.numel())
    made = [torch.rand(shape, generator=rng) < torch.rand((), generator=rng) for _ in range(count - 4)]
    one_group, one_token = torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    one_group[torch.randint(shape[0], (), generator=rng)] = False
    one_token.view(-1)[torch.randint(shape.numel(), (), generator=rng)] = True
    return [torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool), one_group, one_token, *made]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["video", "image"])
def test_the_rotary_embedding_receives_stock_positions_under_every_mask(
    qwen_engine: Engine, qwen_stock: Any, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], kind: str
) -> None:
    """What costs time and moves no position (mergers, decoder layers, the tokenizer's repetitions) is left out."""
    lm: Any = qwen_engine.lm
    pruning = pruning_of(RULE)
    media = clip(5, *size) if kind == "video" else image_of(random_frames(1, *size)[0])
    with torch.inference_mode():
        start = prefix.begin(lm, pruning, "what")
        unpruned, _ = qwen_engine.append(start, media, pruning_of(Rule(lambda1=0, lambda2=0, cut=1)))
    expected_3N = _stock_positions(qwen_stock, unpruned.ids, media, lm)
    patches_VP = (unpruned.patch >= 0).nonzero().view(-1, int((unpruned.view == 0).sum()))
    received: list[Tensor] = []
    handle = lm.decoder.model.rotary_emb.register_forward_pre_hook(lambda _module, args: received.append(args[1]))
    monkeypatch.setattr(lm.decoder.model.layers[0], "forward", _no_layer)
    monkeypatch.setattr(type(lm.tower), "merged", lambda _, features, level=None: features[..., 0, :])
    monkeypatch.setattr(type(lm.prompt), "behind", functools.cache(type(lm.prompt).behind))
    output = _synthetic(patches_VP.shape)
    mask = patches_VP >= 0
    monkeypatch.setattr(prefix, "encode", lambda *_: [lm.compose(media, output, mask, False)])
    try:
        for number, mask in enumerate(masks(patches_VP.shape, MASKS // (2 * len(SIZES)))):
            received.clear()
            state, _ = qwen_engine.append(start, media, pruning)
            kept = torch.ones(len(unpruned), dtype=torch.bool)
            kept[patches_VP[~mask]] = False
            assert torch.equal(received[0][:, 0], expected_3N[:, kept][:, len(start) :])
            assert torch.equal(state.positions, expected_3N[:, kept])
            assert torch.equal(state.ids, unpruned.ids[kept])
            if number < 100:
                with torch.inference_mode():
                    prefix.append_text(lm, state, [5])
                assert received[1].flatten().tolist() == [int(expected_3N.max()) + 1] * 3
    finally:
        handle.remove()


def _no_layer(x: Tensor, *, past_key_values: Any, **_: Any) -> Tensor:
    """A decoder layer that does nothing but fill its cache."""
    nothing = x.new_zeros(1, 2, x.shape[1], HEAD_DIM)
    past_key_values.update(nothing, nothing, 0)
    return x


def _synthetic(shape: torch.Size) -> TowerOutput:
    """What a tower could have given, without one."""
    features = torch.ones(*shape, MERGE**2, 64)
    return TowerOutput(
        scores=torch.ones(shape), register_scores=None, features=features, register=None, planes=(features, features)
    )


def _stock_positions(stock: Any, ids: Tensor, media: FrameBatch, lm: Any) -> Tensor:
    """`get_rope_index` of the unpruned prefix; int64 [3, N]."""
    pixels = lm.pixels[media.kind]
    height, width = pixels.size(media)
    groups = -(-len(media) // pixels.temporal)
    grid = torch.tensor([[groups, height // pixels.patch, width // pixels.patch]])
    kinds = (ids == stock.config.image_token_id) + 2 * (ids == stock.config.video_token_id)
    positions, _ = stock.model.get_rope_index(ids[None], kinds[None], **{f"{media.kind}_grid_thw": grid})
    found: Tensor = positions[:, 0]
    return found
