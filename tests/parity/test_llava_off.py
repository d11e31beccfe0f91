"""LLaVA-1.5 and LLaVA-NeXT with pruning off: stock transformers, logits to 1e-4 in fp32, greedy text identical."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from occam.config import NoPruning
from occam.engine.prefix import encode
from tests.parity.checkpoint_llava import random_image
from tests.parity.eye_llava import LlavaCase, state_of
from tests.parity.harness import QUESTIONS, ask

STEPS = 8
OFF = NoPruning()
SYSTEM = "what is the ball"
WIDE, TALL, TINY, SQUARE, LARGE, THREAD = [(40, 150)], [(190, 33)], [(2, 3)], [(56, 56)], [(201, 303)], [(1, 190)]
TWO = [(70, 100), (150, 33)]
PROMPTS = {
    "llava": [(WIDE, ""), (TALL, ""), (TWO, SYSTEM)],
    "llava full": [(TINY, "")],
    "next llama": [*((sizes, "") for sizes in (WIDE, TALL, TINY, SQUARE, LARGE, THREAD, TWO)), (TWO, SYSTEM)],
    "next mistral": [(LARGE, ""), (TWO, SYSTEM)],
}
"""By case: sizes of the images in one prompt, and the text before them."""
Cases = Callable[[str], LlavaCase]


def prompt_of(case: LlavaCase, images: int, question: str, system: str = "") -> str:
    """The documented stock form, a newline behind every image."""
    media = "<image>\n" * images
    if case.stock.config.text_config.model_type == "mistral":
        return (f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else "") + f"[INST] {media}{question} [/INST]"
    return (f"{system} " if system else "") + f"USER: {media}{question} ASSISTANT:"


@pytest.mark.parametrize("name", PROMPTS)
def test_conversations_equal_stock_processor_and_generate(llava_case: Cases, name: str) -> None:
    case, prompts = llava_case(name), PROMPTS[name]
    batches = [[random_image(*size, seed=at) for at, size in enumerate(sizes)] for sizes, _ in prompts]
    for images, (_, system) in zip(batches, prompts, strict=True):
        inputs = case.stock_inputs(prompt_of(case, len(images), QUESTIONS[0], system), images)
        state = state_of(case.engine, images, OFF, system)
        replies = ask(case.engine, state, QUESTIONS, OFF, STEPS)
        ids = inputs["input_ids"]
        assert [*state.ids.tolist(), *replies[0].answer.turn.suffix_ids] == ids[0].tolist()
        out = case.stock.generate(
            **inputs, max_new_tokens=STEPS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        generated = out.sequences[:, ids.shape[1] :]
        assert replies[0].answer.turn.generated_ids == tuple(generated[0].tolist())
        torch.testing.assert_close(replies[0].logits, torch.cat(out.logits), atol=1e-4, rtol=0)
        _assert_follow_up(case, inputs, replies)


def _assert_follow_up(case: LlavaCase, inputs: Any, replies: Any) -> None:
    """The second turn, against one long stock prompt."""
    turns = [reply.answer.turn for reply in replies]
    behind = [*turns[0].generated_ids, *turns[0].closing_ids, *turns[1].suffix_ids, *turns[1].generated_ids]
    ids = torch.cat([inputs["input_ids"], torch.tensor([behind])], dim=1)
    whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        logits = case.stock(**whole).logits[0, -STEPS - 1 : -1]
    torch.testing.assert_close(replies[1].logits, logits, atol=1e-4, rtol=0)


def test_a_batch_of_two_lengths_equals_the_stock_model(llava_case: Cases) -> None:
    """Left-padded, through the layer loop alone: what batching across requests stands on."""
    case = llava_case("next llama")
    engine, images = case.engine, [random_image(70, 100), random_image(150, 33, seed=1)]
    tokens = [encode(engine.lm, image, OFF) for image in images]
    visual = [chunk.ids == engine.lm.prompt.placeholder_id for chunk in tokens]
    prompts = case.tokenizer(
        [
            f"USER: {'<image>' * int(own.sum())}\n{question} ASSISTANT:"
            for own, question in zip(visual, ("what ?", QUESTIONS[0]), strict=True)
        ],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    attended_BT = prompts.attention_mask.bool()
    assert not attended_BT.all()
    positions = (attended_BT.cumsum(dim=1) - 1).clamp_min(0)
    count = torch.arange(attended_BT.shape[1])
    visible = (count[:, None] >= count) & (attended_BT[:, None, None] | torch.eye(len(count), dtype=torch.bool))
    with torch.inference_mode():
        decoder = engine.lm.decoder
        x_BTC = decoder.embed(prompts.input_ids)
        embedded = [chunk.embeddings[own] for chunk, own in zip(tokens, visual, strict=True)]
        x_BTC[prompts.input_ids == engine.lm.prompt.placeholder_id] = torch.cat(embedded)
        logits = decoder.logits(decoder.run_layers(x_BTC, 0, decoder.layers, DynamicCache(), positions[None], visible))
        expected = case.stock(**prompts, position_ids=positions, **case.stock_pixels(images)).logits
    torch.testing.assert_close(logits[attended_BT], expected[attended_BT], atol=1e-4, rtol=0)
