"""Facts about attention, recomputed the long way; and the card of a model that takes pairs of frames, and images."""

from dataclasses import replace
from math import isqrt

import numpy as np
import pytest
import torch

from occam.config import EngineConfig, OccamToken, SamplingParams
from occam.engine import Engine
from pipelines.evaluation import card
from pipelines.evaluation.adaptivity import about_one_object
from pipelines.evaluation.attention import COVERED, Share, attention_facts, covers_of, sinks
from pipelines.evaluation.clips import clean_frames_of
from pipelines.evaluation.material import Sample
from pipelines.evaluation.questions import TEMPLATES, TEMPORAL
from pipelines.evaluation.renderer import FIRST_TEST_SEED, Scene, SceneConfig, SceneObject, draw_scene
from tests.parity.checkpoint_qwen import write_checkpoint

SEED = FIRST_TEST_SEED + 5
"""A clip of three objects, all with names, and a dot."""


@pytest.fixture(scope="module")
def pairs_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("qwen")))


def covers(scene: Scene, items: list[SceneObject], shape: tuple[int, ...]) -> np.ndarray:
    return np.stack(covers_of(scene, items, [isqrt(shape[1])] * shape[0], scene.frames))


def _literal_auc(scores: np.ndarray, cover: np.ndarray) -> float:
    shown, background = scores[cover >= min(COVERED, cover.max())], scores[cover == 0]
    wins = [1.0 if one > other else 0.5 if one == other else 0.0 for one in shown for other in background]
    return sum(wins) / len(wins)


@pytest.mark.parametrize("family", ["video-llava", "qwen3-vl"])
@torch.inference_mode()
def test_the_facts_are_what_the_engine_shows(family: str, pairs_model: str) -> None:
    engine = Engine.load(EngineConfig(model="tiny-video-llava" if family == "video-llava" else pairs_model, threads=1))
    calibrated = engine.pruning("occam")
    assert isinstance(calibrated, OccamToken)
    scene = draw_scene(SEED, SceneConfig(unseen_pairs=False))
    frames = clean_frames_of(scene)
    questions = about_one_object(scene, np.random.default_rng(SEED))
    pruning = replace(calibrated, register="zero_token", lambda1=0.0, lambda2=1.0)
    samples = [Sample.known(frames, scene, questions)]
    facts = attention_facts(engine, replace(calibrated, register="zero_token"), samples)

    [output] = engine.lm.encode([frames], "zero_token", "after_norm")
    scores = output.scores.numpy()
    items = [*scene.objects, *([scene.dot] if scene.dot else [])]
    assert facts.auc1.mean == pytest.approx(_literal_auc(scores, covers(scene, items, scores.shape)))
    assert facts.register1.mean == pytest.approx(float(output.register_scores.mean()))
    norms = engine.lm.trace(frames, None).norms[-1].numpy()
    assert sinks(engine, samples).mean == pytest.approx(np.mean(norms.max(axis=1) / np.median(norms, axis=1)), rel=0.02)

    state = engine.state_of(frames, pruning)
    aucs, shares = [], []
    for question in questions:
        evidence = engine.ask(state, question.text, pruning, SamplingParams(max_new_tokens=1)).evidence
        scores = np.stack([frame.scores.reshape(-1) for frame in evidence.frames])
        assert not np.isnan(scores).any(), "every patch is scored"
        aucs.append(_literal_auc(scores, covers(scene, [scene.objects[question.objects[0]]], scores.shape)))
        shares.append(evidence.threshold)
    assert len(shares) > 1
    assert facts.auc2.mean == pytest.approx(np.mean(aucs))
    assert (facts.register2.mean, facts.register2.n) == (pytest.approx(np.mean(shares)), len(shares))
    assert facts.register2.variation == pytest.approx(np.std(shares) / np.mean(shares), rel=1e-4)
    assert len({facts.register2.mean, facts.opening2.mean, facts.prompt2.mean}) == 3

    own = replace(calibrated, register="zero_token" if family == "video-llava" else "neurons")
    unknown = attention_facts(engine, own, [replace(samples[0], truth=None)])
    assert (unknown.auc1, unknown.auc2) == (None, None)
    assert unknown.register2.n == len(questions)
    assert (unknown.register1 == facts.register1) == (own.register == "zero_token"), "the register asked for"


def test_variation_is_relative_to_the_mean() -> None:
    share = Share.of([1.0, 3.0])
    assert (share.mean, share.variation, share.n) == (2.0, 0.5, 2)


def test_the_card_of_a_model_that_takes_images(pairs_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert card.main(["--print", "--per-kind", "1", "--threads", "1", pairs_model]) == 0
    printed = capsys.readouterr().out
    images = printed.partition("Images (scenes of one frame)")[2].partition("Attention")[0]
    for kind in TEMPLATES:
        assert (f"| {kind} | 1 |" in images) == (kind not in TEMPORAL)
    assert "The calibration chose the reference `neurons`, rule `register`, before layer 3" in printed
