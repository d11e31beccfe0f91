"""The engine under test, asked the way the oracle is asked, and the comparison of the two."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from occam.config import EngineConfig, NoPruning, OccamToken, Pruning, SamplingParams
from occam.engine.engine import Engine
from occam.tensors import PrefixState
from occam.types import Answer, FrameBatch
from tests.parity.oracle import Eye, Played, Rule, converse

QUESTIONS = ("what colour is the ball ?", "where does it go then ?")


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the engine answered, with the logits [G, V] that it sampled from."""

    answer: Answer
    logits: Tensor


def load(checkpoint: Path, chunk_frames: int = 2, dtype: Literal["float32", "bfloat16"] = "float32") -> Engine:
    return Engine.load(EngineConfig(model=str(checkpoint), dtype=dtype, chunk_frames=chunk_frames, threads=1))


def pruning_of(rule: Rule | None) -> Pruning:
    if rule is None:
        return NoPruning()
    names = ("lambda1", "lambda2", "cut", "register", "evaluators", "min_tokens", "keep_cls", "placement")
    return OccamToken(**{name: getattr(rule, name) for name in names})


def video_of(frames: np.ndarray) -> FrameBatch:
    """uint8 [T, H, W, 3] as a video of two frames a second."""
    count = len(frames)
    return FrameBatch(frames=frames, pts_seconds=np.arange(count) / 2, indices=np.arange(count), digest="0" * 64)


def image_of(pixels: np.ndarray) -> FrameBatch:
    """uint8 [H, W, 3] as an image."""
    return FrameBatch(
        frames=pixels[None], pts_seconds=np.zeros(1), indices=np.zeros(1, dtype=np.int64), digest="0" * 64, kind="image"
    )


def build(engine: Engine, frames: np.ndarray, pruning: Pruning, chunk_frames: int = 2) -> PrefixState:
    """A state from uint8 [T, H, W, 3], appended in chunks."""
    return see(engine, [video_of(frames)], pruning, chunk_frames=chunk_frames)


def see(
    engine: Engine, media: Sequence[FrameBatch], pruning: Pruning, system: str = "", chunk_frames: int = 2
) -> PrefixState:
    """A state of several media, each appended in chunks."""
    state = engine.begin(pruning, system)
    for each in media:
        for start in range(0, len(each), chunk_frames):
            state, _ = engine.append(state, each.chunk(start, min(start + chunk_frames, len(each))), pruning)
    return state


def ask(engine: Engine, state: PrefixState, questions: Sequence[str], pruning: Pruning, steps: int) -> list[Reply]:
    """A conversation on one shared state: each follow-up replays the turns before it."""
    replies: list[Reply] = []
    for question in questions:
        session = engine.replay(state, [reply.answer.turn for reply in replies])
        logits: list[Tensor] = []
        sampling = SamplingParams(max_new_tokens=steps)
        answer = engine.ask(session, question, pruning, sampling, on_logits=logits.append)
        replies.append(Reply(answer=answer, logits=torch.stack(logits)))
    return replies


def assert_same(replies: Sequence[Reply], expected: Sequence[Played], rule: Rule | None) -> None:
    """Same ids, same kept sets at both stages, scores and thresholds, and logits to 1e-4."""
    for reply, played in zip(replies, expected, strict=True):
        evidence, counts = reply.answer.evidence, reply.answer.visual_tokens
        assert counts.encoded == played.stage1.numel()
        assert (counts.stage1, counts.stage2) == (int(played.stage1.sum()), int(played.stage2.sum()))
        assert reply.answer.turn.suffix_ids == tuple(played.suffix)
        for frame, stage1, stage2, scores in zip(
            evidence.frames,
            *(t.split(played.sizes) for t in (played.stage1, played.stage2, played.scores)),
            strict=True,
        ):
            assert frame.stage1.flatten().tolist() == stage1.tolist()
            assert frame.stage2.flatten().tolist() == stage2.tolist()
            np.testing.assert_allclose(frame.scores.flatten(), scores.numpy(), atol=1e-6, rtol=1e-4)
        threshold = rule.lambda2 * played.reference if rule else float("nan")
        np.testing.assert_allclose(evidence.threshold, threshold, atol=1e-6, rtol=1e-4)
        assert reply.answer.turn.generated_ids == tuple(played.generated)
        torch.testing.assert_close(reply.logits, played.logits, atol=1e-4, rtol=0)


def thresholds(eye: Eye, rule: Rule, *, empty_view: bool = False) -> Rule:
    """The rule with lambdas that really cut, far from any score; optionally one view keeps nothing."""
    with torch.no_grad():
        seen = eye.see(rule)
    ratios_P = seen.scores / seen.reference
    lambda1 = _widest_gap(ratios_P)
    if empty_view:
        best = torch.stack([ratios.max() for ratios in ratios_P.split(seen.sizes)]).sort().values
        lambda1 = float(best[:2].mean())
    rule = replace(rule, lambda1=lambda1)
    played = converse(eye, QUESTIONS, rule, 1)
    return replace(rule, lambda2=_widest_gap(torch.cat([turn.scores / turn.reference for turn in played])))


def _widest_gap(ratios: Tensor) -> float:
    """A threshold in the middle of the widest gap between the 30th and the 70th percentile of the ratios."""
    ratios = ratios[~ratios.isnan()].sort().values
    inner = ratios[int(0.3 * len(ratios)) : int(0.7 * len(ratios)) + 1]
    at = int(inner.diff().argmax())
    return float(inner[at : at + 2].mean())
