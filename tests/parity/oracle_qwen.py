"""The oracle's eye for Qwen3-VL: the stock tower in eager attention, a register by hooks, stage I from whole maps.

Each temporal group (or image) goes through the tower alone, so that its register is simply the last row of everything.

Shape suffixes: N rows of a segment (patches, the register last), H heads, U merge groups, K hidden units, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.qwen3_vl import modeling_qwen3_vl

from tests.parity.checkpoint_qwen import MERGE, PATCH, TEMPORAL
from tests.parity.oracle import Rule, Seen, Spoken, Token

PREFIX = "<|im_start|>user\n"
FIRST_TURN, NEXT_TURN = (
    "{}<|im_end|>\n<|im_start|>assistant\n",
    "\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A temporal group or an image of a size that needs no resize: uint8 frames [2, H, W, 3]; seconds of its marker."""

    frames: np.ndarray
    kind: str
    marker: str


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Of one segment: features and planes [1 + levels, U, C], its register's [1 + levels, C], scores and keep [U]."""

    features: Tensor
    register: Tensor | None
    scores: Tensor
    reference: Tensor
    keep: Tensor


def segments_of_video(frames: np.ndarray, fps: float) -> list[Segment]:
    """Pairs of frames, an odd last one twice, at the mean of their seconds."""
    pairs = [(at, min(at + 1, len(frames) - 1)) for at in range(0, len(frames), 2)]
    return [
        Segment(frames=frames[[a, b]], kind="video", marker=f"<{(a / fps + b / fps) / 2:.1f} seconds>")
        for a, b in pairs
    ]


def segment_of_image(pixels: np.ndarray) -> Segment:
    return Segment(frames=np.stack([pixels, pixels]), kind="image", marker="")


