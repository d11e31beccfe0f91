from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration, VideoLlavaForConditionalGeneration

from occam.engine.engine import Engine
from tests.parity import checkpoint_qwen
from tests.parity.checkpoint import write_checkpoint
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
