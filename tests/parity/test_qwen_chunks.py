"""Qwen3-VL's states grow by temporal groups: chunks of any even size give the same one, others are refused."""

import pytest
import torch

from occam.config import EngineConfig
from occam.engine.engine import Engine
from occam.errors import InvalidInput
from occam.tensors import PrefixState
from tests.parity.harness import QUESTIONS, ask, pruning_of, see
from tests.parity.matrix import video
from tests.parity.oracle import Rule

STEPS = 8


@pytest.mark.parametrize("rule", [None, Rule(lambda1=0.97, lambda2=1, cut=3)], ids=["none", "occam"])
def test_chunks_of_any_even_size_give_the_same_state(qwen_engine: Engine, rule: Rule | None) -> None:
    media, pruning = [video(11, 48, 64, fps=29.97, step=5)], pruning_of(rule)
    whole = see(qwen_engine, media, pruning, chunk_frames=11)
    reply = ask(qwen_engine, whole, QUESTIONS[:1], pruning, STEPS)[0]
    for chunk_frames in (2, 4):
        state = see(qwen_engine, media, pruning, chunk_frames=chunk_frames)
        for name in ("ids", "positions", "view", "patch", "view_pts", "view_index", "view_grid"):
            assert torch.equal(getattr(state, name), getattr(whole, name))
        for one, other in zip(_floats(state), _floats(whole), strict=True):
            assert (one - other).abs().max() <= 1e-5 * other.abs().max().clamp_min(1)
        again = ask(qwen_engine, state, QUESTIONS[:1], pruning, STEPS)[0]
        assert again.answer.turn == reply.answer.turn
        torch.testing.assert_close(again.logits, reply.logits, atol=1e-5, rtol=1e-5)


def _floats(state: PrefixState) -> list[torch.Tensor]:
    return [*state.keys, *state.values, state.hidden, *state.planes, state.register_sum]


def test_the_embedded_info_says_what_the_family_takes(qwen_engine: Engine) -> None:
    info = qwen_engine.info
    assert (info.family, info.media, info.group, info.frames) == ("qwen3_vl", ("video", "image"), 2, 16)
    assert (info.layers, info.cut, info.max_positions) == (6, 2, 1024)


def test_a_chunk_that_cuts_a_group_apart_is_refused(qwen_engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="groups of 2; chunk_frames must be a multiple of that, got 3"):
        Engine(qwen_engine.lm, EngineConfig(chunk_frames=3))
