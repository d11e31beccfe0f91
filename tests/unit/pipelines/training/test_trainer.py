"""The trainer: drops keep their promises, a run resumes where it stopped, and a step changes what it should."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from occam.errors import InvalidInput
from pipelines.evaluation.questions import TEMPLATES
from pipelines.evaluation.renderer import UNSEEN_PAIRS, SceneConfig, draw_scene
from pipelines.training import trainer
from pipelines.training.data import ABOUT_DOTS, COMPARING, LENGTHS, NAMELESS, WEIGHTS, ClipBatches, conversations_about
from pipelines.training.decoder import Look
from pipelines.training.drops import draw_drops, draw_gentle
from pipelines.training.labels import DOT
from pipelines.training.losses import look_loss, seeking_loss, showing, shown_by
from pipelines.training.score import evaluate
from pipelines.training.student import FRAMES
from pipelines.training.tiny_qwen3_vl import TinyQwen3VL
from pipelines.training.tiny_video_llava import FRAME_TOKENS, TinyVideoLlava
from pipelines.training.trainer import TrainConfig, Trainer

VISUAL = FRAMES * FRAME_TOKENS
CLS = torch.arange(VISUAL) % FRAME_TOKENS == 0
CLIPS = ((FRAMES, 1.0, 1.0),)
STUDENTS = pytest.mark.parametrize("kind", [TinyVideoLlava, TinyQwen3VL], ids=lambda kind: kind.name)


def test_drops_are_sorted_subsets_of_every_kind():
    generator = torch.Generator().manual_seed(0)
    kinds, cls_kept = set(), set()
    for _ in range(200):
        entering, late = draw_drops(3, CLS, generator)
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


def test_gentle_drops_keep_half_or_every_object():
    generator = torch.Generator().manual_seed(0)
    owner = (torch.rand(4, VISUAL, generator=generator) < 0.1).long()
    shares = set()
    for _ in range(100):
        entering = draw_gentle(owner, generator)
        if entering is None:
            shares.add("all")
            continue
        assert (entering.diff(dim=1) > 0).all()
        few = entering.shape[1] < VISUAL // 2
        shares.add("objects" if few else "half")
        assert not few or (owner.gather(1, entering).sum(dim=1) == owner.sum(dim=1)).all()
    assert shares == {"all", "half", "objects"}


def test_looking_at_the_named_object_costs_nothing_and_elsewhere_costs_much():
    places = torch.tensor([[False, True, True]])
    target = torch.tensor([[False, False, True, False], [False, False, False, False]])
    visual = torch.tensor([[1, 2, 3, 5]])
    for place, cost in ((3, 0.0), (2, 30.0), (4, 30.0)):
        logits = torch.zeros(1, 3, 8)
        logits[0, 1, place] = 30.0
        assert look_loss(Look(logits=logits, visual=visual), places, target).item() == pytest.approx(cost, abs=1e-4)
    look = Look(logits=torch.zeros(1, 3, 8), visual=visual)
    assert look_loss(look, places, target).item() == pytest.approx(np.log(8))
    assert look_loss(look, places, torch.zeros_like(target)).item() == 0.0


def test_seeking_costs_nothing_where_attention_lies_evenly_on_what_shows_something():
    shown = torch.tensor([[True, False, True, False], [False] * 4])
    for row, cost in (
        ([0.5, 0.0, 0.5, 0.0], 0.0),
        ([0.25, 0.25, 0.25, 0.25], np.log(2)),
        ([0.9, 0.0, 0.1, 0.0], -0.5 * np.log(1.8 * 0.2)),
    ):
        mutual = torch.tensor([row, [0.25] * 4])
        assert seeking_loss(mutual, shown).item() == pytest.approx(cost, abs=1e-5)
    assert seeking_loss(mutual, torch.zeros_like(shown)).item() == 0.0


@STUDENTS
def test_the_patches_to_look_at_show_what_is_said_and_meant(kind):
    batch = ClipBatches(kind, 0, 3, 8, register=True, lengths=CLIPS)[0]
    owner, scenes = batch.labels.owner, [draw_scene(row, SceneConfig(unseen_pairs=False)) for row in range(3)]
    words = torch.tensor(
        kind.words.ids([word for scene in scenes for item in scene.objects for word in (item.shape, item.color)])
    )
    said = torch.isin(batch.text.ids, words)
    spoken = zip(said.nonzero()[:, 0].tolist(), batch.text.ids[said].tolist(), strict=True)
    for (row, id_), patches in zip(spoken, showing(batch.text.ids, said, batch.labels), strict=True):
        alike = [1 + i for i, o in enumerate(scenes[row].objects) if id_ in kind.words.ids((o.shape, o.color))]
        assert set(owner[row][patches].tolist()) <= set(alike)
        assert bool(patches.any()) == bool(alike)
    questions = [(row, q) for row in range(3) for turns in conversations_about(scenes[row], 8) for q in turns]
    rows = torch.tensor([row for row, _ in questions])
    kinds = set()
    for place, (row, question) in enumerate(questions):
        kinds.add(question.kind)
        wanted = {1 + index for index in question.objects}
        if question.kind in ABOUT_DOTS:
            wanted = {DOT} if scenes[row].dot else set()
        opening, closing = wanted, wanted
        if question.kind in COMPARING:
            opening, closing = ({1 + index} for index in question.objects)
        if question.kind == "count":
            opening = closing = set()
        named = set() if question.kind in NAMELESS else wanted
        assert bool(batch.compared[place]) == (question.kind in COMPARING)
        for objects, owners in ((batch.named, named), (batch.opening, opening), (batch.closing, closing)):
            patches = shown_by(batch.labels, objects, rows)[place]
            assert set(owner[row][patches].tolist()) == owners, question
    assert kinds & set(COMPARING)


@STUDENTS
def test_batches_come_in_all_lengths_and_hold_no_unseen_pair(kind):
    lengths = set()
    for index in range(40):
        batch = ClipBatches(kind, 7_000, 2, 3)[index]
        frames = batch.frames.shape[1]
        lengths.add((frames, batch.frames.shape[0]))
        layout = kind.layout(frames)
        assert batch.labels.owner.shape == (len(batch.frames), len(layout.visual))
        ids = batch.text.ids.flatten().tolist()
        for pair in UNSEEN_PAIRS:
            assert tuple(kind.words.ids(pair)) not in set(itertools.pairwise(ids))
    assert lengths == {(frames, max(1, round(2 * share))) for frames, share, _ in LENGTHS}


def test_training_scenes_hold_no_unseen_pair_and_others_do():
    def pairs(config):
        return {(o.color, o.shape) for seed in range(150) for o in draw_scene(seed, config).objects}

    assert not pairs(SceneConfig(unseen_pairs=False)) & UNSEEN_PAIRS
    assert len(pairs(SceneConfig(unseen_pairs=False))) == 42 - len(UNSEEN_PAIRS)
    assert pairs(SceneConfig()) >= UNSEEN_PAIRS


def test_every_kind_has_a_weight():
    assert set(WEIGHTS) == set(TEMPLATES)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A trainer so small that a step takes a fraction of a second, without a loader's worker."""
    monkeypatch.setattr(trainer, "load", lambda batches, first, stop: (batches[i] for i in range(first, stop)))
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


