"""What a model's attention does on clips whose truth is known: where it goes, and what the zero token gets of it.

Legend: V views, P patches (or merge groups) of a view in raster order, G * G = P.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import isqrt
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache

from occam.config import OccamToken, SamplingParams
from occam.engine import Engine
from occam.models.decoder import Decoder
from occam.types import FrameBatch
from pipelines.evaluation.adaptivity import about_one_object
from pipelines.evaluation.clips import clean_frames_of, scenes, state_of
from pipelines.evaluation.material import Progress
from pipelines.evaluation.renderer import Scene, SceneConfig, SceneObject
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
    """Measured with the zero token in place and nothing pruned.

    auc1: of stage I's scores, patches that show any object against background; a mean over clips
    auc2: of stage II's, patches of the one object that a question names against all others; the same
    zero1, zero2: the zero token's share of the evaluators' attention, over views and over questions
    opening2, prompt2: for comparison that of the first token of the turn, and of the first of all
    sinks: largest patch norm over the median, in the tower's last used block, without the zero token; over views
    """

    auc1: Estimate
    auc2: Estimate
    zero1: Share
    zero2: Share
    opening2: Share
    prompt2: Share
    sinks: Estimate


def attention_facts(
    engine: Engine, pruning: OccamToken, first_seed: int, clips: int, progress: Progress
) -> AttentionFacts:
    """Measure on `clips` clips, about every object of each that can be named; `pruning` says the cut and who scores."""
    pruning = replace(pruning, register="zero_token", lambda1=0.0, lambda2=1.0)
    watched = _Watched.of(engine.lm.decoder)
    engine = Engine(replace(cast(Any, engine.lm), decoder=watched), engine.config)
    auc1, auc2, zero1, shares, sinks = [], [], [], [], []
    config = SceneConfig(unseen_pairs=False)
    for done, scene in enumerate(islice(scenes(first_seed, config), clips), start=1):
        frames = clean_frames_of(scene)
        scores_VP, zero_V, ratio_V = _tower(engine, pruning, frames)
        items = [*scene.objects, *([scene.dot] if scene.dot else [])]
        auc1.append(_auc_of(scores_VP, cover_of(scene, items, scores_VP.shape)))
        zero1 += zero_V.tolist()
        sinks.append(ratio_V.tolist())
        found, paid = _stage2(engine, watched, pruning, scene, frames)
        auc2 += found
        shares += paid
        progress("attention", done, clips)
    zero2, opening2, prompt2 = map(Share.of, zip(*shares, strict=True))
    return AttentionFacts(
        auc1=estimate(auc1),
        auc2=estimate(auc2),
        zero1=Share.of(zero1),
        zero2=zero2,
        opening2=opening2,
        prompt2=prompt2,
        sinks=estimate(sinks),
    )


class _Watched(Decoder):
    """The decoder, which remembers the rows that stage II scored with: of state, zero token and turn."""

    seen: Tensor

    @classmethod
    def of(cls, decoder: Decoder) -> "_Watched":
        """The same decoder, watched."""
        return cls(decoder.model, decoder.head, decoder.rotate, decoder.axes, decoder.levels)

    def rows(self, layer: int, x_BTC: Tensor, positions: Tensor, queries: Tensor, cache: DynamicCache) -> Tensor:
        """See `Decoder`."""
        self.seen = super().rows(layer, x_BTC, positions, queries, cache)
        return self.seen

    def shares(self, *tokens: int) -> list[float]:
        """The tokens' shares of the evaluators' attention."""
        return self.seen[0].mean(dim=0)[list(tokens)].tolist()


@torch.inference_mode()
def _tower(
    engine: Engine, pruning: OccamToken, frames: FrameBatch
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Stage I's scores [V, P], the zero token's [V], and the largest norm over the median [V]."""
    output = engine.lm.encode(frames, pruning.register, pruning.placement)
    norms = engine.lm.trace(frames, None).norms[-1].cpu()
    return (
        output.scores.cpu().numpy(),
        cast(Tensor, output.register_scores).cpu().numpy(),
        (norms.amax(dim=1) / norms.median(dim=1).values).numpy(),
    )


def _stage2(
    engine: Engine, watched: _Watched, pruning: OccamToken, scene: Scene, frames: FrameBatch
) -> tuple[list[float], list[list[float]]]:
    """The mean AUC of a clip's questions (none without any), and of each the shares of zero token, turn and prompt."""
    state = state_of(engine, frames, pruning)
    aucs, shares = [], []
    for question in about_one_object(scene, np.random.default_rng(scene.seed)):
        evidence = engine.ask(state, question.text, pruning, SamplingParams(max_new_tokens=1)).evidence
        scores_VP = np.stack([frame.scores.reshape(-1) for frame in evidence.frames])
        aucs.append(_auc_of(scores_VP, cover_of(scene, [scene.objects[question.objects[0]]], scores_VP.shape)))
        shares.append(watched.shares(len(state), len(state) + 1, 0))
    return [float(np.mean(aucs))] if aucs else [], shares


def cover_of(scene: Scene, items: Sequence[SceneObject], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Share of each patch that one of the items covers at most in any frame of its view, [V, P].

    Views are of equal numbers of frames; of the last, frames may be missing.
    """
    views, patches = shape
    cover = np.max([scene.patch_cover(item, isqrt(patches)) for item in items], axis=0)
    group = -(-scene.frames // views)
    padded = np.pad(cover, ((0, views * group - scene.frames), (0, 0), (0, 0)))
    most: npt.NDArray[np.float32] = padded.reshape(views, group, patches).max(axis=1)
    return most


def _auc_of(scores: npt.NDArray[np.float32], cover: npt.NDArray[np.float32]) -> float:
    shows = cover >= min(COVERED, cover.max())
    clear = shows | (cover == 0)
    return auc(scores[clear], shows[clear])
