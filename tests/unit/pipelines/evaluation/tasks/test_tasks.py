"""What of a task is asked and what is set aside, and the embedded task."""

from collections import Counter
from dataclasses import replace

import pytest

from pipelines.evaluation.questions import TEMPLATES, TEMPORAL
from pipelines.evaluation.renderer import FIRST_TEST_SEED, FIRST_TUNING_SEED
from pipelines.evaluation.tasks.rendered import rendered_task
from pipelines.evaluation.tasks.task import Clip, Item, Task, divided
from tests.evaluated import INFO


def clips(count: int, questions: int = 2) -> list[Clip]:
    def unread(_: object) -> None:
        raise AssertionError

    return [
        Clip(
            id=f"clip {clip}",
            content="",
            items=tuple(
                Item(id=f"{clip}-{number}", question="Q", answer="x", choices=None, kind="")
                for number in range(questions)
            ),
            open=unread,  # type: ignore[arg-type]
        )
        for clip in range(count)
    ]


@pytest.mark.parametrize(("count", "tuning", "apart"), [(100, 10, 10), (20, 50, 4), (3, 50, 1), (1, 50, 0)], ids=str)
def test_tuning_clips_are_set_aside_and_never_asked_about(count: int, tuning: int, apart: int) -> None:
    asked, tuned = divided(clips(count), None, tuning, seed=0)
    assert len(tuned) == apart
    assert len(asked) == count - apart
    assert not {clip.id for clip in asked} & {clip.id for clip in tuned}


def test_the_draw_is_seeded_and_the_order_is_the_files() -> None:
    first, again, other = (divided(clips(100), 30, 10, seed)[0] for seed in (0, 0, 1))
    names = [clip.id for clip in first]
    assert names == [clip.id for clip in again]
    assert names != [clip.id for clip in other]
    assert names == sorted(names, key=lambda name: int(name.split()[1]))
    assert sum(len(clip.items) for clip in first) == 30


def test_a_limit_cuts_within_a_clip() -> None:
    asked, _ = divided(clips(9, questions=4), 6, 1, seed=0)
    assert sorted(len(clip.items) for clip in asked) == [2, 4]


def test_the_digest_names_all_that_is_asked() -> None:
    asked, tuned = divided(clips(10), None, 2, seed=0)
    task = Task(name="t", clips=asked, tuning=tuned, max_new_tokens=4)
    changed = replace(asked[0].items[0], answer="y")
    others = [
        replace(task, clips=asked[1:]),
        replace(task, tuning=()),
        replace(task, max_new_tokens=5),
        replace(task, clips=(replace(asked[0], content="other bytes"), *asked[1:])),
        replace(task, clips=(replace(asked[0], items=(changed, asked[0].items[1])), *asked[1:])),
    ]
    assert len({each.digest for each in (task, *others)}) == 6
    assert replace(task, name="u").digest == task.digest


def test_embedded_questions_come_in_equal_shares_over_fresh_scenes() -> None:
    task = rendered_task(("video",), 36, 4, seed=0)
    kinds = Counter(item.kind for clip in task.clips for item in clip.items)
    assert kinds == dict.fromkeys(TEMPLATES, 2)
    assert len({item.id for clip in task.clips for item in clip.items}) == 36
    seeds = [int(clip.id.removeprefix("scene-")) for clip in task.clips]
    assert min(seeds) >= FIRST_TEST_SEED
    assert all(FIRST_TUNING_SEED <= int(clip.id.removeprefix("scene-")) < FIRST_TEST_SEED for clip in task.tuning)
    assert len(task.tuning) == 4
    other = rendered_task(("video",), 36, 4, seed=1)
    assert not {clip.id for clip in other.clips} & {clip.id for clip in task.clips}
    frames = task.clips[0].sample(INFO).frames()
    assert len(frames) == 8


def test_an_image_model_is_asked_what_an_image_answers() -> None:
    task = rendered_task(("image",), 22, 2, seed=0)
    kinds = {item.kind for clip in task.clips for item in clip.items}
    assert kinds == set(TEMPLATES) - set(TEMPORAL)
    assert task.clips[0].sample(replace(INFO, media=("image",))).frames().kind == "image"
