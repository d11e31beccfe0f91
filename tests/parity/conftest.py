from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen3VLForConditionalGeneration,
    VideoLlavaForConditionalGeneration,
)

from occam.engine.engine import Engine
from tests.parity import checkpoint_qwen
from tests.parity.checkpoint import write_checkpoint
from tests.parity.checkpoint_llava import write_llava, write_llava_next
from tests.parity.eye_llava import LlavaCase
from tests.parity.harness import load


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def stock(checkpoint: Path) -> Any:
    return VideoLlavaForConditionalGeneration.from_pretrained(checkpoint, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Engine:
    return load(checkpoint)


@pytest.fixture(scope="session")
def llava_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LlavaCase]:
    """Cases by name: llava, llava full, next llama, next mistral."""

    @cache
    def case(name: str) -> LlavaCase:
        folder = tmp_path_factory.mktemp(name.replace(" ", "-"))
        kind, _, detail = name.partition(" ")
        if kind == "llava":
            write_llava(folder, detail or "default")
        else:
            write_llava_next(folder, detail)
        stock = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
        return LlavaCase(folder, stock, AutoTokenizer.from_pretrained(folder))

    return case


@pytest.fixture(scope="session")
def qwen_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_qwen.write_checkpoint(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="session")
def qwen_stock(qwen_checkpoint: Path) -> Any:
    return Qwen3VLForConditionalGeneration.from_pretrained(qwen_checkpoint, attn_implementation="eager").eval()


@pytest.fixture(scope="session")
def qwen_tokenizer(qwen_checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(qwen_checkpoint)


@pytest.fixture(scope="session")
def qwen_engine(qwen_checkpoint: Path) -> Engine:
    return load(qwen_checkpoint)
