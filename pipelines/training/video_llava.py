"""Train `tiny-video-llava`: `python -m pipelines.training.video_llava --seed 0 --out runs/video-llava`.

First the vision tower on dense labels, then projector and language model on packed conversations. On part of the
batches visual tokens are missing, before the language model or inside it, and a register token stands before each
turn, so that pruning is nothing new to the finished model. Every run resumes from its last checkpoint.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import VideoLlavaForConditionalGeneration as VideoLlava

from pipelines.evaluation.renderer import COLORS, DIRECTIONS, FIRST_TEST_SEED, SHAPES
from pipelines.training.data import ClipBatch, ClipBatches, load
from pipelines.training.evaluate import answers_of, evaluate, rightness
from pipelines.training.model import FRAME_TOKENS, FRAMES, build_model, export
from pipelines.training.network import LOOK_LAYER, LateDrop, project, run_llm, run_tower
from pipelines.training.optim import build_optimizers, set_rate
from pipelines.training.packing import IGNORE, PackedText
from pipelines.training.tokenizer import encode
from pipelines.training.tower import pretrain_tower

AUXILIARY_WEIGHT, LOOK_WEIGHT = 0.3, 0.3
ATTRIBUTES = [encode(word)[0] for word in (*SHAPES, *COLORS)]
LATE_LAYER = LOOK_LAYER + 1
GENTLE_SHARE = 0.55
"""Share of the steps in which at least half of the visual tokens stay: questions must be answerable to be learned."""


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
    held_out: int = 6


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Train the embedded model tiny-video-llava.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tower-steps", type=int, default=500)
    parser.add_argument("--tower-scenes", type=int, default=24, help="scenes of 4 frames a step")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--clips", type=int, default=16, help="clips a step")
    parser.add_argument("--questions", type=int, default=12, help="questions a clip")
    parser.add_argument("--save-minutes", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = vars(parser.parse_args())
    torch.set_num_threads(arguments.pop("threads"))
    train(TrainConfig(**arguments))


def train(config: TrainConfig) -> VideoLlava:
    """Run both phases and write `export/` and `checkpoint.pt` under `config.out`."""
    torch.manual_seed(config.seed)
    config.out.mkdir(parents=True, exist_ok=True)
    model = build_model()
    tower_file = config.out / "tower.pt"
    if not tower_file.exists():
        pretrain_tower(model, config.tower_steps, config.tower_scenes, first_seed=0)
        torch.save(model.model.video_tower.state_dict(), tower_file)
    model.model.video_tower.load_state_dict(torch.load(tower_file))
    model.requires_grad_(False)
    for part in (model.model.multi_modal_projector, model.model.language_model, model.lm_head):
        part.requires_grad_(True)
    Trainer(config, model).run()
    export(model, config.out / "export")
    return model


class Trainer:
    """The second phase: projector and language model behind the frozen tower."""

    def __init__(self, config: TrainConfig, model: VideoLlava) -> None:
        self.config = config
        self.model = model
        self.auxiliary = nn.Linear(model.config.text_config.hidden_size, len(DIRECTIONS) + FRAMES)
        llm = model.model.language_model
        body = nn.ModuleList([llm.layers, model.model.multi_modal_projector])
        self.trained = nn.ModuleList([body, llm.embed_tokens, llm.norm, model.lm_head, self.auxiliary])
        self.optimizers = build_optimizers(
            body, (llm.embed_tokens, llm.norm, model.lm_head, self.auxiliary), muon_lr=3e-3
        )
        self.step = 0
        self.checkpoint = config.out / "checkpoint.pt"

    def run(self) -> None:
        """Train from the last checkpoint to the last step."""
        if self.checkpoint.exists():
            self._resume()
        config = self.config
        held_out = list(load(ClipBatches(FIRST_TEST_SEED, 16, 12, register=False), 0, config.held_out))
        started = saved = time.monotonic()
        batches = ClipBatches(config.seed, config.clips, config.questions, register=None)
        for batch in load(batches, self.step, config.steps):
            set_rate(self.optimizers, self.step, config.steps, warmup=30, decay=0.3)
            loss, right = self._learn(batch)
            self.step += 1
            if self.step % 20 == 0:
                pace = f"{time.monotonic() - started:6.0f} s"
                print(f"step {self.step:5d} {pace}  loss {loss:.3f}  right {right:.3f}", flush=True)
            if time.monotonic() - saved > config.save_minutes * 60 or self.step == config.steps:
                saved = time.monotonic()
                self._save()
                score = evaluate(self.model, held_out)
                kinds = " ".join(f"{kind} {score.share(kind):.2f}" for kind in sorted(score.asked))
                print(f"step {self.step:5d} held out {score.total:.3f}  {kinds}", flush=True)

    def _learn(self, batch: ClipBatch) -> tuple[float, float]:
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.step)
        gentle = self.step < GENTLE_SHARE * self.config.steps
        entering, late = draw_drops(batch.frames.shape[0], generator, gentle)
        loss, right = self._loss(batch, entering, late)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss.item(), right

    def _loss(
        self, batch: ClipBatch, entering: torch.Tensor | None, late: LateDrop | None
    ) -> tuple[torch.Tensor, float]:
        text = batch.text
        register = bool((text.ids < 0).any())
        features = run_tower(self.model, batch.frames.flatten(0, 1), zero_token=register)
        prefix = project(self.model, features, batch.frames.shape[0], zero_token=register)
        patches = (batch.owner, batch.shape, batch.color, batch.motion, batch.onset)
        owner, shape, color, motion, onset = (_with_cls(labels) for labels in patches)
        if entering is not None:
            prefix = prefix.select(entering)
            patches = (owner, shape, color, motion, onset)
            owner, shape, color, motion, onset = (labels.gather(1, entering) for labels in patches)
        output = run_llm(self.model, prefix, text, late)
        if late is not None:
            motion, onset = motion.gather(1, late.index), onset.gather(1, late.index)
        places = text.targets != IGNORE
        answers = F.cross_entropy(self.model.lm_head(output.text[places]), text.targets[places])
        guesses = self.auxiliary(output.visual).flatten(0, 1).split([len(DIRECTIONS), FRAMES], dim=-1)
        auxiliary = [
            F.cross_entropy(guess, truth.flatten(), ignore_index=IGNORE, reduction="sum")
            / max(int((truth != IGNORE).sum()), 1)
            for guess, truth in zip(guesses, (motion, onset), strict=True)
        ]
        with torch.no_grad():
            right = rightness(self.model, output.text, text).float().mean().item()
        looking = look_loss(output.looks, answers_of(text), named_patches(text, owner, batch.named))
        words = torch.isin(text.ids, torch.tensor(ATTRIBUTES))
        looking = looking + look_loss(output.looks, words, shown_patches(text.ids, words, shape, color))
        return answers + AUXILIARY_WEIGHT * sum(auxiliary) + LOOK_WEIGHT * looking, right

    def _save(self) -> None:
        state = {
            "step": self.step,
            "trained": self.trained.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        fresh = self.checkpoint.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.checkpoint)
        export(self.model, self.config.out / "export")

    def _resume(self) -> None:
        state = torch.load(self.checkpoint)
        self.step = state["step"]
        self.trained.load_state_dict(state["trained"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)


def look_loss(looks_BTS: torch.Tensor, places_BT: torch.Tensor, target_NV: torch.Tensor) -> torch.Tensor:
    """Minus log of the attention mass that the N text tokens at `places` put on their target patches."""
    answerable = target_NV.any(dim=1)
    logits, target = looks_BTS[places_BT][answerable], target_NV[answerable]
    on_target = logits[:, 1 : 1 + target.shape[1]].masked_fill(~target, float("-inf"))
    return (logits.logsumexp(1) - on_target.logsumexp(1)).sum() / max(len(target), 1)


def named_patches(text: PackedText, owner_BV: torch.Tensor, named: torch.Tensor) -> torch.Tensor:
    """For the last token of each question, the patches of the objects that the question names, bool [questions, V]."""
    rows = answers_of(text).nonzero()[:, 0]
    return named.gather(1, owner_BV.clamp(min=0)[rows])


def shown_patches(
    ids_BT: torch.Tensor, words_BT: torch.Tensor, shape_BV: torch.Tensor, color_BV: torch.Tensor
) -> torch.Tensor:
    """For every word of a shape or colour, the patches that show it, bool [words, V]."""
    rows, ids = words_BT.nonzero()[:, 0], ids_BT[words_BT][:, None]
    return (shape_BV[rows] == ids) | (color_BV[rows] == ids)


def draw_drops(clips: int, generator: torch.Generator, gentle: bool) -> tuple[torch.Tensor | None, LateDrop | None]:
    """Which visual tokens enter the language model, and which go on after `LATE_LAYER` layers; None means all.

    Two batches in five keep all, the others lose a random share before the model, inside it, or both; the share is
    one per batch so that nothing is padded, the tokens are each clip's own. `gentle` keeps half or more, inside all.
    """
    mode = float(torch.rand((), generator=generator))
    entering, late, count = None, None, FRAMES * FRAME_TOKENS
    if mode < 0.45:
        least = 0.5 if gentle else 0.05 if mode < 0.3 else 0.3
        entering = _draw_subset(clips, count, least, generator)
        count = entering.shape[1]
    if 0.3 <= mode < 0.6 and not gentle:
        late = LateDrop(layer=LATE_LAYER, index=_draw_subset(clips, count, 0.03, generator, cls=entering is None))
    return entering, late


def _draw_subset(clips: int, count: int, least: float, generator: torch.Generator, cls: bool = True) -> torch.Tensor:
    """A random share of between `least` and 1 of the tokens, [clips, kept], ascending; CLS tokens half of the time.

    cls: the tokens are whole frames, every FRAME_TOKENS-th of them a CLS token
    """
    order = torch.rand(clips, count, generator=generator)
    share = least + (1 - least) * float(torch.rand((), generator=generator))
    usable = count
    if cls and float(torch.rand((), generator=generator)) < 0.5:
        order[:, ::FRAME_TOKENS] = 2.0
        usable -= count // FRAME_TOKENS
    kept = max(1, round(share * usable))
    return order.argsort(dim=1)[:, :kept].sort(dim=1).values


def _with_cls(labels_BP: torch.Tensor) -> torch.Tensor:
    """Patch labels [B, F * patches] with an ignored one for every frame's CLS token, [B, F * FRAME_TOKENS]."""
    frames = labels_BP.unflatten(1, (FRAMES, FRAME_TOKENS - 1))
    return F.pad(frames, (1, 0), value=IGNORE).flatten(1)


if __name__ == "__main__":
    main()
