"""A state that went through the codec, or whose embeddings did, against the state that did not: bitwise the same."""

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from occam.config import OccamToken
from occam.kv import embeddings
from occam.kv.codec import Manifest, decode, encode
from occam.tensors import MediumTokens
from tests.parity.checkpoint import random_frames
from tests.parity.harness import QUESTIONS, ask, build, load, video_of
from tests.states import assert_same


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("family", "strategy", "cut"),
    [
        ("checkpoint", "occam", 3),
        ("checkpoint", "none", 3),
        ("qwen_checkpoint", "occam", 1),
        ("qwen_checkpoint", "occam", 3),
        ("qwen_checkpoint", "none", 3),
    ],
)
def test_a_restored_state_answers_as_the_first_one_bit_for_bit(
    request: pytest.FixtureRequest, family: str, strategy: str, cut: int, dtype: Literal["float32", "bfloat16"]
) -> None:
    """Cut 1 of Qwen3-VL leaves a DeepStack plane to be added above it."""
    engine = load(request.getfixturevalue(family), dtype=dtype)
    pruning = engine.pruning(strategy)
    if isinstance(pruning, OccamToken):
        pruning = replace(pruning, cut=cut)
    state = build(engine, random_frames(3), pruning)
    manifest, parts = encode(state)
    restored = decode(Manifest.from_bytes(manifest.to_bytes()), [bytes(part) for part in parts])
    assert_same(restored, state)
    cold, warm = (ask(engine, each, QUESTIONS[:2], pruning, steps=8) for each in (state, restored))
    for one, other in zip(cold, warm, strict=True):
        assert one.answer.turn == other.answer.turn
        assert torch.equal(one.logits, other.logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["checkpoint", "qwen_checkpoint"])
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("none", {}),
        ("random", {"budget": 0.5}),
        ("divprune", {"budget": 0.4}),
        ("evs", {"budget": 0.5}),
        ("cdpruner", {"budget": 0.5}),
        ("sparsevlm", {"budget": 0.5}),
    ],
)
def test_embeddings_that_went_through_the_codec_make_the_state_of_the_frames_bit_for_bit(
    request: pytest.FixtureRequest,
    family: str,
    strategy: str,
    options: dict[str, Any],
    dtype: Literal["float32", "bfloat16"],
) -> None:
    """Under strategies without a cut, that take a whole video at once, or that decide by the question."""
    engine = load(request.getfixturevalue(family), dtype=dtype)
    pruning = engine.asked(engine.pruning(strategy, **options), QUESTIONS[0])
    video = video_of(random_frames(4))
    step = engine.chunk(pruning, len(video))
    chunks = [video.chunk(start, min(start + step, len(video))) for start in range(0, len(video), step)]
    state = begun = engine.begin(pruning, "what is")
    for chunk in chunks * 2:  # two media
        state, _ = engine.append(state, chunk, pruning)
    stored = embeddings.encode(MediumTokens(chunks=tuple(engine.encode(chunk, pruning)[0] for chunk in chunks)))
    medium = embeddings.decode(*stored)
    assert engine.fits_media(medium)
    again = begun
    for tokens in medium.chunks * 2:
        again, _ = engine.extend(again, tokens, begins=tokens is medium.chunks[0])
    assert again.media == 2
    assert_same(again, state)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["checkpoint", "qwen_checkpoint"])
def test_a_state_from_an_int8_wire_answers_nearly_as_the_first_one(
    request: pytest.FixtureRequest, family: str, dtype: Literal["float32", "bfloat16"]
) -> None:
    """Nothing is pruned, so no kept set can flip."""
    engine = load(request.getfixturevalue(family), dtype=dtype)
    pruning = engine.pruning("none")
    state = build(engine, random_frames(3), pruning)
    restored = decode(*encode(state, "int8"))
    assert engine.fits(pruning, restored)
    [cold], [warm] = (ask(engine, each, QUESTIONS[:1], pruning, steps=1) for each in (state, restored))
    assert 0 < (cold.logits - warm.logits).abs().max() < 0.1 * cold.logits.std()
