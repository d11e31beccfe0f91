"""How many operations a question takes, by the dimensions alone: linear maps, convolutions and attention.

Counted as `torch.utils.flop_counter` counts: two for each weight and token, four for each query, key and channel,
hidden pairs included. Norms, activations, rotation and gathers are left out on both sides, and so is what scoring adds
to ours: the count says what pruning allows.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from torch import nn

from occam.engine import Engine
from occam.models.quantized import Int8Linear


class Operations(NamedTuple):
    """Of one question up to its first token, by where they fall."""

    tower: int
    projector: int
    lower: int
    upper: int
    head: int

    @property
    def encode(self) -> int:
        """Those in front of the language model."""
        return self.tower + self.projector

    @property
    def llm(self) -> int:
        """Those of the language model."""
        return self.lower + self.upper + self.head

    @property
    def total(self) -> int:
        """All of them."""
        return self.encode + self.llm


class Views(NamedTuple):
    """What the tower gets: passes (frames, temporal groups), and the visual tokens that the stock model has of each.

    patches: of a pass, in the tower; merge: of them that make one token of the language model
    """

    count: int
    patches: int
    merge: int

    @classmethod
    def of(cls, engine: Engine, count: int, visual: int) -> "Views":
        """Passes of so many patches, as `encoded` counts them."""
        merge = getattr(engine.lm.tower, "merge", 1) ** 2
        return cls(count, visual * merge, merge)


def stock_operations(engine: Engine, views: Views, cut: int, tokens: int) -> Operations:
    """The stock model over a prompt of so many tokens; lower and upper layers are told apart by `cut`."""
    vision = engine.lm.tower.vision
    blocks = vision.blocks if hasattr(vision, "blocks") else vision.encoder.layers
    layers, beside = engine.lm.decoder.layers, 1 if views.merge == 1 else 0
    return Operations(
        tower=_tower(engine, views, blocks, beside),
        projector=_projector(engine) * views.count * (views.patches // views.merge + beside),
        lower=_decoder(engine, 0, cut, [tokens]),
        upper=_decoder(engine, cut, layers, [tokens]),
        head=linear(engine.lm.decoder.head),
    )


def our_operations(engine: Engine, views: Views, cut: int, lengths: Sequence[int], kept: int, upper: int) -> Operations:
    """Ours, with a register in every pass of the tower and in the turn.

    lengths: tokens of the blocks that go through the lower layers one behind the other: the text in front, what stage I
    keeps of each chunk with its markers, the turn; kept: patches of them; upper: tokens behind the cut
    """
    vision = engine.lm.tower.vision
    blocks = vision.blocks if hasattr(vision, "blocks") else engine.lm.tower.blocks
    return Operations(
        tower=_tower(engine, views, blocks, beside=2 if views.merge == 1 else 1),
        projector=_projector(engine) * (kept + views.count),
        lower=_decoder(engine, 0, cut, lengths),
        upper=_decoder(engine, cut, engine.lm.decoder.layers, [upper]),
        head=linear(engine.lm.decoder.head),
    )


def linear(module: nn.Module) -> int:
    """Operations for a token that goes through all linear maps and patch convolutions below a module."""
    kinds = (nn.Linear, Int8Linear, nn.Conv2d, nn.Conv3d)
    return sum(2 * part.weight.numel() for part in module.modules() if isinstance(part, kinds))


def _tower(engine: Engine, views: Views, blocks: Sequence[nn.Module], beside: int) -> int:
    """Patch embedding and blocks, with so many tokens beside the patches of a pass."""
    vision = engine.lm.tower.vision
    embedding = vision.patch_embed if hasattr(vision, "patch_embed") else vision.embeddings
    tokens, channels = views.patches + beside, vision.config.hidden_size
    each = sum(linear(block) * tokens + 4 * channels * tokens**2 for block in blocks)
    return views.count * (linear(embedding) * views.patches + each)


def _projector(engine: Engine) -> int:
    """For a visual token; DeepStack's mergers are among them."""
    model = engine.lm.model.model
    if hasattr(model, "multi_modal_projector"):
        return linear(model.multi_modal_projector)
    return linear(model.visual.merger) + linear(model.visual.deepstack_merger_list)


def _decoder(engine: Engine, first: int, stop: int, lengths: Sequence[int]) -> int:
    """Layers first..stop-1 over blocks of tokens, each of which sees itself and those before it."""
    pairs = sum(new * seen for new, seen in zip(lengths, accumulate(lengths), strict=True))
    return sum(
        linear(layer) * sum(lengths) + 4 * layer.self_attn.q_proj.out_features * pairs
        for layer in engine.lm.decoder.model.layers[first:stop]
    )
