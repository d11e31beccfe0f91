"""Growing a prefix state: text, chunks of frames, finished turns. Nothing here depends on a question still open.

Cold and warm runs come through here with the same operations in the same shapes, which is what makes a restored
state bitwise equal to a recomputed one.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from occam.config import CDPruner, Pruning
from occam.errors import QuestionTooLong, VideoTooLarge
from occam.models.base import TowerOutput, VideoLM
from occam.models.packing import Pack, SequenceKV
from occam.pruning import strategy_for
from occam.pruning.strategy import ProjectedEvidence
from occam.tensors import MediaTokens, PrefixState
from occam.transfer import upload
from occam.types import FrameBatch, Turn

Clock = Callable[[], float]


def empty_state(lm: VideoLM, pruning: Pruning) -> PrefixState:
    """A state of no tokens, with the layers below the cut."""
    model, lower = lm.decoder.model, lower_layers(lm, pruning)
    none = model.embed_tokens.weight.new_zeros
    heads, head_dim = lm.decoder.kv_shape
    ids = torch.zeros(0, dtype=torch.int64, device=none(0).device)
    kv = tuple(none(heads, 0, head_dim) for _ in range(lower))
    width, levels = model.embed_tokens.embedding_dim, lm.decoder.levels
    return PrefixState(
        ids=ids,
        positions=ids.expand(lm.decoder.axes, 0),
        view=ids,
        patch=ids,
        keys=kv,
        values=kv,
        hidden=none(0, width),
        planes=tuple(none(0, width) for _ in range(lower, levels)),
        register_sum=none(1 + levels, width, dtype=torch.float32),
        register_count=0,
        view_medium=torch.zeros(0, dtype=torch.int64),
        view_pts=torch.zeros(0, dtype=torch.float64),
        view_index=torch.zeros(0, dtype=torch.int64),
        view_grid=torch.zeros(0, 2, dtype=torch.int64),
        next_position=0,
        encoded=0,
        turns=0,
    )


def lower_layers(lm: VideoLM, pruning: Pruning) -> int:
    """Decoder layers in front of the first cut, whose cache a state holds: all of them where nothing is cut."""
    return (*strategy_for(pruning).cuts(lm.decoder.layers), lm.decoder.layers)[0]


def begin(lm: VideoLM, pruning: Pruning, system: str) -> PrefixState:
    """The state of the text in front of the media."""
    state, ids = empty_state(lm, pruning), lm.prompt.prefix_ids(system)
    check_length(lm, state, len(ids), "system")
    return append_text(lm, state, ids)


def extend(lm: VideoLM, state: PrefixState, tokens: MediaTokens, begins: bool) -> PrefixState:
    """The state with one encoded chunk of media behind it, through the lower layers; `begins`: it begins a medium."""
    check_media_length(lm, state, tokens.length)
    grown = _grow(
        lm,
        state,
        tokens.embeddings,
        ids=tokens.ids,
        positions=state.next_position + tokens.positions,
        view=torch.where(tokens.view < 0, -1, tokens.view + len(state.view_pts)),
        patch=tokens.patch,
        planes=tokens.planes,
    )
    medium = state.media if begins else max(state.media - 1, 0)
    return replace(
        grown,
        register_sum=state.register_sum + tokens.register_sum,
        register_count=state.register_count + tokens.register_count,
        view_medium=torch.cat([state.view_medium, torch.full_like(tokens.indices, medium)]),
        view_pts=torch.cat([state.view_pts, tokens.pts_seconds]),
        view_index=torch.cat([state.view_index, tokens.indices]),
        view_grid=torch.cat([state.view_grid, tokens.grid]),
        next_position=state.next_position + tokens.length,
        encoded=state.encoded + tokens.encoded,
    )


def encode(lm: VideoLM, chunks: Sequence[tuple[FrameBatch, Pruning]]) -> list[MediaTokens]:
    """What the language model gets of each chunk; all go through the tower together, in one way."""
    strategy = strategy_for(chunks[0][1])
    outputs = lm.encode([media for media, _ in chunks], strategy.register, strategy.placement)
    return [_tokens(lm, *chunk, output) for chunk, output in zip(chunks, outputs, strict=True)]


def _tokens(lm: VideoLM, media: FrameBatch, pruning: Pruning, output: TowerOutput) -> MediaTokens:
    """Stage I per view, the projector over the survivors and the register, and a choice among what it gives."""
    strategy = strategy_for(pruning)
    mask = strategy.in_tower(output.scores, output.register_scores)
    output = replace(output, features=strategy.merged(output.features, output.scores, output.keys))
    tokens = lm.compose(media, output, mask.keep.view_as(output.scores), strategy.keep_cls)
    if not strategy.projected:
        return tokens
    patches = tokens.patch >= 0
    evidence = ProjectedEvidence(
        embeddings_NC=tokens.embeddings[patches],
        view_N=tokens.view[patches],
        patch_N=tokens.patch[patches],
        question_TC=_question_embeddings(lm, pruning),
    )
    return tokens.narrowed(strategy.behind_projector(evidence))


def _question_embeddings(lm: VideoLM, pruning: Pruning) -> Tensor | None:
    """Embeddings [T, C] of the question that a strategy reads before the decoder does."""
    if not isinstance(pruning, CDPruner):
        return None
    ids, (first, last) = lm.prompt.turn_ids(pruning.question, first=True)
    return lm.decoder.embed(upload(ids[first:last], lm.decoder.model.embed_tokens.weight.device))


def append_text(lm: VideoLM, state: PrefixState, ids: Sequence[int]) -> PrefixState:
    """The state with text behind it that every later token sees; the caller has checked its length."""
    if not ids:
        return state
    tokens = upload(ids, state.ids.device)
    text = torch.full_like(tokens, -1)
    positions = turn_positions(state, len(ids), registers=0)
    grown = _grow(lm, state, lm.decoder.embed(tokens), ids=tokens, positions=positions, view=text, patch=text)
    return replace(grown, next_position=state.next_position + len(ids))


def append_turn(lm: VideoLM, state: PrefixState, turn: Turn) -> PrefixState:
    """The state with a finished turn behind it; the turn's register is seen by the turn, then leaves the state.

    One block [r; suffix; generated; closing], whether the turn ended a moment ago or is replayed from its ids.
    QuestionTooLong where it passes the model's positions, its closing not counted: `stream` does not count it either.
    """
    check_length(lm, state, len(turn.suffix_ids) + len(turn.generated_ids), "messages")
    ids = [*turn.suffix_ids, *turn.generated_ids, *turn.closing_ids]
    register = register_token(state)
    if register is None:
        return replace(append_text(lm, state, ids), turns=state.turns + 1)
    tokens = upload([lm.prompt.placeholder_id, *ids], state.ids.device)
    text = torch.full_like(tokens, -1)
    grown = _grow(
        lm,
        state,
        torch.cat([register[:1], lm.decoder.embed(tokens[1:])]),
        ids=tokens,
        positions=turn_positions(state, len(ids), registers=1),
        view=text,
        patch=text,
        planes=register_planes(register, len(ids)),
    )
    return replace(without(grown, len(state)), next_position=state.next_position + len(ids), turns=state.turns + 1)


def register_token(state: PrefixState) -> Tensor | None:
    """The mean of the views' projected registers and of their planes, [1 + levels, C]; None without a register."""
    if state.register_count == 0:
        return None
    return (state.register_sum / state.register_count).to(state.hidden.dtype)


