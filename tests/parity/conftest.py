from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, VideoLlavaForConditionalGeneration

from occam.engine.engine import Engine
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