class QwenEye:
    """The stock model and what stands before the first question."""

    def __init__(self, model: Any, tokenizer: Any, segments: Sequence[Segment]) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.segments = segments
        self.text_model = model.model.language_model
        self.head = model.lm_head
        self.end_id = tokenizer.convert_tokens_to_ids("<|im_end|>")

    @torch.no_grad()
    def see(self, rule: Rule | None) -> Seen:
        """The stock prompt, tokenized whole, at the positions of stock `get_rope_index`, its failing pads left out."""
        looked = [_look(self.model.model.visual, segment, rule) for segment in self.segments]
        ids, positions_3N, end = self._unpruned()
        config, embed = self.model.config, self.text_model.get_input_embeddings().weight
        features_LPC = torch.cat([one.features for one in looked], dim=1)
        keep_P = torch.cat([one.keep for one in looked])
        planes_LPC = features_LPC[1:]
        if rule and rule.fault == "planes of the unmasked order":
            planes_LPC = planes_LPC.clone()
            planes_LPC[:, keep_P] = features_LPC[1:, : int(keep_P.sum())]
        tokens, patch = [], 0
        for token, position in zip(ids, positions_3N.T.tolist(), strict=True):
            if token not in (config.image_token_id, config.video_token_id):
                tokens.append(Token(embed[token], tuple(position)))
                continue
            if keep_P[patch]:
                planes = planes_LPC[:, patch]
                tokens.append(Token(features_LPC[0, patch], tuple(position), patch=patch, planes=planes))
            patch += 1
        assert patch == len(keep_P)
        registers = [one.register for one in looked if one.register is not None]
        return Seen(
            tokens=tokens,
            end=end,
            register=torch.stack(registers).mean(dim=0) if registers else None,
            keep=keep_P,
            scores=torch.cat([one.scores for one in looked]),
            reference=torch.cat([one.reference for one in looked]),
            sizes=[len(one.keep) for one in looked],
        )

    def say(self, question: str, first: bool) -> Spoken:
        """The turn's ids in the template."""
        template = FIRST_TURN if first else NEXT_TURN

        def ids(text: str) -> list[int]:
            return list(self.tokenizer(text).input_ids)

        start = len(ids(template.split("{}")[0]))
        return Spoken(suffix=ids(template.format(question)), question=slice(start, start + len(ids(question))))

    def _unpruned(self) -> tuple[list[int], Tensor, int]:
        """Ids and positions [3, N] of the whole prefix, and the position behind it."""
        text = PREFIX
        grids: dict[str, list[list[int]]] = {"image": [], "video": []}
        for segment in self.segments:
            rows, columns = (length // PATCH for length in segment.frames.shape[1:3])
            pads = f"<|{segment.kind}_pad|>" * (rows * columns // MERGE**2)
            text += f"{segment.marker}<|vision_start|>{pads}<|vision_end|>"
            grids[segment.kind].append([1, rows, columns])
        ids = self.tokenizer(text, return_tensors="pt").input_ids
        config = self.model.config
        kinds = (ids == config.image_token_id) + 2 * (ids == config.video_token_id)
        given = {f"{kind}_grid_thw": torch.tensor(grid) for kind, grid in grids.items() if grid}
        positions, _ = self.model.model.get_rope_index(ids, kinds, **given)
        return ids[0].tolist(), positions[:, 0], int(positions.max()) + 1


def _look(tower: Any, segment: Segment, rule: Rule | None) -> Looked:
    """One segment through the stock tower, a register the last row from the first block to the mergers."""
    has_register = rule is not None and rule.register != "mean_threshold"
    patches, grid = _patchify(segment.frames)
    maps: list[Tensor] = []
    with ExitStack() as hooks:
        hooks.enter_context(_recording_maps(maps))
        if rule and has_register:
            length = torch.tensor([0, len(patches) + 1], dtype=torch.int32)
            hooks.enter_context(_changing_output(tower.rotary_pos_emb, _unrotated_row))
            hooks.enter_context(_changing_input(tower.blocks[0], _append_zero_row))
            for block in tower.blocks:
                hooks.enter_context(_changing_kwargs(block, {"cu_seqlens": length}))
            for merger in (tower.merger, *tower.deepstack_merger_list):
                hooks.enter_context(_changing_input(merger, _repeat_last_row))
            for layer in {layer for layer, _ in rule.neurons if rule.register == "neurons"}:
                edit = _neuron_shift([k for at, k in rule.neurons if at == layer])
                hooks.enter_context(_changing_output(tower.blocks[layer].mlp.act_fn, edit))
        out = tower(patches, grid_thw=torch.tensor([grid]), return_dict=True)
    features_LUC = torch.stack([out.pooler_output, *out.deepstack_features])
    map_NN = maps[-1][0].mean(dim=0)
    received_N = map_NN.mean(dim=1 if rule and rule.fault == "rows instead of columns" else 0)
    register = None
    if has_register:
        register, features_LUC = features_LUC[:, -1], features_LUC[:, :-1]
        if rule and rule.fault == "tower softmax without register":
            received_N[:-1] = (map_NN / (1 - map_NN[:, -1:])).mean(dim=0)[:-1]
    scores_U = received_N[: len(patches)].view(-1, MERGE**2).mean(dim=1)
    reference = received_N[-1] if has_register else scores_U.mean()
    reference_U = reference.expand(len(scores_U))
    keep_U = scores_U >= (rule.lambda1 if rule else 0) * reference_U
    return Looked(features=features_LUC, register=register, scores=scores_U, reference=reference_U, keep=keep_U)


def _patchify(frames: np.ndarray) -> tuple[Tensor, list[int]]:
    """[P, values] of two frames, written out: merge groups in reading order, and within each its patches."""
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2).double() / 255
    pixels = ((pixels - 0.5) / 0.5).float()
    rows, columns = (length // PATCH for length in frames.shape[1:3])
    patches = [
        pixels[:, :, PATCH * y : PATCH * (y + 1), PATCH * x : PATCH * (x + 1)].reshape(3 * TEMPORAL * PATCH * PATCH)
        for top in range(0, rows, MERGE)
        for left in range(0, columns, MERGE)
        for y in range(top, top + MERGE)
        for x in range(left, left + MERGE)
    ]
    return torch.stack(patches), [1, rows, columns]


def _unrotated_row(rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    cos, sin = rotary
    return torch.cat([cos, torch.ones_like(cos[:1])]), torch.cat([sin, torch.zeros_like(sin[:1])])


def _append_zero_row(rows_NC: Tensor) -> Tensor:
    return torch.cat([rows_NC, torch.zeros_like(rows_NC[:1])])


def _repeat_last_row(rows_NC: Tensor) -> Tensor:
    return torch.cat([rows_NC, *[rows_NC[-1:]] * (MERGE**2 - 1)])


def _neuron_shift(neurons: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Per neuron: the register takes the largest patch activation, the patches get zero."""

    def edit(hidden_NK: Tensor) -> Tensor:
        edited = hidden_NK.clone()
        for k in neurons:
            edited[-1, k] = hidden_NK[:-1, k].max()
            edited[:-1, k] = 0
        return edited

    return edit


@contextmanager
def _recording_maps(maps: list[Tensor]) -> Iterator[None]:
    """Every attention map [1, H, N, N] that the stock eager attention makes."""
    eager = modeling_qwen3_vl.eager_attention_forward

    def recording(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        output, weights = eager(*args, **kwargs)
        maps.append(weights)
        return output, weights

    with mock.patch.object(modeling_qwen3_vl, "eager_attention_forward", recording):
        yield


@contextmanager
def _changing_output(module: nn.Module, change: Callable[[Any], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _module, _args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _changing_input(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda _module, args: (change(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _changing_kwargs(module: nn.Module, changed: dict[str, Any]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda _module, args, kwargs: (args, kwargs | changed), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
