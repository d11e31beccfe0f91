"""OccamToken from its description alone: the stock model in eager attention, whole attention maps, nothing gathered.

Slow and literal on purpose, and it shares no code with the library. What the tower sees is `oracle_tower.look`; the
language model always gets every stage I survivor, and from the cut on an additive mask hides what stage II dropped.
Every decoded token is one full forward of the whole conversation.

Shape suffixes: F frames, P patches, N tokens of the conversation, T tokens that score, V vocabulary, G generated.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.parity.oracle_tower import Frames, Rule, look

PREFIX, FIRST_TURN, NEXT_TURN = "USER: ", "\n{} ASSISTANT:", " USER: {} ASSISTANT:"


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


class Token(NamedTuple):
    """One token of the conversation: embed [C]; turn -1 is the prefix; frame -1 is not visual, patch -1 no patch.

    evaluates: text of the newest turn that scores
    """

    embed: Tensor
    position: int
    turn: int = -1
    frame: int = -1
    patch: int = -1
    is_register: bool = False
    evaluates: bool = False


class Layout:
    """The whole conversation as columns over its tokens [N], named as `Token` names them."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.embed = torch.stack([token.embed for token in tokens])
        self.position = torch.tensor([token.position for token in tokens])
        self.turn = torch.tensor([token.turn for token in tokens])
        self.frame = torch.tensor([token.frame for token in tokens])
        self.patch = torch.tensor([token.patch for token in tokens])
        self.is_register = torch.tensor([token.is_register for token in tokens])
        self.evaluates = torch.tensor([token.evaluates for token in tokens])


@torch.no_grad()
def converse(
    model: Any, tokenizer: Any, pixels_FCHW: Tensor, questions: Sequence[str], rule: Rule | None, steps: int
) -> list[Played]:
    """Ask `questions` in turn, decoding greedily to the end token or for `steps`; rule None is the stock model."""
    frames = look(model.model, pixels_FCHW, rule, model.config.vision_feature_layer)
    spoken: list[Spoken] = []
    played: list[Played] = []
    for question in questions:
        spoken.append(_say(tokenizer, question, first=not spoken))
        layout = _lay_out(model, tokenizer, frames, spoken, rule)
        stage2, scores, reference = _stage2(model, layout, frames, rule)
        if rule and rule.fault == "survivors reused" and played:
            stage2 = played[0].stage2
        logits: list[Tensor] = []
        said = spoken[-1]
        while len(said.generated) < steps and tokenizer.eos_token_id not in said.generated:
            layout = _lay_out(model, tokenizer, frames, spoken, rule)
            logits.append(_forward(model, layout, stage2, rule)[0][-1])
            said.generated.append(int(logits[-1].argmax()))
        if tokenizer.eos_token_id not in said.generated:
            said.closing.append(tokenizer.eos_token_id)
        played.append(
            Played(
                suffix=said.suffix,
                generated=said.generated,
                logits=torch.stack(logits),
                stage1=frames.keep,
                stage2=stage2,
                scores=scores,
                reference=reference,
            )
        )
    return played


def _say(tokenizer: Any, question: str, first: bool) -> Spoken:
    template = FIRST_TURN if first else NEXT_TURN

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    start = len(ids(template.split("{}")[0]))
    return Spoken(suffix=ids(template.format(question)), question=slice(start, start + len(ids(question))))


def _lay_out(model: Any, tokenizer: Any, frames: Frames, spoken: Sequence[Spoken], rule: Rule | None) -> Layout:
    """Prefix text, what stage I kept where the stock layout has it, then every turn from the unpruned end on."""
    embed = model.get_input_embeddings().weight
    prefix = tokenizer(PREFIX).input_ids
    tokens = [Token(embed[token], position) for position, token in enumerate(prefix)]
    count, length = frames.features.shape[:2]
    keep_cls = rule is None or rule.keep_cls
    for frame in range(count):
        for patch in range(-1, length - 1):
            if frames.keep[frame, patch] if patch >= 0 else keep_cls:
                position = len(prefix) + frame * length + 1 + patch
                tokens.append(Token(frames.features[frame, 1 + patch], position, frame=frame, patch=patch))
    position = len(prefix) + count * length
    whole = rule is None or rule.evaluators == "turn"
    for turn, said in enumerate(spoken):
        if frames.register is not None:
            tokens.append(Token(frames.register, position, turn, is_register=True))
        scoring = range(len(said.suffix))[slice(None) if whole else said.question]
        for at, token in enumerate(said.suffix + said.generated + said.closing):
            evaluates = turn == len(spoken) - 1 and at in scoring
            tokens.append(Token(embed[token], position + at, turn, evaluates=evaluates))
        position += len(said.suffix + said.generated + said.closing)
    if rule and rule.fault == "positions repacked":
        tokens = [token._replace(position=position) for position, token in enumerate(tokens)]
    return Layout(tokens)


def _stage2(model: Any, layout: Layout, frames: Frames, rule: Rule | None) -> tuple[Tensor, Tensor, float]:
    """The newest turn's survivors [F, P], scores [F, P] and reference, from the whole map of layer cut - 1."""
    scores_FP = torch.full(frames.keep.shape, torch.nan)
    if rule is None or not frames.keep.any():
        return frames.keep, scores_FP, float("nan")
    attention_NN = _forward(model, layout, frames.keep, rule)[1][rule.cut - 1][0].mean(dim=0)
    rows_TN = attention_NN[layout.evaluates]
    newest_r = layout.is_register & (layout.turn == layout.turn.max())
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
            inputs_embeds=layout.embed[None],
            position_ids=layout.position[None],
            use_cache=False,
            output_attentions=True,
        )
    return model.lm_head(out.last_hidden_state[0]), out.attentions


def _visible(layout: Layout, stage2_FP: Tensor, rule: Rule | None) -> tuple[Tensor, Tensor]:
    """bool [N, N], who (row) sees whom (column): in the layers before the cut, and from it on."""
    order = torch.arange(len(layout.turn))
    causal_NN = order[:, None] >= order[None]
    own_r_NN = ~layout.is_register[None] | (layout.turn[:, None] == layout.turn[None])
    if rule and rule.fault == "old register visible":
        return causal_NN, causal_NN & ~_dropped(layout, stage2_FP)
    lower_NN = causal_NN & own_r_NN
    old_r = layout.is_register & (layout.turn < layout.turn.max())
    return lower_NN, lower_NN & ~_dropped(layout, stage2_FP) & ~old_r


def _dropped(layout: Layout, stage2_FP: Tensor) -> Tensor:
    patches = layout.patch >= 0
    dropped = torch.zeros_like(patches)
    dropped[patches] = ~stage2_FP[layout.frame[patches], layout.patch[patches]]
    return dropped


@contextmanager
def _with_mask(layer: nn.Module, mask: Tensor) -> Iterator[None]:
    handle = layer.register_forward_pre_hook(
        lambda _module, args, kwargs: (args, kwargs | {"attention_mask": mask}), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()
