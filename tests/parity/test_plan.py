"""What a plan says before anything is decoded, beside what then comes of it: for every family, size and kind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from occam.config import FastV, NoPruning, Pruning
from occam.engine.engine import Engine
from occam.types import FrameBatch, MediumShape
from tests.parity.harness import ask, load, see
from tests.parity.matrix import CELLS, MATRIX, WRITERS


@pytest.fixture(scope="module")
def engine_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Engine]:
    engines: dict[str, Engine] = {}

    def get(model: str) -> Engine:
        if model not in engines:
            folder: Path = tmp_path_factory.mktemp("plan")
            engines[model] = load(WRITERS[model](folder))
        return engines[model]

    return get


def shape_of(media: FrameBatch) -> MediumShape:
    height, width = media.frames.shape[1:3]
    return MediumShape(kind=media.kind, height=height, width=width, pts_seconds=tuple(media.pts_seconds.tolist()))


@pytest.mark.parametrize("pruning", [NoPruning(), FastV(budget=0.5, cut=1)], ids=lambda pruning: pruning.name)
@pytest.mark.parametrize(("model", "name"), CELLS)
def test_a_plan_is_what_comes_of_it(
    model: str, name: str, pruning: Pruning, engine_of: Callable[[str], Engine]
) -> None:
    engine, prompt = engine_of(model), MATRIX[model][name]
    shapes = [shape_of(media) for media in prompt.media]
    plan = engine.plan(shapes, pruning, prompt.system, [prompt.question, "what"])
    state = see(engine, prompt.media, pruning, prompt.system)
    kept = int((state.patch >= 0).sum())
    answer = ask(engine, state, [prompt.question], pruning, steps=1)[0].answer
    assert plan.encoded == answer.visual_tokens.encoded
    assert plan.beside == len(state) - kept
    assert plan.turns[0] == len(answer.turn.suffix_ids)
    assert plan.token_nbytes * len(state) == state.nbytes - state.register_sum.nbytes
    later = engine.plan(shapes, pruning, prompt.system, ["what"], first=False)
    assert later.turns == (len(engine.lm.prompt.turn_ids("what", first=False)[0]),)
