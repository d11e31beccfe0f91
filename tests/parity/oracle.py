"""OccamToken from its description alone: the stock model in eager attention, whole attention maps, nothing gathered.

Slow and literal on purpose, and it shares no code with the library. The register and the neuron edit are forward
hooks on the stock tower; the language model always sees every stage I survivor, and from the cut on an additive
mask hides what stage II dropped. Every decoded token is one full forward of the whole conversation.

Shape suffixes: F frames, P patches, N tokens of the conversation, H heads, C channels, V vocabulary, G generated.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

PREFIX, FIRST_TURN, NEXT_TURN = "USER: ", "\n{} ASSISTANT:", " USER: {} ASSISTANT:"

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


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """One turn as ids: `suffix` with the question's own ids at `question`, `generated`, then `closing`."""

    suffix: list[int]
    question: slice
    generated: list[int] = field(default_factory=list)
    closing: list[int] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a turn came to: ids, logits [G, V], stage1 and stage2 bool [F, P], scores [F, P] (NaN: not tested).

    reference: the stage II score that lambda2 multiplies; NaN where nothing was tested
    """

    suffix: list[int]
    generated: list[int]
    logits: Tensor
    stage1: Tensor
    stage2: Tensor
    scores: Tensor
    reference: float


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The whole conversation as one row of tokens: embeds [N, C]; the rest int64 [N].

    turn: -1 for the prefix; frame, patch: -1 for what is not visual, patch -1 for CLS; r marks registers,
    evaluator the newest turn's text that scores
    """

    embeds: Tensor
    positions: Tensor
    turn: Tensor
    frame: Tensor
    patch: Tensor
    r: Tensor
    evaluator: Tensor


@torch.no_grad()
def converse(
    model: Any, tokenizer: Any, pixels_FCHW: Tensor, questions: Sequence[str], rule: Rule | None, steps: int
) -> list[Played]:
    """Ask `questions` one after another, decoding `steps` tokens greedily each; rule None is the stock model."""
    frames = look(model.model, pixels_FCHW, rule, model.config.vision_feature_layer)
    spoken: list[Spoken] = []
    played: list[Played] = []
    for question in questions:
        spoken.append(_say(tokenizer, question, first=not spoken))
        layout = _lay_out(model, tokenizer, frames, spoken, rule)
        stage2, scores, reference = _stage2(model, layout, frames, rule)
        if rule and rule.fault == "survivors reused" and played:
            stage2 = played[0].stage2
        logits = []
        for _ in range(steps):
            layout = _lay_out(model, tokenizer, frames, spoken, rule)
            logits.append(_forward(model, layout, stage2, rule)[0][-1])
            spoken[-1].generated.append(int(logits[-1].argmax()))
        spoken[-1].closing.append(tokenizer.eos_token_id)
        played.append(
            Played(
                suffix=spoken[-1].suffix,
                generated=spoken[-1].generated,
                logits=torch.stack(logits),
                stage1=frames.keep,
                stage2=stage2,
                scores=scores,
                reference=reference,
            )
        )
    return played


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
    if rule is None:
        scores_FP = row_FN[:, 1:]
        reference_F = torch.full(row_FN.shape[:1], torch.nan)
        return Frames(
            features=features_FNC,
            register=None,
            keep=torch.ones_like(scores_FP, dtype=torch.bool),
            scores=scores_FP,
            reference=reference_F,
        )
    if has_register:
        scores_FP, reference_F = row_FN[:, 1:-1], row_FN[:, -1]
        if rule.fault == "tower softmax without register":
            scores_FP = scores_FP / (1 - reference_F[:, None])
        register, features_FNC = features_FNC[:, -1].mean(dim=0), features_FNC[:, :-1]
    else:
        scores_FP, register = row_FN[:, 1:], None
        reference_F = scores_FP.mean(dim=1)
    keep_FP = scores_FP >= rule.lambda1 * reference_F[:, None]
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


def _say(tokenizer: Any, question: str, first: bool) -> Spoken:
    template = FIRST_TURN if first else NEXT_TURN

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    start = len(ids(template.split("{}")[0]))
    return Spoken(suffix=ids(template.format(question)), question=slice(start, start + len(ids(question))))


