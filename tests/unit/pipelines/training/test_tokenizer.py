"""The tokenizer: forgiving about how a user types, exact about how a prompt is put together."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from pipelines.evaluation.questions import draw_questions
from pipelines.evaluation.renderer import draw_scene
from pipelines.training.tokenizer import UNKNOWN, build_tokenizer, encode, pretrained_tokenizer


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    pretrained_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_questions_come_back_and_hold_no_unknown_word(loaded):
    for seed in range(50):
        for question in draw_questions(draw_scene(seed), np.random.default_rng(seed), 8):
            ids = loaded(question.text).input_ids
            assert tuple(ids) == encode(question.text)
            assert loaded.decode(ids) == question.text
            assert encode(UNKNOWN)[0] not in ids


@pytest.mark.parametrize(
    "typed", ["What color is the circle?", "what  colour is the circle", "WHAT COLOR IS, the circle ?"]
)
def test_typing_does_not_matter(typed):
    assert encode(typed) == encode("what color is the circle")


def test_a_prompt_is_its_parts_in_a_row():
    parts = ["USER: <video>", "\nis there a dot? ASSISTANT:", " yes</s>", "USER: what color is the dot? ASSISTANT:"]
    assert encode("".join(parts)) == sum((encode(part) for part in parts), ())
    assert encode("</s> USER: is there a dot") == encode("</s>USER: is there a dot")
    assert len(encode("USER: <video>\n")) == 3


def test_unknown_words_are_said_to_be_unknown():
    assert encode("is there a zebra")[-1] == build_tokenizer().token_to_id(UNKNOWN)


def test_the_chat_template_writes_the_prompt_of_training(loaded):
    messages = [
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "is there a dot?"}]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "what color is the dot?"},
    ]
    text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "USER: <video>\nis there a dot? ASSISTANT: yes</s>USER: what color is the dot? ASSISTANT:"
