"""What a model's attention does on clips: what the register gets of it and, where the truth is known, where it goes.

Legend: V views, P patches (or merge groups) of a view in raster order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from occam.config import OccamToken, SamplingParams
from occam.engine import Engine
from occam.models.decoder import Decoder
from occam.models.packing import SequenceKV
from occam.types import FrameBatch
from pipelines.evaluation.material import Sample
from pipelines.evaluation.renderer import Scene, SceneObject
from pipelines.evaluation.statistics import Estimate, auc, estimate

COVERED = 0.12
"""Share of a patch from which on it counts as showing an object; patches below it that show a bit of one are left out,
but for the one that shows most of an object without any above."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """A token's share of attention: its mean, and its variation (standard deviation over mean) over `n` samples."""

    mean: float
    variation: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Share":
        """Of these samples."""
        mean = float(np.mean(values))
        return cls(mean=mean, variation=float(np.std(values)) / mean, n=len(values))


@dataclass(frozen=True, kw_only=True)
class AttentionFacts:
    """Measured with a register in place and nothing pruned.

    auc1: of stage I's scores, patches that show any object against background; a mean over clips
    auc2: of stage II's, patches of the one object that a question names against all others; the same
    None where no clip's truth is known, or no question names one object
    register1, register2: the register's share of the evaluators' attention, over views and over questions
    opening2, prompt2: for comparison that of the first token of the turn, and of the first of all
    """

    auc1: Estimate | None
    auc2: Estimate | None
    register1: Share
    register2: Share
    opening2: Share
    prompt2: Share


@torch.inference_mode()
def attention_facts(engine: Engine, pruning: OccamToken, samples: Iterable[Sample]) -> AttentionFacts:
    """Measure on clips and their questions; `pruning` says the cut, who scores and what the register is made of."""
    pruning = replace(pruning, lambda1=0.0, lambda2=1.0)
    watched = _Watched.of(engine.lm.decoder)
    engine = engine.over(replace(cast(Any, engine.lm), decoder=watched))
    auc1, auc2, register1, shares = [], [], [], []
    for sample in samples:
        frames = sample.frames()
        [output] = engine.lm.encode([frames], pruning.register, pruning.placement)
        register1 += cast(Tensor, output.register_scores).tolist()
        auc1 += _stage1(sample, frames, output.scores)
        found, paid = _stage2(engine, watched, pruning, sample, frames)
        auc2 += found
        shares += paid
    register2, opening2, prompt2 = map(Share.of, zip(*shares, strict=True))
    return AttentionFacts(
        auc1=estimate(auc1) if auc1 else None,
        auc2=estimate(auc2) if auc2 else None,
        register1=Share.of(register1),
        register2=register2,
        opening2=opening2,
        prompt2=prompt2,
    )


@torch.inference_mode()
def sinks(engine: Engine, samples: Iterable[Sample]) -> Estimate:
    """Largest patch norm over the median, in the tower's last used block, without a register; over views."""
    norms = (engine.lm.trace(sample.frames(), None).norms[-1].cpu() for sample in samples)
    return estimate(torch.cat([norms_VP.amax(dim=1) / norms_VP.median(dim=1).values for norms_VP in norms]).numpy())


class _Watched(Decoder):
    """The decoder, which remembers the rows that stage II scored with: of state, register and turn."""

    seen: Tensor

    @classmethod
    def of(cls, decoder: Decoder) -> "_Watched":
        """The same decoder, watched."""
        return cls(decoder.model, decoder.head, decoder.rotate, decoder.axes, decoder.levels)

    def rows(self, layer: int, x_TC: Tensor, positions: Tensor, queries: Tensor, sequence: SequenceKV) -> Tensor:
        """See `Decoder`."""
        self.seen = super().rows(layer, x_TC, positions, queries, sequence)
        return self.seen

    def shares(self, *tokens: int) -> list[float]:
        """The tokens' shares of the evaluators' attention."""
        return self.seen.mean(dim=0)[list(tokens)].tolist()


def _stage1(sample: Sample, frames: FrameBatch, scores_VP: Tensor) -> list[float]:
    """The AUC of a clip, of an image by the pass that shows all of it; none where nothing is known or shown."""
    if sample.truth is None:
        return []
    scene = sample.truth.scene
    whole = scores_VP if frames.kind == "video" else scores_VP[:1]
    items = [*scene.objects, *([scene.dot] if scene.dot else [])]
    sides = [isqrt(whole.shape[1])] * len(whole)
    return _auc_of([row.reshape(-1) for row in whole.cpu().numpy()], covers_of(scene, items, sides, len(frames)))


def _stage2(
    engine: Engine, watched: _Watched, pruning: OccamToken, sample: Sample, frames: FrameBatch
) -> tuple[list[float], list[list[float]]]:
    """The mean AUC of a clip's questions (none without any), and of each the shares of register, turn and prompt."""
    state = engine.state_of(frames, pruning)
    aucs, shares = [], []
    for place, text in enumerate(sample.questions):
        evidence = engine.ask(state, text, pruning, SamplingParams(max_new_tokens=1)).evidence
        shares.append(watched.shares(len(state), len(state) + 1, 0))
        named = sample.truth.questions[place].objects if sample.truth else ()
        if sample.truth and len(named) == 1:
            scene, sides = sample.truth.scene, [frame.grid[0] for frame in evidence.frames]
            covers = covers_of(scene, [scene.objects[named[0]]], sides, len(frames))
            aucs += _auc_of([frame.scores.reshape(-1) for frame in evidence.frames], covers)
    return [float(np.mean(aucs))] if aucs else [], shares


def covers_of(
    scene: Scene, items: Sequence[SceneObject], sides: Sequence[int], frames: int
) -> list[npt.NDArray[np.float32]]:
    """For each view of side * side patches, the share of each that one of the items covers at most, in raster order.

    Of the clip's first `frames` frames, each view shows as many as the others and the most in any of them counts; of
    the last, frames may be missing. All views of one frame show that.
    """
    cover = {side: np.max([scene.patch_cover(item, side) for item in items], axis=0) for side in set(sides)}
    group = -(-frames // len(sides))
    starts = [min(view * group, frames - 1) for view in range(len(sides))]
    return [
        cover[side][start : min(start + group, frames)].max(axis=0).reshape(-1)
        for side, start in zip(sides, starts, strict=True)
    ]


def _auc_of(scores: Sequence[npt.NDArray[np.float32]], covers: Sequence[npt.NDArray[np.float32]]) -> list[float]:
    """Over all patches of all views; none where none of them shows anything, or all do."""
    values, cover = np.concatenate(scores), np.concatenate(covers)
    shows = (cover > 0) & (cover >= min(COVERED, cover.max()))
    clear = shows | (cover == 0)
    return [auc(values[clear], shows[clear])] if shows.any() and not shows[clear].all() else []
