"""OccamToken from its description alone: the stock model in eager attention, whole attention maps, nothing gathered.

Slow and literal on purpose, and it shares no code with the library. What the tower sees is an eye's to say, one for
each family; the language model always gets every stage I survivor, and from the cut on an additive mask hides what
stage II dropped. Every decoded token is one full forward of the whole conversation.

Shape suffixes: A axes of positions, P patches of all views, N tokens of the conversation, T tokens that score,
V vocabulary, G generated.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Fault = Literal[
    "positions repacked",
    "survivors reused",
    "tower softmax without register",
    "decoder softmax without register",
    "old register visible",
    "wrong tile's register",
    "newline pruned",
    "rows instead of columns",
    "planes of the unmasked order",
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
class Spoken:
    """One turn as ids: `suffix` with the question's own ids at `question`, `generated`, then `closing`."""

    suffix: list[int]
    question: slice
    generated: list[int] = field(default_factory=list)
    closing: list[int] = field(default_factory=list)


class Token(NamedTuple):
    """One token of the conversation: embed [C]; position on each axis; turn -1 is the prefix.

    patch: its number among the patches of all views, -1 if it is none; planes: [levels, C], what DeepStack adds to it
    evaluates: text of the newest turn that scores
    """

    embed: Tensor
    position: tuple[int, ...]
    turn: int = -1
    patch: int = -1
    planes: Tensor | None = None
    is_register: bool = False
    evaluates: bool = False


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The prefix as the language model gets it: text, media less what stage I dropped, at the stock positions.

    end: the position behind the unpruned prefix; register: [1 + levels, C], projected, and its planes; None without
    keep, scores: [P], stage I's; reference: [P], the score that lambda1 multiplies; sizes: patches of each view
    """

    tokens: list[Token]
    end: int
    register: Tensor | None
    keep: Tensor
    scores: Tensor
    reference: Tensor
    sizes: list[int]


class Eye(Protocol):
    """A family's stock model with something to look at."""

    text_model: Any
    head: nn.Module
    end_id: int

    def see(self, rule: Rule | None) -> Seen:
        """The prefix under a rule; None is the stock model."""
        ...

    def say(self, question: str, first: bool) -> Spoken:
        """A turn's ids up to where the answer begins."""
        ...


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a turn came to: ids, logits [G, V], stage1 and stage2 bool [P], scores [P] (NaN: not tested).

    reference: the stage II score that lambda2 multiplies; NaN where nothing was tested; sizes: patches of each view
    """

    suffix: list[int]
    generated: list[int]
    logits: Tensor
    stage1: Tensor
    stage2: Tensor
    scores: Tensor
    reference: float
    sizes: list[int]


class Layout:
    """The whole conversation as columns over its tokens [N], named as `Token` names them."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self.embed = torch.stack([token.embed for token in tokens])
        self.position_AN = torch.tensor([token.position for token in tokens]).T
        self.turn = torch.tensor([token.turn for token in tokens])
        self.patch = torch.tensor([token.patch for token in tokens])
        self.has_planes = torch.tensor([token.planes is not None for token in tokens])
        self.planes = [token.planes for token in tokens if token.planes is not None]
        self.is_register = torch.tensor([token.is_register for token in tokens])
        self.evaluates = torch.tensor([token.evaluates for token in tokens])


@torch.no_grad()
def converse(eye: Eye, questions: Sequence[str], rule: Rule | None, steps: int) -> list[Played]:
    """Ask `questions` in turn, decoding greedily to the end token or for `steps`; rule None is the stock model."""
    seen = eye.see(rule)
    spoken: list[Spoken] = []
    played: list[Played] = []
    for question in questions:
        spoken.append(eye.say(question, first=not spoken))
        stage2, scores, reference = _stage2(eye, _lay_out(eye, seen, spoken, rule), seen, rule)
        if rule and rule.fault == "survivors reused" and played:
            stage2 = played[0].stage2
        logits: list[Tensor] = []
        said = spoken[-1]
        while len(said.generated) < steps and eye.end_id not in said.generated:
            layout = _lay_out(eye, seen, spoken, rule)
            logits.append(_forward(eye, layout, stage2, rule)[0][-1])
            said.generated.append(int(logits[-1].argmax()))
        if eye.end_id not in said.generated:
            said.closing.append(eye.end_id)
        played.append(
            Played(
                suffix=said.suffix,
                generated=said.generated,
                logits=torch.stack(logits),
                stage1=seen.keep,
                stage2=stage2,
                scores=scores,
                reference=reference,
                sizes=seen.sizes,
            )
        )
    return played


