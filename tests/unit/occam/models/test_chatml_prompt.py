"""ChatML's pieces through a tokenizer of bytes whose merges run across the pieces' borders."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from occam.models.prompt import CHATML, Prompt
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
