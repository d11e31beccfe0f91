"""The oracle's eye: the stock tower in eager attention, the register by forward hooks, stage I from whole maps.

Shape suffixes: F frames, N tokens of a frame (CLS, P patches, the register last), K hidden units, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Fault = Literal[
    "positions repacked",
    "survivors reused",
    "tower softmax without register",
    "decoder softmax without register",
    "old register visible",
]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What to prune by; `fault` names one deliberate mistake, for showing that the comparison would notice it."""

    lambda1: float
    lambda2: float
    cut: int
    register: Literal["neurons", "zero_token", "mean_threshold"] = "neurons"
    neurons: Sequence[tuple[int, int]] = ()
    evaluators: Literal["question", "turn"] = "turn"
    min_tokens: int = 1
    keep_cls: bool = False
    placement: Literal["after_norm", "before_norm"] = "after_norm"
    fault: Fault | None = None


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The tower's view: features [F, 1+P, C] (projected, CLS first), register [C] or None, keep and scores [F, P],
    reference [F]: the score that lambda1 multiplies."""

    features: Tensor
    register: Tensor | None
    keep: Tensor
    scores: Tensor
    reference: Tensor


@torch.no_grad()
def look(model: Any, pixels_FCHW: Tensor, rule: Rule | None, feature_layer: int) -> Frames:
    """Encode frames and run stage I, per frame, from the CLS row of the block whose output is the feature."""
    tower = model.video_tower
    has_register = rule is not None and rule.register != "mean_threshold"
    with ExitStack() as hooks:
        if rule and has_register:
            entry = tower.pre_layrnorm if rule.placement == "after_norm" else tower.embeddings
            hooks.enter_context(_replacing_output(entry, _append_zero_token))
            for layer in {layer for layer, _ in rule.neurons if rule.register == "neurons"}:
                edit = _neuron_shift([k for at, k in rule.neurons if at == layer])
                hooks.enter_context(_replacing_output(tower.encoder.layers[layer].mlp.activation_fn, edit))
        out = tower(pixels_FCHW, output_hidden_states=True, output_attentions=True)
    block = len(out.hidden_states) + feature_layer - 1
    features_FNC = model.multi_modal_projector(out.hidden_states[feature_layer])
    row_FN = out.attentions[block][:, :, 0].mean(dim=1)
    scores_FP, register = row_FN[:, 1:], None
    reference_F = scores_FP.mean(dim=1)
    if rule and has_register:
        scores_FP, reference_F = row_FN[:, 1:-1], row_FN[:, -1]
        register, features_FNC = features_FNC[:, -1].mean(dim=0), features_FNC[:, :-1]
        if rule.fault == "tower softmax without register":
            scores_FP = scores_FP / (1 - reference_F[:, None])
    keep_FP = scores_FP >= (rule.lambda1 if rule else 0) * reference_F[:, None]
    return Frames(features=features_FNC, register=register, keep=keep_FP, scores=scores_FP, reference=reference_F)


def _append_zero_token(tokens_FNC: Tensor) -> Tensor:
    return torch.cat([tokens_FNC, torch.zeros_like(tokens_FNC[:, :1])], dim=1)


def _neuron_shift(neurons: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Per frame and neuron: the register takes the largest patch activation, the patches (1..P) get zero."""

    def edit(hidden_FNK: Tensor) -> Tensor:
        edited = hidden_FNK.clone()
        for frame in range(hidden_FNK.shape[0]):
            for k in neurons:
                edited[frame, -1, k] = hidden_FNK[frame, 1:-1, k].max()
                edited[frame, 1:-1, k] = 0
        return edited

    return edit


@contextmanager
def _replacing_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _module, _args, output: change(output))
    try:
        yield
    finally:
        handle.remove()