def small(kind, config):
    torch.manual_seed(config.seed)
    return Trainer(config, kind.build(llm_layers=5))


@STUDENTS
def test_a_resumed_run_equals_one_that_never_stopped(kind, config, tmp_path):
    (tmp_path / "straight").mkdir()
    straight = small(kind, dataclasses.replace(config, out=tmp_path / "straight"))
    straight.run()
    first = small(kind, config)
    batches = ClipBatches(kind, config.first_seed, config.clips, config.questions)
    for step in range(2):
        trainer.set_rate(first.optimizers, step, config.steps, warmup=30, decay=0.3)
        first.learn(batches[step])
        first.step += 1
    first.save()
    second = small(kind, config)
    second.run()
    for one, two in zip(straight.trained.parameters(), second.trained.parameters(), strict=True):
        torch.testing.assert_close(one, two)


@STUDENTS
@pytest.mark.parametrize("step", [0, 3])
def test_a_step_moves_every_trained_part_and_the_tower_at_the_end_alone(kind, config, step):
    run = small(kind, config)
    run.step = step
    before = {name: value.clone() for name, value in run.student.model.state_dict().items()}
    trainer.set_rate(run.optimizers, 20, 40, warmup=1, decay=0.4)
    run.learn(ClipBatches(kind, 0, 2, 4, register=True, lengths=CLIPS)[0])
    moved = {name for name, value in run.student.model.state_dict().items() if not value.equal(before[name])}
    tower = {
        f"{name}." for name, part in run.student.model.named_modules() if part in list(run.student.tower.modules())
    }
    of_tower = {name for name in before if name.startswith(tuple(tower)) or "image_tower" in name}
    assert moved >= set(before) - of_tower
    assert bool(moved & of_tower) == (step == 3)


@pytest.mark.parametrize("change", [{"seed": -1}, {"seed": 9}, {"steps": 60_000}, {"tower_steps": 160_000}], ids=str)
def test_no_run_trains_on_clips_of_another_or_of_tests(config, change):
    with pytest.raises(InvalidInput, match=r"seed must lie in 0\.\.8|may draw 100000 clips"):
        dataclasses.replace(config, **change)
    assert dataclasses.replace(config, seed=8).first_seed == 800_000


def test_scores_count_every_question(config):
    run = small(TinyQwen3VL, config)
    batches = [ClipBatches(TinyQwen3VL, 0, 2, 4, register=False, lengths=CLIPS)[index] for index in range(2)]
    score = evaluate(run.student, batches)
    assert score.asked.total() == sum(len(kinds) for batch in batches for kinds in batch.text.kinds)
