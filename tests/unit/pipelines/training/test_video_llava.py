"""The trainer: drops keep their promises, a run resumes where it stopped, and a step changes what it should."""

import dataclasses

import numpy as np
import pytest
import torch

from pipelines.training import video_llava
from pipelines.training.data import ClipBatches
from pipelines.training.evaluate import evaluate, evaluate_blind
from pipelines.training.model import FRAME_TOKENS, FRAMES, build_model
from pipelines.training.packing import IGNORE
from pipelines.training.video_llava import TrainConfig, Trainer, draw_drops, look_loss

VISUAL = FRAMES * FRAME_TOKENS


def test_drops_are_sorted_subsets_of_every_kind():
    generator = torch.Generator().manual_seed(0)
    kinds, cls_kept = set(), set()
    for _ in range(200):
        entering, late = draw_drops(3, generator, gentle=False)
        kinds.add((entering is not None, late is not None))
        count = VISUAL if entering is None else entering.shape[1]
        for index, limit in ((entering, VISUAL), (None if late is None else late.index, count)):
            if index is not None:
                assert 1 <= index.shape[1] <= limit
                assert 0 <= index.min() <= index.max() < limit
                assert (index.diff(dim=1) > 0).all()
        if entering is not None and entering.shape[1] > 150:
            cls_kept.add(bool((entering % FRAME_TOKENS == 0).any()))
    assert kinds == {(False, False), (True, False), (False, True), (True, True)}
    assert cls_kept == {True, False}


def test_gentle_drops_keep_half_of_the_patches_and_all_inside_the_model():
    generator = torch.Generator().manual_seed(0)
    drops = [draw_drops(2, generator, gentle=True) for _ in range(100)]
    assert all(late is None for _, late in drops)
    assert min(entering.shape[1] for entering, _ in drops if entering is not None) >= (VISUAL - FRAMES) // 2


def test_looking_at_the_named_object_costs_nothing_and_elsewhere_costs_much():
    owner = torch.tensor([[IGNORE, 0, 1, 2]])
    places = torch.tensor([[False, True, True]])
    named = torch.tensor([[False, True, False], [False, False, False]])
    for place, cost in ((3, 0.0), (4, 30.0)):
        looks = torch.zeros(1, 3, 8)
        looks[0, 1, place] = 30.0
        assert look_loss(looks, places, owner, named).item() == pytest.approx(cost, abs=1e-4)
    everywhere = look_loss(torch.zeros(1, 3, 8), places, owner, named)
    assert everywhere.item() == pytest.approx(np.log(8))
    assert look_loss(torch.zeros(1, 3, 8), places, owner, torch.zeros_like(named)).item() == 0.0


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A trainer so small that a step takes a fraction of a second, without a loader's worker."""
    monkeypatch.setattr(video_llava, "load", lambda batches, first, stop: (batches[i] for i in range(first, stop)))
    return TrainConfig(
        seed=0,
        out=tmp_path,
        tower_steps=1,
        tower_scenes=1,
        steps=4,
        clips=2,
        questions=3,
        save_minutes=60.0,
        held_out=1,
    )


def trainer(config):
    torch.manual_seed(config.seed)
    model = build_model(llm_layers=5)
    model.model.video_tower.requires_grad_(False)
    return Trainer(config, model)


def test_a_resumed_run_equals_one_that_never_stopped(config, tmp_path):
    (tmp_path / "straight").mkdir()
    straight = trainer(dataclasses.replace(config, out=tmp_path / "straight"))
    straight.run()
    first = trainer(config)
    batches = ClipBatches(config.seed, config.clips, config.questions, register=None)
    for step in range(2):
        video_llava.set_rate(first.optimizers, step, config.steps, warmup=30, decay=0.3)
        first._learn(batches[step])
        first.step += 1
    first._save()
    second = trainer(config)
    second.run()
    for one, two in zip(straight.trained.parameters(), second.trained.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_a_step_moves_every_trained_part_and_leaves_the_tower(config):
    run = trainer(config)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    video_llava.set_rate(run.optimizers, 20, 40, warmup=1, decay=0.4)
    run._learn(ClipBatches(0, 2, 4, register=True)[0])
    moved = {name for name, value in run.model.state_dict().items() if not value.equal(before[name])}
    trained = {name for name in before if "tower" not in name}
    assert moved == trained


def test_blind_and_shuffled_scores_count_every_question():
    batches = [ClipBatches(0, 2, 4, register=False)[index] for index in range(2)]
    asked = sum(len(kinds) for batch in batches for kinds in batch.text.kinds)
    assert evaluate_blind(batches, batches).asked.total() == asked
    assert evaluate_blind(batches, batches).total > evaluate_blind(batches[:1], batches[1:]).total
    torch.manual_seed(0)
    assert evaluate(build_model(llm_layers=1), batches, shuffled=True).asked.total() == asked