def _lay_out(eye: Eye, seen: Seen, spoken: Sequence[Spoken], rule: Rule | None) -> Layout:
    """The prefix, then every turn from the unpruned end on, its register in front of it at its first position."""
    embed = eye.text_model.get_input_embeddings().weight
    axes = len(seen.tokens[0].position)
    tokens, position = list(seen.tokens), seen.end
    whole = rule is None or rule.evaluators == "turn"
    for turn, said in enumerate(spoken):
        if seen.register is not None:
            planes = seen.register[1:] if len(seen.register) > 1 else None
            tokens.append(Token(seen.register[0], (position,) * axes, turn, planes=planes, is_register=True))
        scoring = range(len(said.suffix))[slice(None) if whole else said.question]
        for at, token in enumerate(said.suffix + said.generated + said.closing):
            evaluates = turn == len(spoken) - 1 and at in scoring
            tokens.append(Token(embed[token], (position + at,) * axes, turn, evaluates=evaluates))
        position += len(said.suffix + said.generated + said.closing)
    if rule and rule.fault == "positions repacked":
        tokens = [token._replace(position=(position,) * axes) for position, token in enumerate(tokens)]
    return Layout(tokens)


def _stage2(eye: Eye, layout: Layout, seen: Seen, rule: Rule | None) -> tuple[Tensor, Tensor, float]:
    """The newest turn's survivors [P], scores [P] and reference, from the whole map of layer cut - 1."""
    scores_P = torch.full(seen.keep.shape, torch.nan)
    if rule is None or not seen.keep.any():
        return seen.keep, scores_P, float("nan")
    attention_NN = _forward(eye, layout, seen.keep, rule)[1][rule.cut - 1][0].mean(dim=0)
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
    stage2_P = torch.zeros_like(seen.keep)
    stage2_P[layout.patch[patches]] = keep
    scores_P[layout.patch[patches]] = scores
    return stage2_P, scores_P, float(reference)


def _forward(eye: Eye, layout: Layout, stage2_P: Tensor, rule: Rule | None) -> tuple[Tensor, Sequence[Tensor]]:
    """Logits [N, V] and every attention map [1, H, N, N] of the conversation in one forward of the stock model."""
    lower_NN, upper_NN = _visible(layout, stage2_P, rule)
    cut = rule.cut if rule else 0
    positions = layout.position_AN[:, None] if len(layout.position_AN) > 1 else layout.position_AN
    deepstack = {}
    if layout.planes:
        planes = list(torch.stack(layout.planes, dim=1))
        deepstack = {"visual_pos_masks": layout.has_planes[None], "deepstack_visual_embeds": planes}
    with ExitStack() as hooks:
        for index, layer in enumerate(eye.text_model.layers):
            visible_NN = lower_NN if index < cut else upper_NN
            mask = torch.zeros(visible_NN.shape).masked_fill(~visible_NN, torch.finfo(torch.float32).min)
            hooks.enter_context(_with_mask(layer, mask[None, None]))
        out = eye.text_model(
            inputs_embeds=layout.embed[None],
            position_ids=positions,
            use_cache=False,
            output_attentions=True,
            **deepstack,
        )
    return eye.head(out.last_hidden_state[0]), out.attentions


def _visible(layout: Layout, stage2_P: Tensor, rule: Rule | None) -> tuple[Tensor, Tensor]:
    """bool [N, N], who (row) sees whom (column): in the layers before the cut, and from it on."""
    order = torch.arange(len(layout.turn))
    causal_NN = order[:, None] >= order[None]
    own_r_NN = ~layout.is_register[None] | (layout.turn[:, None] == layout.turn[None])
    if rule and rule.fault == "old register visible":
        return causal_NN, causal_NN & ~_dropped(layout, stage2_P)
    lower_NN = causal_NN & own_r_NN
    old_r = layout.is_register & (layout.turn < layout.turn.max())
    return lower_NN, lower_NN & ~_dropped(layout, stage2_P) & ~old_r


def _dropped(layout: Layout, stage2_P: Tensor) -> Tensor:
    patches = layout.patch >= 0
    dropped = torch.zeros_like(patches)
    dropped[patches] = ~stage2_P[layout.patch[patches]]
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
