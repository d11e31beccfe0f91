"""How many questions are taken at a time, and who goes first."""

import asyncio
import time
from contextlib import ExitStack

import pytest

from occam.errors import Overloaded
from services.courtesy import Courtesy
from services.settings import Settings


def test_no_more_questions_are_taken_than_can_be_in_hand_and_background_ones_do_not_count() -> None:
    async def main() -> None:
        courtesy = Courtesy(patience_s=0.0, most=2, several=False)
        with ExitStack() as jobs, ExitStack() as others:
            for _ in range(5):
                jobs.enter_context(courtesy.answering(background=True))
            for _ in range(2):
                others.enter_context(courtesy.answering(background=False))
            with pytest.raises(Overloaded, match="has 2 questions in hand, its limit"), courtesy.answering(False):
                pass
            others.pop_all().close()
            with courtesy.answering(background=False):
                pass

    asyncio.run(main())


def test_who_is_refused_is_told_how_long_the_last_answer_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def retry_after_s(courtesy: Courtesy) -> float:
        with courtesy.answering(False), pytest.raises(Overloaded) as refused, courtesy.answering(False):
            pass
        return refused.value.retry_after_s

    courtesy = Courtesy(patience_s=0.0, most=1, several=False)
    assert retry_after_s(courtesy) == 1
    for took_s, told_s in ((0.2, 1), (4.1, 5), (900.0, 60)):
        with courtesy.answering(False):
            now += took_s
        assert retry_after_s(courtesy) == told_s


@pytest.mark.parametrize(("several", "own", "all_of_them"), [(False, 6, 6), (True, 3, 6)])
def test_those_that_wait_for_their_media_leave_room_for_others(several: bool, own: int, all_of_them: int) -> None:
    """Of eight questions six may wait, and three of one tenant's where there are several."""
    courtesy = Courtesy(patience_s=0.0, most=8, several=several)
    with ExitStack() as waiting:
        for _ in range(own):
            waiting.enter_context(courtesy.finding("a"))
        with pytest.raises(Overloaded, match=f"the limits are 6 and {own}. "), courtesy.finding("a"):
            pass
        for _ in range(all_of_them - own):
            waiting.enter_context(courtesy.finding("b"))
        with pytest.raises(Overloaded, match="6 questions wait for their media, 0 of them with this key"):
            waiting.enter_context(courtesy.finding("c"))
        with courtesy.answering(background=False):
            pass
    with courtesy.finding("a"):
        pass


@pytest.mark.parametrize(("workers", "max_workers", "most"), [(1, 0, 8), (2, 0, 16), (2, 5, 40)])
def test_in_hand_is_what_all_workers_hold(workers: int, max_workers: int, most: int) -> None:
    settings = Settings(
        models=("tiny-video-llava", "tiny-qwen3-vl"),
        workers=workers,
        max_workers=max_workers,
        max_ongoing=4,
        max_queued=3,
        job_concurrency=2,
    )
    assert settings.most_questions == most
