"""Training an embedded model: the vision tower on dense labels, then everything on packed conversations."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from occam.errors import InvalidInput
from pipelines.evaluation.renderer import COLORS, FIRST_TUNING_SEED, SHAPES
from pipelines.training.data import SEEDS_A_CLIP, SEEDS_A_RUN, ClipBatch, ClipBatches, load
from pipelines.training.decoder import LateDrop, run
from pipelines.training.drops import GENTLE_SHARE, draw_drops, draw_gentle
from pipelines.training.losses import Looking, build_heads, seeking_loss, summary_loss, telling_loss
from pipelines.training.optim import build_optimizers, set_rate
from pipelines.training.packing import IGNORE, REGISTER
from pipelines.training.score import evaluate, rightness
from pipelines.training.student import FRAMES, Student
from pipelines.training.tower import SEEKING_WEIGHT, pretrain_tower

TELLING_WEIGHT, LOOKING_WEIGHT, SUMMARY_WEIGHT = 0.3, 0.3, 1.0
THAW_SHARE = 0.6
"""Share of the steps after which the tower learns again, slowly."""
WATCHED = ((FRAMES, 1.0, 1.0),)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Sizes of a run; `steps` may be changed when a run resumes, the learning rate follows."""

    seed: int
    out: Path
    tower_steps: int
    tower_scenes: int
    steps: int
    clips: int
    questions: int
    save_minutes: float
    held_out: int = 8

    def __post_init__(self) -> None:
        """InvalidInput for a run whose clips would be those of another run, of calibrations or of tests."""
        last = FIRST_TUNING_SEED // SEEDS_A_RUN - 1
        if not 0 <= self.seed <= last:
            raise InvalidInput(
                f"seed must lie in 0..{last}, got {self.seed}: clips behind are not for training.", "seed"
            )
        drawn = max(self.steps * self.clips * SEEDS_A_CLIP, self.tower_steps * self.tower_scenes)
        if drawn > SEEDS_A_RUN:
            raise InvalidInput(f"A run may draw {SEEDS_A_RUN} clips, this one would draw {drawn}.", "steps")

    @property
    def first_seed(self) -> int:
        """Of the clips that this run sees."""
        return self.seed * SEEDS_A_RUN


def train(kind: type[Student], config: TrainConfig) -> Student:
    """Run both phases and write `export/` and `checkpoint.pt` under `config.out`; goes on where a run stopped."""
    torch.manual_seed(config.seed)
    config.out.mkdir(parents=True, exist_ok=True)
    student = kind.build()
    tower_file = config.out / "tower.pt"
    if not tower_file.exists():
        pretrain_tower(student, config.tower_steps, config.tower_scenes, config.first_seed)
        torch.save(student.model.state_dict(), tower_file)
    student.model.load_state_dict(torch.load(tower_file))
    Trainer(config, student).run()
    student.export(config.out / "export")
    return student


class Trainer:
    """The second phase: bridge and language model, and towards the end the tower."""

    def __init__(self, config: TrainConfig, student: Student) -> None:
        self.config = config
        self.student = student
        llm = student.llm
        self.heads = build_heads(llm.embed_tokens.embedding_dim, student.tower_width)
        body = nn.ModuleList([llm.layers, *student.bridge])
        edges = (llm.embed_tokens, llm.norm, student.head, self.heads)
        self.trained = nn.ModuleList([body, *edges, student.tower])
        self.trained.requires_grad_(True)
        self.optimizers = (
            *build_optimizers(body, edges, muon_lr=3e-3),
            *build_optimizers(student.tower, (), muon_lr=6e-4, adamw_lr=3e-4),
        )
        self.words = torch.tensor(student.words.ids((*SHAPES, *COLORS)))
        self.step = 0
        self.checkpoint = config.out / "checkpoint.pt"

    def run(self) -> None:
        """Train from the last checkpoint to the last step."""
        if self.checkpoint.exists():
            self._resume()
        config, kind = self.config, type(self.student)
        watched = ClipBatches(kind, FIRST_TUNING_SEED, 16, 12, register=False, lengths=WATCHED)
        held_out = list(load(watched, 0, config.held_out))
        started = saved = time.monotonic()
        batches = ClipBatches(kind, config.first_seed, config.clips, config.questions)
        shares: list[float] = []
        for batch in load(batches, self.step, config.steps):
            set_rate(self.optimizers, self.step, config.steps, warmup=30, decay=0.3)
            loss, right = self.learn(batch)
            shares.append(right)
            self.step += 1
            if self.step % 20 == 0:
                pace = f"{time.monotonic() - started:6.0f} s"
                recent = sum(shares[-20:]) / len(shares[-20:])
                print(f"step {self.step:5d} {pace}  loss {loss:.3f}  right {recent:.3f}", flush=True)
            if time.monotonic() - saved > config.save_minutes * 60 or self.step == config.steps:
                self.save()
                print(f"step {self.step:5d} held out {evaluate(self.student, held_out)}", flush=True)
                saved = time.monotonic()

    @property
    def thawed(self) -> bool:
        """Whether the tower learns."""
        return self.step >= THAW_SHARE * self.config.steps

    def learn(self, batch: ClipBatch) -> tuple[float, float]:
        """One step; the loss, and the share of the batch's questions answered right."""
        self.student.tower.requires_grad_(self.thawed)
        entering, late = self._drops(batch)
        loss, right = self._loss(batch, entering, late)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item(), right

    def save(self) -> None:
        """Write what a run needs to go on, and the model as it is."""
        state = {
            "step": self.step,
            "trained": self.trained.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        fresh = self.checkpoint.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.checkpoint)
        self.student.export(self.config.out / "export")

    def _drops(self, batch: ClipBatch) -> tuple[Tensor | None, LateDrop | None]:
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        owner = batch.labels.owner
        if self.step < GENTLE_SHARE * self.config.steps:
            return draw_gentle(owner, generator), None
        return draw_drops(len(owner), owner[0] == IGNORE, generator)

    def _loss(self, batch: ClipBatch, entering: Tensor | None, late: LateDrop | None) -> tuple[Tensor, float]:
        student, text, labels = self.student, batch.text, batch.labels
        features = student.see(batch.frames, zero_token=bool((text.ids == REGISTER).any()))
        prefix = student.prefix(batch.frames, features)
        auxiliary = torch.zeros(())
        if self.thawed and features.summary is not None:
            auxiliary = SUMMARY_WEIGHT * summary_loss(self.heads, features.summary, labels, self.words)
        if self.thawed and features.mutual is not None:
            auxiliary = SEEKING_WEIGHT * seeking_loss(features.mutual, (labels.owner > 0).view_as(features.mutual))
        if entering is not None:
            prefix, labels = prefix.select(entering), labels.at(entering)
        output = run(student, prefix, text, late)
        remaining = labels if late is None else labels.at(late.index)
        places = text.targets != IGNORE
        answers = F.cross_entropy(student.head(output.text[places]), text.targets[places])
        auxiliary = auxiliary + TELLING_WEIGHT * telling_loss(self.heads, output.visual, remaining)
        auxiliary = auxiliary + LOOKING_WEIGHT * Looking(batch, self.words).loss(output, labels, remaining)
        with torch.no_grad():
            right = rightness(student, output.text, text).float().mean().item()
        return answers + auxiliary, right

    def _resume(self) -> None:
        state = torch.load(self.checkpoint)
        self.step = state["step"]
        self.trained.load_state_dict(state["trained"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
