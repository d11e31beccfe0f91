"""Pruning off is stock transformers: logits to 1e-4 in fp32, greedy text identical."""

from typing import Any

import pytest
import torch

from occam.engine.engine import Engine
from tests.parity.checkpoint import PATCHES, pixels, random_frames
from tests.parity.harness import QUESTIONS, ask, assert_same, build, pruning_of
from tests.parity.oracle import Rule, converse

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
    assert_same(replies, converse(stock, tokenizer, pixels(frames), QUESTIONS, None, STEPS), None)
