"""Many conversations about one clip in one sequence: shared video prefix, block-causal mask, restarting positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.evaluation.questions import Question
from pipelines.training.tokenizer import Words

REGISTER = -1
IGNORE = -100


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedText:
    """The text behind a batch of clips; T is the longest clip's text.

    ids: int64 [B, T], REGISTER where the register token goes
    positions: int64 [B, T], as if each conversation stood alone behind the video
    allowed: bool [B, T, T], which text each text token may see
    targets: int64 [B, T], the next id where it belongs to an answer, else IGNORE
    answers: bool [B, T], places whose next id is an answer's word, a question each
    kinds: per clip, the question kinds in the order of their answers
    """

    ids: torch.Tensor
    positions: torch.Tensor
    allowed: torch.Tensor
    targets: torch.Tensor
    answers: torch.Tensor
    kinds: tuple[tuple[str, ...], ...]


def split_turns(questions: Sequence[Question], rng: np.random.Generator) -> list[list[Question]]:
    """Cut the questions into conversations of one to three turns."""
    conversations, rest = [], list(questions)
    while rest:
        turns = int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
        conversations.append(rest[:turns])
        rest = rest[turns:]
    return conversations


def pack(words: Words, clips: Sequence[Sequence[Sequence[Question]]], start: int, register: bool) -> PackedText:
    """Lay out each clip's conversations; with `register`, one register token stands before each turn.

    start: position of the text behind the prefix. The register takes that of its turn's first text token and is seen
    by its own turn alone.
    """
    rows = [_Row(words, conversations, start, register) for conversations in clips]
    length = max(len(row.ids) for row in rows)
    ids, positions, conversation, turn, targets = (
        torch.tensor([values + [fill] * (length - len(values)) for values in column])
        for column, fill in (
            ([row.ids for row in rows], words.id(words.special[0])),
            ([row.positions for row in rows], 0),
            ([row.conversation for row in rows], -1),
            ([row.turn for row in rows], -1),
            ([row.targets for row in rows], IGNORE),
        )
    )
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    together = conversation[:, :, None] == conversation[:, None, :]
    spent = (ids == REGISTER)[:, None, :] & (turn[:, :, None] != turn[:, None, :])
    return PackedText(
        ids=ids,
        positions=positions,
        allowed=causal & together & ~spent,
        targets=targets,
        answers=(targets != IGNORE) & (targets != words.id(words.format.end)),
        kinds=tuple(tuple(q.kind for turns in clip for q in turns) for clip in clips),
    )


class _Row:
    """One clip's text as plain lists of equal length."""

    def __init__(self, words: Words, conversations: Sequence[Sequence[Question]], start: int, register: bool) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.conversation: list[int] = []
        self.turn: list[int] = []
        self.targets: list[int] = []
        form = words.format
        for number, turns in enumerate(conversations):
            position = start
            for index, question in enumerate(turns):
                opening = form.question if index == 0 else form.following
                prompt = words.encode(f"{opening}{question.text}{form.generation}{form.answer}")
                answer = words.encode(question.answer + form.end)
                ids = (*prompt, *answer)
                targets = [IGNORE] * (len(prompt) - 1) + [*answer, IGNORE]
                if register:
                    self._add([REGISTER], [position], [IGNORE], number, index)
                self._add(ids, range(position, position + len(ids)), targets, number, index)
                position += len(ids)

    def _add(
        self, ids: Sequence[int], positions: Sequence[int], targets: Sequence[int], number: int, turn: int
    ) -> None:
        self.ids += ids
        self.positions += positions
        self.targets += targets
        self.conversation += [number] * len(ids)
        self.turn += [turn] * len(ids)
