"""Held-out accuracy while training: right answers by question kind, every visual token kept."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pipelines.training.data import ClipBatch
from pipelines.training.decoder import run
from pipelines.training.packing import PackedText
from pipelines.training.student import Student


@dataclass
class Score:
    """Right answers and questions, by kind."""

    right: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)

    def add(self, kinds: Iterable[str], right: Iterable[bool]) -> None:
        """Count one answer per kind given."""
        for kind, value in zip(kinds, right, strict=True):
            self.asked[kind] += 1
            self.right[kind] += bool(value)

    def __str__(self) -> str:
        shares = {kind: self.right[kind] / self.asked[kind] for kind in sorted(self.asked)}
        each = " ".join(f"{kind} {share:.2f}" for kind, share in shares.items())
        mean = sum(shares.values()) / len(shares)
        return f"{self.right.total() / self.asked.total():.3f}, mean of kinds {mean:.3f}: {each}"


def rightness(student: Student, hidden: Tensor, text: PackedText) -> Tensor:
    """Which answers are the model's own greedy word, bool [answers], in the order of `text.kinds`."""
    words: Tensor = student.head(hidden[text.answers]).argmax(-1)
    return words == text.targets[text.answers]


@torch.no_grad()
def evaluate(student: Student, batches: Iterable[ClipBatch]) -> Score:
    """Exact match of the answer word."""
    score = Score()
    for batch in batches:
        prefix = student.prefix(batch.frames, student.see(batch.frames, zero_token=False))
        hidden = run(student, prefix, batch.text).text
        kinds = (kind for kinds in batch.text.kinds for kind in kinds)
        score.add(kinds, rightness(student, hidden, batch.text).tolist())
    return score
