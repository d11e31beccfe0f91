"""The measures, over an engine that knows the truth and keeps what the test tells it to."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from occam.config import EngineConfig, NoPruning, OccamToken, Pruning, SamplingParams
from occam.engine import Engine
from occam.stats import VisualTokenCounts
from occam.types import Answer, Evidence, FrameBatch, FrameEvidence, Turn
from pipelines.evaluation.accuracy import accuracies, questions_about
from pipelines.evaluation.adaptivity import PAIRS, coverage, retention
from pipelines.evaluation.clips import scenes
from pipelines.evaluation.renderer import BUSY, FIRST_TEST_SEED, SceneConfig, draw_scene
from pipelines.evaluation.statistics import estimate, paired_p

GRID = 6
OCCAM = OccamToken(lambda1=1.0, lambda2=1.0, cut=1, register="zero_token")


class Scripted:
    """An engine without a model: looks the scene up by its digest; subclasses say what it answers and keeps."""

    config = EngineConfig()
    state_of = Engine.state_of
    info = SimpleNamespace(media=("video",))
    scene_config: SceneConfig | None = None

    def key_facts(self, pruning: Pruning) -> dict[str, Any]:
        return {"strategy": pruning.name, "lambda1": getattr(pruning, "lambda1", None)}

    def chunk(self, pruning: Pruning, frames: int) -> int:
        return self.config.chunk_frames

    def begin(self, pruning: Pruning) -> Any:
        return None

    def append(self, state: Any, frames: FrameBatch, pruning: Pruning) -> Any:
        return draw_scene(int(frames.digest.removeprefix("scene-")), self.scene_config), ()

    def replay(self, state: Any, turns: list[Turn]) -> Any:
        return state

    def answer(self, scene: Any, question: str) -> str:
        return ""

    def kept(self, scene: Any, question: str) -> np.ndarray:
        return np.ones((scene.frames, GRID, GRID), bool)

    def ask(self, state: Any, question: str, pruning: Pruning, sampling: SamplingParams) -> Answer:
        kept = self.kept(state, question)
        frames = tuple(
            FrameEvidence(
                medium=0,
                index=i,
                pts_s=i,
                of=GRID**2,
                grid=(GRID, GRID),
                stage1=k,
                stage2=k,
                scores=np.zeros((GRID, GRID)),
            )
            for i, k in enumerate(kept)
        )
        return Answer(
            text=self.answer(state, question),
            turn=Turn(suffix_ids=(), generated_ids=()),
            finish_reason="stop",
            prompt_tokens=0,
            reused_tokens=0,
            completion_tokens=1,
            visual_tokens=VisualTokenCounts(encoded=kept.size, stage1=kept.size, stage2=int(kept.sum())),
            evidence=Evidence(threshold=0.0, frames=frames),
        )


class RightOnEvenSeeds(Scripted):
    def answer(self, scene: Any, question: str) -> str:
        questions = {q.text: q.answer for q in questions_about(scene, 2)}
        assert question in questions
        if scene.seed % 2 == 0:
            return f" {questions[question].upper()}\n"
        first = next(iter(questions))
        return questions[question] if question == first else "neither"


def test_accuracy_counts_questions_and_whole_clips() -> None:
    (scored,) = accuracies(RightOnEvenSeeds(), [NoPruning()], FIRST_TEST_SEED, clips=8)  # type: ignore[arg-type]
    assert (scored.questions.mean, scored.questions.n) == (0.75, 16)
    assert (scored.clips.mean, scored.clips.n) == (0.5, 8)
    assert scored.kept.encoded == scored.kept.stage2 == 8 * GRID**2
    assert scored.kept.spread == 0
    assert scored.right.tolist() == [[True, seed % 2 == 0] for seed in range(FIRST_TEST_SEED, FIRST_TEST_SEED + 8)]


def test_strategies_that_can_share_a_state_do_and_each_gets_its_own_answers() -> None:
    class KeepsByLambda(Scripted):
        begun = 0

        def begin(self, pruning: Pruning) -> Any:
            self.begun += 1
            return None

        def append(self, state: Any, frames: FrameBatch, pruning: Pruning) -> Any:
            scene, stats = super().append(state, frames, pruning)
            return (scene, getattr(pruning, "lambda1", 0.0)), stats

        def ask(self, state: Any, question: str, pruning: Pruning, sampling: SamplingParams) -> Answer:
            scene, lambda1 = state
            assert lambda1 == getattr(pruning, "lambda1", 0.0), "a state of another stage I"
            answer = super().ask(scene, question, pruning, sampling)
            right = next(q.answer for q in questions_about(scene, 2) if q.text == question)
            count = int(getattr(pruning, "lambda2", 5)) + (question == questions_about(scene, 2)[0].text)
            tokens = replace(answer.visual_tokens, stage2=count)
            return replace(answer, text=right if count > 4 else "", visual_tokens=tokens)

    engine: Any = KeepsByLambda()
    prunings = [replace(OCCAM, lambda2=1), NoPruning(), replace(OCCAM, lambda1=0.5), replace(OCCAM, lambda2=7)]
    scored = accuracies(engine, prunings, FIRST_TEST_SEED, clips=3)
    assert engine.begun == 3 * 3
    assert [each.kept.stage2 for each in scored] == [1.5, 5.5, 1.5, 7.5]
    assert {each.kept.spread for each in scored} == {0.5}
    assert [each.questions.mean for each in scored] == [0.0, 1.0, 0.0, 1.0]


def test_the_questions_of_a_clip_are_no_independent_samples() -> None:
    class RightOrWrongThroughout(Scripted):
        def answer(self, scene: Any, question: str) -> str:
            return next(q.answer for q in questions_about(scene, 4) if q.text == question) if scene.seed % 2 else ""

    engine: Any = RightOrWrongThroughout()
    (scored,) = accuracies(engine, [NoPruning()], FIRST_TEST_SEED, clips=20, per_clip=4)
    assert (scored.questions.mean, scored.questions.n) == (0.5, 80)
    assert (scored.questions.low, scored.questions.high) == (scored.clips.low, scored.clips.high)
    alone = estimate([0.0, 1.0] * 40)
    assert scored.questions.high - scored.questions.low > 1.5 * (alone.high - alone.low)


class KeepsTheAsked(Scripted):
    """Keeps the patches of every object whose colour, shape or size the question names."""

    def kept(self, scene: Any, question: str) -> np.ndarray:
        masks = [scene.patch_cover(item, GRID) > 0 for item in scene.objects]
        named = [m for m, item in zip(masks, scene.objects, strict=True) if self.names(item, question)]
        return np.logical_or.reduce([np.zeros_like(masks[0]), *named])

    def names(self, item: Any, question: str) -> bool:
        return any(word in question.split() for word in (item.color, item.shape))


class KeepsTheOthers(KeepsTheAsked):
    def names(self, item: Any, question: str) -> bool:
        return not super().names(item, question)


def _coverage(engine: Scripted) -> Any:
    engine.scene_config = PAIRS
    return coverage(engine, OCCAM, pairs=20)  # type: ignore[arg-type]


def test_coverage_tells_keeping_the_asked_from_keeping_all_and_from_keeping_the_others() -> None:
    follows, ignores, flees = (_coverage(engine) for engine in (KeepsTheAsked(), Scripted(), KeepsTheOthers()))
    assert follows.asked.mean == pytest.approx(1.0)
    assert follows.other.mean < 0.5
    assert follows.asked.n == 20
    assert follows.p < 0.001
    assert ignores.asked.mean == ignores.other.mean == pytest.approx(1.0)
    assert ignores.p > 0.9
    assert flees.difference.mean < 0
    assert flees.p > 0.99


class KeepsAllOnce(Scripted):
    """Keeps everything for the first question that is asked of a clip, and nothing for the second."""

    asked = 0

    def kept(self, scene: Any, question: str) -> np.ndarray:
        self.asked += 1
        return np.full((scene.frames, GRID, GRID), self.asked % 2 == 1)


def test_coverage_is_the_mean_of_both_objects() -> None:
    covered = _coverage(KeepsAllOnce())
    assert (covered.asked.mean, covered.other.mean) == (0.5, 0.5)


def test_retention_is_of_the_kind_of_clip_that_was_asked_for() -> None:
    engine = KeepsTheAsked()
    engine.scene_config = BUSY
    kept = retention(engine, OCCAM, BUSY, clips=3, first_seed=FIRST_TEST_SEED)  # type: ignore[arg-type]
    assert (kept.encoded, kept.stage1.mean) == (8 * GRID**2, 8 * GRID**2)
    assert 0 < kept.stage2.mean < kept.stage1.mean


def test_estimates_cover_the_mean_of_what_they_were_drawn_from() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        drawn = estimate(rng.normal(3.0, 1.0, 60), resamples=300)
        hits += drawn.low <= 3.0 <= drawn.high
    assert 0.88 <= hits / 200 <= 0.99
    with pytest.raises(ValueError, match="nothing"):
        estimate([])


def test_paired_p_is_uniform_under_no_effect_and_small_under_one() -> None:
    rng = np.random.default_rng(1)
    values = [paired_p(rng.normal(size=30), flips=500) for _ in range(300)]
    assert 0.01 <= np.mean(np.array(values) < 0.05) <= 0.10
    assert paired_p(rng.normal(1.0, 1.0, 40)) < 0.001
    assert paired_p(np.zeros(10)) == 1.0


def test_scenes_follow_one_another() -> None:
    drawn = [next(source) for source in [scenes(5)] for _ in range(3)]
    assert [scene.seed for scene in drawn] == [5, 6, 7]
