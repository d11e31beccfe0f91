"""Pruning off is stock transformers: logits to 1e-4 in fp32, greedy text identical."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from occam.config import NoPruning
from occam.engine.engine import Engine
from occam.engine.prefix import encode
from tests.parity.checkpoint import PATCHES, pixels, random_frames
from tests.parity.harness import QUESTIONS, ask, assert_same, build, pruning_of, video_of
from tests.parity.oracle import Rule, converse
from tests.parity.oracle_tower import VideoLlavaEye

KEEP_ALL = Rule(lambda1=0, lambda2=0, cut=3, register="mean_threshold", keep_cls=True)
STEPS = 16


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("rule", [None, KEEP_ALL], ids=["none", "keeping all"])
def test_one_question_equals_stock_generate(
    engine: Engine, stock: Any, tokenizer: Any, count: int, rule: Rule | None
) -> None:
    frames, pruning = random_frames(count), pruning_of(rule)
    reply = ask(engine, build(engine, frames, pruning), QUESTIONS[:1], pruning, STEPS)[0]
    placeholders = "<video>" * count * (PATCHES + 1)
    prompt = tokenizer(f"USER: {placeholders}\n{QUESTIONS[0]} ASSISTANT:", return_tensors="pt")
    out = stock.generate(
        **prompt,
        pixel_values_videos=pixels(frames)[None],
        max_new_tokens=STEPS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    generated = out.sequences[0, prompt.input_ids.shape[1] :]
    assert reply.answer.text.strip() == tokenizer.decode(generated, skip_special_tokens=True).strip()
    torch.testing.assert_close(reply.logits, torch.cat(out.logits), atol=1e-4, rtol=0)


def test_a_follow_up_equals_one_long_stock_prompt(engine: Engine, stock: Any, tokenizer: Any) -> None:
    frames, pruning = random_frames(3), pruning_of(None)
    replies = ask(engine, build(engine, frames, pruning), QUESTIONS, pruning, STEPS)
    assert_same(replies, converse(VideoLlavaEye(stock, tokenizer, pixels(frames)), QUESTIONS, None, STEPS), None)


def test_a_batch_of_two_lengths_equals_the_stock_model(engine: Engine, stock: Any, tokenizer: Any) -> None:
    """Left-padded, through the layer loop alone: what batching across requests stands on."""
    videos = [random_frames(2, seed=seed) for seed in (0, 1)]
    placeholders = "<video>" * 2 * (PATCHES + 1)
    prompts = tokenizer(
        [f"USER: {placeholders}\n{question} ASSISTANT:" for question in ("what ?", QUESTIONS[0])],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    attended_BT = prompts.attention_mask.bool()
    assert not attended_BT.all()
    positions = (attended_BT.cumsum(dim=1) - 1).clamp_min(0)
    tokens = torch.arange(attended_BT.shape[1])
    causal_TT = tokens[:, None] >= tokens
    visible = causal_TT & (attended_BT[:, None, None] | torch.eye(len(tokens), dtype=torch.bool))
    with torch.inference_mode():
        x_BTC = engine.lm.decoder.embed(prompts.input_ids)
        embedded = [encode(engine.lm, video_of(frames), NoPruning()).embeddings for frames in videos]
        x_BTC[prompts.input_ids == engine.lm.prompt.placeholder_id] = torch.cat(embedded)
        decoder = engine.lm.decoder
        logits = decoder.logits(decoder.run_layers(x_BTC, 0, decoder.layers, DynamicCache(), positions[None], visible))
        pixel_values = torch.stack([pixels(frames) for frames in videos])
        expected = stock(**prompts, position_ids=positions, pixel_values_videos=pixel_values).logits
    torch.testing.assert_close(logits[attended_BT], expected[attended_BT], atol=1e-4, rtol=0)
