"""The tower runs once for all that see the same of it, and what it would have taken is still counted."""

from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

from occam.config import EngineConfig, OccamToken, Pruning, Random, SamplingParams
from occam.engine import Engine
from pipelines.evaluation.clips import frames_of
from pipelines.evaluation.harness.tower import RememberedTower
from pipelines.evaluation.renderer import draw_scene

RANDOM = Random(budget=0.3)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(EngineConfig(threads=1))


def test_states_are_those_of_the_tower_itself(engine: Engine) -> None:
    frames = frames_of(draw_scene(5))
    defaults = engine.pruning()
    assert isinstance(defaults, OccamToken)
    prunings: list[Pruning] = [
        defaults,
        RANDOM,
        replace(defaults, register="mean_threshold", lambda1=1.0),
        replace(RANDOM, seed=3),
        defaults,
    ]
    tower = RememberedTower(engine.lm, count().__next__)
    over = engine.over(tower.model)
    for pruning in prunings:
        own, remembered = (each.state_of(frames, pruning) for each in (engine, over))
        assert torch.equal(own.ids, remembered.ids)
        assert all(torch.equal(one, other) for one, other in zip(own.keys, remembered.keys, strict=True))
        answers = [each.ask(own, "what", pruning, SamplingParams(max_new_tokens=2)).text for each in (engine, over)]
        assert answers[0] == answers[1]


def test_a_chunk_is_encoded_once_for_all_that_see_the_same_and_its_seconds_are_told_again(engine: Engine) -> None:
    ran: list[tuple[Any, ...]] = []

    class Counted:
        info = engine.info

        def encode(self, *facts: Any) -> Any:
            ran.append(facts)
            return engine.lm.encode(*facts)

    tower = RememberedTower(Counted(), count().__next__)  # type: ignore[arg-type]
    frames = frames_of(draw_scene(5))
    chunks = [frames.chunk(0, 2), frames.chunk(2, 4), frames.chunk(0, 4)]
    for _ in range(3):
        for chunk in chunks:
            tower.encode([chunk], None, "after_norm")
    assert len(ran) == 3
    assert tower.saved_s == 6, "a tick of the clock for each run that was not made"
    tower.encode(chunks[:1], "zero_token", "after_norm")
    tower.encode(chunks[:1], "zero_token", "before_norm")
    assert len(ran) == 5
    assert tower.model.info is engine.info
    assert not np.isnan(tower.saved_s)
