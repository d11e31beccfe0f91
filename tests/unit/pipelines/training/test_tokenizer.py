"""The tokenizers: forgiving about how a user types, exact about how a prompt is put together."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from pipelines.evaluation.questions import draw_questions
from pipelines.evaluation.renderer import draw_scene
from pipelines.training.tokenizer import QWEN3_VL_WORDS, UNKNOWN, VIDEO_LLAVA_WORDS


@pytest.fixture(scope="module", params=[VIDEO_LLAVA_WORDS, QWEN3_VL_WORDS], ids=["video-llava", "qwen3-vl"])
def words(request):
    return request.param


@pytest.fixture(scope="module")
def loaded(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    words.pretrained().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_questions_and_answers_come_back_and_hold_no_unknown_word(words, loaded):
    for seed in range(50):
        for question in draw_questions(draw_scene(seed), np.random.default_rng(seed), 8):
            ids = loaded(question.text).input_ids
            assert tuple(ids) == words.encode(question.text)
            assert loaded.decode(ids) == question.text
            assert words.id(UNKNOWN) not in ids
            assert len(words.encode(question.answer)) == 1
            assert loaded.decode(words.encode(question.answer)) == question.answer


@pytest.mark.parametrize(
    "typed", ["What color is the circle?", "what  colour is the circle", "WHAT COLOR IS, the circle ?"]
)
def test_typing_does_not_matter(words, typed):
    assert words.encode(typed) == words.encode("what color is the circle")


def test_a_prompt_is_its_parts_in_a_row(words):
    form = words.format
    parts = [form.opening(""), f"{form.question}is there a dot?{form.generation}", f"{form.answer}yes{form.end}"]
    parts.append(f"{form.following}what color is the dot?{form.generation}")
    assert words.encode("".join(parts)) == sum((words.encode(part) for part in parts), ())


def test_unknown_words_are_said_to_be_unknown(words):
    assert words.encode("is there a zebra")[-1] == words.id(UNKNOWN)


def test_any_second_has_its_signs():
    for seconds in ("0.5", "10.0", "733.2"):
        ids = QWEN3_VL_WORDS.encode(f"<|vision_end|><{seconds} seconds><|vision_start|>")
        assert QWEN3_VL_WORDS.id(UNKNOWN) not in ids
        signs = ["<", *seconds.replace(".", ""), "seconds", ">"]
        assert list(ids) == QWEN3_VL_WORDS.ids(["<|vision_end|>", *signs, "<|vision_start|>"])


def test_the_chat_template_writes_the_prompt_of_training(words, loaded):
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "is there a dot?"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "what color is the dot?"},
    ]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    form = words.format
    media = {"</s>": "<video>", "<|im_end|>": "<|vision_start|><|video_pad|><|vision_end|>"}[form.end]
    first = f"{form.opening('')}{media}{form.question}is there a dot?{form.generation}{form.answer}yes{form.end}"
    assert text.rstrip() == f"{first}{form.following}what color is the dot?{form.generation}".rstrip()
