"""What a medium will cost is known before it is decoded, exactly, for every family and size."""

from pathlib import Path

import pytest

from occam.config import NoPruning
from tests.parity.harness import load
from tests.parity.matrix import MATRIX, WRITERS


@pytest.mark.parametrize("family", MATRIX)
def test_the_tower_makes_as_many_tokens_as_was_said(family: str, tmp_path: Path) -> None:
    engine, pruning = load(WRITERS[family](tmp_path)), NoPruning()
    for prompt in MATRIX[family].values():
        for medium in prompt.media:
            _, height, width, _ = medium.frames.shape
            said = engine.visual_tokens(medium.kind, len(medium), height, width)
            step = engine.chunk(pruning, len(medium))
            chunks = [medium.chunk(at, min(at + step, len(medium))) for at in range(0, len(medium), step)]
            assert said == sum(engine.encode(chunk, pruning)[0].encoded for chunk in chunks) > 0
