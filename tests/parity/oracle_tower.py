"""The oracle's eye for Video-LLaVA: the stock tower in eager attention, the register by hooks, stage I from whole maps.

Shape suffixes: F frames, N tokens of a frame (CLS, P patches, the register last), K hidden units, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.parity.oracle import Rule, Seen, Spoken, Token

PREFIX, FIRST_TURN, NEXT_TURN = "USER: ", "\n{} ASSISTANT:", "USER: {} ASSISTANT:"


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The tower's view: features [F, 1+P, C] (projected, CLS first), register [C] or None, keep and scores [F, P],
    reference [F]: the score that lambda1 multiplies."""

    features: Tensor
    register: Tensor | None
    keep: Tensor
    scores: Tensor
    reference: Tensor


class VideoLlavaEye:
    """The stock model and a video's pixels [F, 3, H, W]."""

    def __init__(self, model: Any, tokenizer: Any, pixels_FCHW: Tensor) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.pixels = pixels_FCHW
        self.text_model = model.model.language_model
        self.head = model.lm_head
        self.end_id = tokenizer.eos_token_id

    def see(self, rule: Rule | None) -> Seen:
        """Prefix text, then what stage I kept, at the positions of the stock layout: CLS first in every frame."""
        frames = look(self.model.model, self.pixels, rule, self.model.config.vision_feature_layer)
        embed = self.text_model.get_input_embeddings().weight
        prefix = self.tokenizer(PREFIX).input_ids
        tokens = [Token(embed[token], (position,)) for position, token in enumerate(prefix)]
        count, length = frames.features.shape[:2]
        keep_cls = rule is None or rule.keep_cls
        for frame in range(count):
            for patch in range(-1, length - 1):
                if frames.keep[frame, patch] if patch >= 0 else keep_cls:
                    position = len(prefix) + frame * length + 1 + patch
                    flat = frame * (length - 1) + patch if patch >= 0 else -1
                    tokens.append(Token(frames.features[frame, 1 + patch], (position,), patch=flat))
        return Seen(
            tokens=tokens,
            end=len(prefix) + count * length,
            register=None if frames.register is None else frames.register[None],
            keep=frames.keep.flatten(),
            scores=frames.scores.flatten(),
            reference=frames.reference.repeat_interleave(length - 1),
            sizes=[length - 1] * count,
        )

    def say(self, question: str, first: bool) -> Spoken:
        """The turn's ids in the template."""
        template = FIRST_TURN if first else NEXT_TURN

        def ids(text: str) -> list[int]:
            return list(self.tokenizer(text, add_special_tokens=False).input_ids)

        start = len(ids(template.split("{}")[0]))
        return Spoken(suffix=ids(template.format(question)), question=slice(start, start + len(ids(question))))


@torch.no_grad()
def look(model: Any, pixels_FCHW: Tensor, rule: Rule | None, feature_layer: int) -> Frames:
    """Encode frames and run stage I, per frame, from the CLS row of the block whose output is the feature."""
    tower = model.vision_tower if hasattr(model, "vision_tower") else model.video_tower
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
