"""Statistics over clips whose questions hang together, and relative accuracy as the papers compute it."""

import numpy as np
import pytest

from pipelines.evaluation.harness.matching import Setting
from pipelines.evaluation.harness.scores import relative_accuracy, table_of
from pipelines.evaluation.statistics import estimate, estimate_groups, paired_p, paired_p_groups
from pipelines.evaluation.tasks.task import Clip, Item, Task

# Video-LLaVA-7B, accuracy as published (TGIF, MSVD, MSRVTT, ActivityNet) and the relative accuracy printed beside it.
FULL = (47.1, 69.8, 56.7, 43.1)
PUBLISHED = {
    "FastV": ((23.1, 38.0, 19.3, 30.6), 52.1),
    "SparseVLM": ((44.7, 68.2, 31.0, 42.6), 86.5),
    "VisionZip": ((42.4, 63.5, 52.1, 43.0), 93.2),
    "OccamToken": ((44.9, 66.7, 56.1, 43.5), 97.7),
}
BENCHMARKS = ("TGIF", "MSVD", "MSRVTT", "ActivityNet")


@pytest.mark.parametrize("method", PUBLISHED)
def test_relative_accuracy_is_the_papers(method: str) -> None:
    scores, printed = PUBLISHED[method]
    relative = relative_accuracy(dict(zip(BENCHMARKS, scores, strict=True)), dict(zip(BENCHMARKS, FULL, strict=True)))
    assert round(100 * relative, 1) == printed


def test_groups_of_one_are_samples() -> None:
    values = np.random.default_rng(0).random(60)
    alone, known = estimate_groups(values, np.arange(60)), estimate(values)
    assert (alone.mean, alone.n) == (pytest.approx(known.mean), 60)
    assert (alone.low, alone.high) == pytest.approx((known.low, known.high), abs=0.01)


def test_what_hangs_together_counts_once() -> None:
    """Twenty clips of which all ten questions are right or wrong: as wide as of twenty questions."""
    clips = np.arange(20) % 2
    together = estimate_groups(np.repeat(clips, 10), np.repeat(np.arange(20), 10))
    alone = estimate_groups(clips, np.arange(20))
    assert (together.low, together.high) == pytest.approx((alone.low, alone.high))
    assert (
        together.high - together.low
        > 3 * (lambda e: e.high - e.low)(estimate_groups(np.repeat(clips, 10), np.arange(200))) / 1.2
    )
    assert paired_p_groups(np.repeat(clips, 10), np.repeat(np.arange(20), 10)) == pytest.approx(
        min(1, 2 * paired_p(clips))
    )


def test_a_mean_over_questions_not_over_clips() -> None:
    uneven = estimate_groups([1, 0, 0, 0], ["a", "b", "b", "b"])
    assert uneven.mean == 0.25
    assert (uneven.low, uneven.high) == (0.0, 1.0)
    values, clips = [1] * 10 + [0] * 90, [*range(10), *np.repeat(np.arange(10, 20), 9)]
    many = estimate_groups(values, clips)
    assert many.low < many.mean == 0.1 < many.high < 0.25


def test_p_has_two_sides() -> None:
    up = np.ones(12)
    assert paired_p_groups(up, np.arange(12)) == paired_p_groups(-up, np.arange(12)) < 0.005
    assert paired_p_groups([1, -1, 1, -1], np.arange(4)) == 1.0
    with pytest.raises(ValueError, match="nothing to estimate"):
        paired_p_groups([], [])


def test_only_questions_that_every_strategy_answered_are_compared() -> None:
    items = [Item(id=str(n), question="Q", answer="yes", choices=None, kind="ab"[n % 2]) for n in range(4)]
    clips = tuple(
        Clip(id=str(n), content="", items=(items[2 * n], items[2 * n + 1]), open=lambda _: None)  # type: ignore[arg-type,return-value]
        for n in range(2)
    )
    task = Task(name="t", clips=clips, tuning=(), max_new_tokens=1, missing=5)
    settings = [
        Setting(strategy="none", budget=None, name="none"),
        Setting(strategy="x", budget=0.5, name="x", cut=2),
        Setting(strategy="nothing:cut=2", budget=None, name="nothing", cut=2),
        Setting(strategy="random", budget=0.5, name="random"),
    ]
    said = {
        "none": ["yes", "yes", "no", "yes"],
        "x at 0.5": ["yes", "no", "yes", "yes"],
        "nothing:cut=2": ["no", "no", "yes", "no"],
        "random at 0.5": ["no", "no", "no", None],
    }
    costs = {"encoded": 10, "stage1": 8, "stage2": 5, "state_s": 1.0, "ask_s": 0.5}
    answers = [
        {"clip": items[n].id, "item": items[n].id, "setting": label, "text": text, **costs}
        for label, texts in said.items()
        for n, text in enumerate(texts)
        if text is not None
    ]
    table = table_of(task, settings, answers, ("none", "random"))
    assert (table.questions, table.unreadable, table.missing, table.clips) == (3, 1, 5, 2)
    none, x, nothing, random = table.rows
    assert (none.floor, x.floor, nothing.floor, random.floor) == pytest.approx((None, 1 / 3, 1 / 3, None))
    assert (none.accuracy.mean, x.accuracy.mean, random.accuracy.mean) == pytest.approx((2 / 3, 2 / 3, 0))
    assert (none.relative, x.relative, random.relative) == pytest.approx((1, 1, 0))
    assert (x.kept, x.stage1, x.encoded, x.seconds) == (0.5, 0.8, 10, 1.5)
    assert x.kinds == {"a": 1.0, "b": 0.0}
    found = {(each.strategy, each.other): each.difference.mean for each in table.differences}
    assert found == pytest.approx(
        {("x", "none"): 0, ("nothing:cut=2", "none"): -1 / 3, ("random", "none"): -2 / 3, ("x", "random"): 2 / 3}
    )