def register_planes(register: Tensor, text: int) -> tuple[Tensor, ...]:
    """The DeepStack planes [1 + T, C] of a turn: the register's own, and nothing for its text."""
    nothing = register.new_zeros(text, register.shape[1])
    return tuple(torch.cat([plane[None], nothing]) for plane in register[1:])


def turn_positions(state: PrefixState, tokens: int, registers: int) -> Tensor:
    """Positions of a turn's tokens behind `registers` registers, which share the first of them; int64 [A, R + T]."""
    positions = state.next_position + torch.arange(tokens, device=state.ids.device)
    return torch.cat([positions[:1].expand(registers), positions]).expand(len(state.positions), -1)


def lower_sequence(lm: VideoLM, state: PrefixState, room: int) -> SequenceKV:
    """A sequence that begins with the state's keys and values; growing it leaves the state as it is."""
    return SequenceKV(lm.decoder.layers, room, state.keys, state.values)


def check_length(lm: VideoLM, state: PrefixState, text: int, param: str, new_tokens: int = 0) -> None:
    """QuestionTooLong where the conversation would pass the model's positions, counted unpruned.

    Looked at before anything is computed: what a text costs grows with the square of its length.
    """
    length = state.next_position + text + new_tokens
    if length > lm.info.max_positions:
        share = f" ({new_tokens} of them for the answer)" if new_tokens else ""
        raise QuestionTooLong(
            f"The conversation would take {length} positions unpruned{share}, the model has {lm.info.max_positions}.",
            param,
        )


def check_media_length(lm: VideoLM, state: PrefixState, length: int) -> None:
    """Raise where a chunk of media passes the model's positions: the larger of text and frames is at fault."""
    total = state.next_position + length
    if total <= lm.info.max_positions:
        return
    text = int((state.view < 0).cumprod(dim=0).sum())
    message = (
        f"The text in front of the frames takes {text} positions, the frames so far {total - text} unpruned; "
        f"the model has {lm.info.max_positions}. "
    )
    if text > total - text:
        raise QuestionTooLong(message + "Shorten the text.", "system")
    raise VideoTooLarge(message + "Ask for fewer frames.", "max_frames")


def without(state: PrefixState, index: int) -> PrefixState:
    """The state less one token."""
    rest = torch.arange(len(state) - 1, device=state.ids.device)
    rest = rest + (rest >= index)
    return replace(
        state,
        ids=state.ids[rest],
        positions=state.positions[:, rest],
        view=state.view[rest],
        patch=state.patch[rest],
        keys=tuple(keys[:, rest] for keys in state.keys),
        values=tuple(values[:, rest] for values in state.values),
        hidden=state.hidden[rest],
        planes=tuple(plane[rest] for plane in state.planes),
    )


def _grow(
    lm: VideoLM,
    state: PrefixState,
    x: Tensor,
    *,
    ids: Tensor,
    positions: Tensor,
    view: Tensor,
    patch: Tensor,
    planes: Sequence[Tensor] = (),
) -> PrefixState:
    """Run new tokens [T, C] through the lower layers behind the state, and put them into a new one."""
    if x.shape[0] == 0:
        return state
    lower = len(state.keys)
    sequence = lower_sequence(lm, state, room=len(x))
    planes = planes or [torch.zeros_like(x)] * lm.decoder.levels
    hidden = lm.decoder.run_layers(x, 0, lower, Pack([sequence], [len(x)]), positions, planes)
    return replace(
        state,
        ids=torch.cat([state.ids, ids]),
        positions=torch.cat([state.positions, positions], dim=1),
        view=torch.cat([state.view, view]),
        patch=torch.cat([state.patch, patch]),
        keys=tuple(sequence.keys(layer) for layer in range(lower)),
        values=tuple(sequence.values(layer) for layer in range(lower)),
        hidden=torch.cat([state.hidden, hidden]),
        planes=tuple(torch.cat(pair) for pair in zip(state.planes, planes[lower:], strict=True)),
    )
