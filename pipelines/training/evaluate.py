"""Held-out accuracy of a checkpoint by question kind, beside what a blind model and a shuffled video give."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from transformers import VideoLlavaForConditionalGeneration as VideoLlava

from pipelines.training.data import ClipBatch
from pipelines.training.network import project, run_llm, run_tower
from pipelines.training.packing import IGNORE, PackedText
from pipelines.training.tokenizer import EOS, encode


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

    @property
    def total(self) -> float:
        """Share of all answers that are right."""
        return self.right.total() / self.asked.total()

    def share(self, kind: str) -> float:
        """Share of right answers of one kind."""
        return self.right[kind] / self.asked[kind]


def answers_of(text: PackedText) -> torch.Tensor:
    """Places whose next id is an answer word, bool [B, T]; the end that follows each is left out."""
    return (text.targets != IGNORE) & (text.targets != encode(EOS)[0])


def rightness(model: VideoLlava, hidden: torch.Tensor, text: PackedText) -> torch.Tensor:
    """Which answers are the model's own greedy word, bool [answers], in the order of `text.kinds`."""
    places = answers_of(text)
    return model.lm_head(hidden[places]).argmax(-1) == text.targets[places]


@torch.no_grad()
def evaluate(model: VideoLlava, batches: Iterable[ClipBatch], shuffled: bool = False) -> Score:
    """Exact match of the answer word, every visual token kept; `shuffled` shows each clip its neighbour's frames."""
    score = Score()
    for batch in batches:
        clips = batch.frames.shape[0]
        frames = batch.frames.roll(1, 0) if shuffled else batch.frames
        prefix = project(model, run_tower(model, frames.flatten(0, 1), False), clips, False)
        hidden = run_llm(model, prefix, batch.text).text
        score.add((kind for kinds in batch.text.kinds for kind in kinds), rightness(model, hidden, batch.text).tolist())
    return score


def evaluate_blind(train: Iterable[ClipBatch], test: Iterable[ClipBatch]) -> Score:
    """Exact match of the most frequent training answer to the same question text, seen without the video."""
    seen: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for batch in train:
        for _, prompt, answer in _questions(batch.text):
            seen[prompt][answer] += 1
    score = Score()
    for batch in test:
        for kind, prompt, answer in _questions(batch.text):
            score.add([kind], [bool(seen[prompt]) and seen[prompt].most_common(1)[0][0] == answer])
    return score


def _questions(text: PackedText) -> Iterable[tuple[str, tuple[int, ...], int]]:
    """Kind, ids of the turn's question, and id of its answer."""
    places = answers_of(text)
    for row, kinds in enumerate(text.kinds):
        start = 0
        for kind, place in zip(kinds, places[row].nonzero().flatten().tolist(), strict=True):
            yield kind, tuple(text.ids[row, start + 1 : place].tolist()), int(text.targets[row, place])
            start = place + 2
