"""Follow-ups in int8 are exact too: a restored state gives the cold run's bits."""

from pathlib import Path

import pytest
import torch

from occam.config import EngineConfig
from occam.engine import Engine
from occam.kv.codec import decode, encode
from tests.parity.harness import QUESTIONS, ask, pruning_of, see
from tests.parity.matrix import MATRIX, WRITERS
from tests.parity.oracle import Rule

STEPS = 6
# Mixtures of experts are refused in int8.
FAMILIES = [(name, next(iter(MATRIX[name]))) for name in MATRIX if not name.endswith("_moe")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name.replace(" ", "-"))) for name, write in WRITERS.items()}


@pytest.mark.usefixtures("int8_anywhere")
@pytest.mark.parametrize(("name", "cell"), FAMILIES)
def test_a_follow_up_in_int8_is_bitwise_the_cold_run(folders: dict[str, Path], name: str, cell: str) -> None:
    config = EngineConfig(model=str(folders[name]), chunk_frames=2, threads=1, quantization="int8")
    prompt, engine = MATRIX[name][cell], Engine.load(config)
    pruning = pruning_of(Rule(lambda1=0.5, lambda2=1.0, cut=2, register="zero_token"))
    cold = see(engine, prompt.media, pruning)
    warm = decode(*encode(see(engine, prompt.media, pruning)))
    for one, other in zip(
        ask(engine, cold, QUESTIONS, pruning, STEPS), ask(engine, warm, QUESTIONS, pruning, STEPS), strict=True
    ):
        assert one.answer.turn == other.answer.turn
        assert torch.equal(one.logits, other.logits)