def _lay_out(model: Any, tokenizer: Any, frames: Frames, spoken: Sequence[Spoken], rule: Rule | None) -> Layout:
    embed = model.get_input_embeddings()
    rows: list[tuple[Tensor, int, int, int, int, bool, bool]] = []
    prefix = tokenizer(PREFIX).input_ids
    rows += [(embed.weight[token], at, -1, -1, -1, False, False) for at, token in enumerate(prefix)]
    count, tokens = frames.features.shape[:2]
    for frame in range(count):
        for token in range(tokens):
            patch = token - 1
            if frames.keep[frame, patch] if patch >= 0 else rule is None or rule.keep_cls:
                position = len(prefix) + frame * tokens + token
                rows.append((frames.features[frame, token], position, -1, frame, patch, False, False))
    position = len(prefix) + count * tokens
    for turn, said in enumerate(spoken):
        if frames.register is not None:
            rows.append((frames.register, position, turn, -1, -1, True, False))
        evaluators = range(len(said.suffix))[said.question if rule and rule.evaluators == "question" else slice(None)]
        for at, token in enumerate(said.suffix + said.generated + said.closing):
            scores = turn == len(spoken) - 1 and at in evaluators
            rows.append((embed.weight[token], position + at, turn, -1, -1, False, scores))
        position += len(said.suffix + said.generated + said.closing)
    embeds, positions, *columns = zip(*rows, strict=True)
    if rule and rule.fault == "positions repacked":
        positions = tuple(range(len(rows)))
    turn, frame, patch, r, evaluator = (torch.tensor(column) for column in columns)
    return Layout(
        embeds=torch.stack(embeds),
        positions=torch.tensor(positions),
        turn=turn,
        frame=frame,
        patch=patch,
        r=r,
        evaluator=evaluator,
    )


def _stage2(model: Any, layout: Layout, frames: Frames, rule: Rule | None) -> tuple[Tensor, Tensor, float]:
    """The newest turn's survivors [F, P], scores [F, P] and reference, from the whole map of layer cut - 1."""
    scores_FP = torch.full(frames.keep.shape, torch.nan)
    if rule is None or not frames.keep.any():
        return frames.keep, scores_FP, float("nan")
    attention_NN = _forward(model, layout, frames.keep, rule)[1][rule.cut - 1][0].mean(dim=0)
    rows_TN = attention_NN[layout.evaluator]
    newest_r = layout.r & (layout.turn == layout.turn.max())
    patches = layout.patch >= 0
    if newest_r.any():
        reference = rows_TN[:, newest_r].mean()
        if rule.fault == "decoder softmax without register":
            rows_TN = rows_TN / (1 - rows_TN[:, newest_r])
    else:
        reference = rows_TN[:, patches].mean(dim=0).mean()
    scores = rows_TN[:, patches].max(dim=0).values
    keep = scores >= rule.lambda2 * reference
    if keep.sum() < rule.min_tokens:
        keep[scores.argsort(descending=True)[: rule.min_tokens]] = True
    stage2_FP = torch.zeros_like(frames.keep)
    stage2_FP[layout.frame[patches], layout.patch[patches]] = keep
    scores_FP[layout.frame[patches], layout.patch[patches]] = scores
    return stage2_FP, scores_FP, float(reference)


def _forward(model: Any, layout: Layout, stage2_FP: Tensor, rule: Rule | None) -> tuple[Tensor, Sequence[Tensor]]:
    """Logits [N, V] and every attention map [1, H, N, N] of the conversation in one forward of the stock model."""
    decoder = model.model.language_model
    lower_NN, upper_NN = _visible(layout, stage2_FP, rule)
    cut = rule.cut if rule else 0
    with ExitStack() as hooks:
        for index, layer in enumerate(decoder.layers):
            visible_NN = lower_NN if index < cut else upper_NN
            mask = torch.zeros(visible_NN.shape).masked_fill(~visible_NN, torch.finfo(torch.float32).min)
            hooks.enter_context(_with_mask(layer, mask[None, None]))
        out = decoder(
            inputs_embeds=layout.embeds[None],
            position_ids=layout.positions[None],
            use_cache=False,
            output_attentions=True,
        )
    return model.lm_head(out.last_hidden_state[0]), out.attentions


def _visible(layout: Layout, stage2_FP: Tensor, rule: Rule | None) -> tuple[Tensor, Tensor]:
    """bool [N, N], who (row) sees whom (column): in the layers before the cut, and from it on."""
    order = torch.arange(len(layout.turn))
    causal_NN = order[:, None] >= order[None]
    own_r_NN = ~layout.r[None] | (layout.turn[:, None] == layout.turn[None])
    if rule and rule.fault == "old register visible":
        return causal_NN, causal_NN & ~_dropped(layout, stage2_FP)
    lower_NN = causal_NN & own_r_NN
    old_r = layout.r & (layout.turn < layout.turn.max())
    return lower_NN, lower_NN & ~_dropped(layout, stage2_FP) & ~old_r


def _dropped(layout: Layout, stage2_FP: Tensor) -> Tensor:
    patches = layout.patch >= 0
    dropped = torch.zeros_like(patches)
    dropped[patches] = ~stage2_FP[layout.frame[patches], layout.patch[patches]]
    return dropped


@contextmanager
def _replacing_output(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _module, _args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _with_mask(layer: nn.Module, mask: Tensor) -> Iterator[None]:
    handle = layer.register_forward_pre_hook(
        lambda _module, args, kwargs: (args, kwargs | {"attention_mask": mask}), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()
