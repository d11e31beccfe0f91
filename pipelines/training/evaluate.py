"""Held-out accuracy of a checkpoint by question kind, beside what a blind model and a shuffled video give.

`python -m pipelines.training.evaluate occam/models/tiny/video_llava`: clips of unseen seeds, 384 pixels through
H.264, every visual token kept.
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import VideoLlavaForConditionalGeneration as VideoLlava

from pipelines.evaluation.questions import WEIGHTS
from pipelines.evaluation.renderer import FIRST_TEST_SEED
from pipelines.training.data import ClipBatch, ClipBatches
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
    words: torch.Tensor = model.lm_head(hidden[places]).argmax(-1)
    return words == text.targets[places]


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
    """Exact match of the training clips' most frequent answer to the same text, or else to the same kind."""
    seen: dict[object, Counter[int]] = defaultdict(Counter)
    for batch in train:
        for kind, prompt, answer in _questions(batch.text):
            seen[prompt][answer] += 1
            seen[kind][answer] += 1
    score = Score()
    for batch in test:
        for kind, prompt, answer in _questions(batch.text):
            usual = seen[prompt if prompt in seen else kind].most_common(1)
            score.add([kind], [bool(usual) and usual[0][0] == answer])
    return score


def _questions(text: PackedText) -> Iterable[tuple[str, tuple[int, ...], int]]:
    """Kind, ids of the turn's question, and id of its answer."""
    places = answers_of(text)
    for row, kinds in enumerate(text.kinds):
        start = 0
        for kind, place in zip(kinds, places[row].nonzero().flatten().tolist(), strict=True):
            yield kind, tuple(text.ids[row, start + 1 : place].tolist()), int(text.targets[row, place])
            start = place + 2


def table(**scores: Score) -> str:
    """The scores side by side as a Markdown table, a row per question kind and one for all."""
    first = next(iter(scores.values()))
    lines = [f"| kind | n | {' | '.join(scores)} |", "|---|---|" + "---|" * len(scores)]
    for kind in (kind for kind in WEIGHTS if first.asked[kind]):
        shares = " | ".join(f"{100 * score.share(kind):.1f}" for score in scores.values())
        lines.append(f"| {kind} | {first.asked[kind]} | {shares} |")
    totals = " | ".join(f"{100 * score.total:.1f}" for score in scores.values())
    return "\n".join([*lines, f"| all | {first.asked.total()} | {totals} |"])


def main() -> None:
    """Print the table of one checkpoint."""
    parser = argparse.ArgumentParser(description="Held-out accuracy of a tiny Video-LLaVA by question kind.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--questions", type=int, default=6, help="questions a clip")
    arguments = parser.parse_args()
    model = VideoLlava.from_pretrained(arguments.model, dtype=torch.float32)
    test = ClipBatches(FIRST_TEST_SEED, 16, arguments.questions, register=False, h264_only=True)
    batches = [test[index] for index in range(arguments.clips // 16)]
    train = ClipBatches(0, 16, arguments.questions, register=False)
    print(
        table(
            model=evaluate(model, batches),
            shuffled=evaluate(model, batches, shuffled=True),
            blind=evaluate_blind((train[index] for index in range(40)), batches),
        )
    )


if __name__ == "__main__":
    main()
