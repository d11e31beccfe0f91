"""ChatML's pieces through a tokenizer of bytes whose merges run across the pieces' borders."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from occam.config import EngineConfig
from occam.errors import InvalidInput
from occam.models.prompt import CHATML, Prompt
from occam.models.registry import load_model
from tests.parity.checkpoint_qwen import write_checkpoint


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Prompt:
    folder = write_checkpoint(tmp_path_factory.mktemp("qwen"))
    return Prompt(AutoTokenizer.from_pretrained(folder), CHATML, "<|video_pad|>")


@pytest.mark.parametrize("answer", ["red", "", "\nred", "\n\nred", "\n", " red", "\r\nred"])
def test_an_answer_keeps_every_character_behind_the_generation_prompt(prompt: Prompt, answer: str) -> None:
    """Two newlines are one token: the prompt's last one is there already, the answer's own must not fall to it."""
    opened = prompt.tokenizer.encode(CHATML.generation, add_special_tokens=False)
    assert prompt.tokenizer.decode([*opened, *prompt.answer_ids(answer)]) == CHATML.generation + answer


def test_two_newlines_are_one_token_of_this_tokenizer(prompt: Prompt) -> None:
    """Otherwise the test above tests nothing."""
    assert len(prompt.tokenizer.encode("\n\n")) == 1


TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}"""
PLACES = {
    "chat_template.jinja": lambda template: template,
    "chat_template.json": lambda template: json.dumps({"chat_template": template}),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_model_that_thinks_first_is_refused(tmp_path: Path, place: str) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / place).write_text(PLACES[place](TEMPLATE))
    assert load_model(EngineConfig(model=str(folder))).prompt.format == CHATML
    (folder / place).write_text(PLACES[place](TEMPLATE.replace("assistant\\n", "assistant\\n<think>\\n")))
    with pytest.raises(InvalidInput, match=r"answer by .*<think>.n', .* models that think .* are not") as raised:
        load_model(EngineConfig(model=str(folder)))
    assert raised.value.param == "model"
