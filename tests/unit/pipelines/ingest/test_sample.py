import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from occam.errors import InvalidInput
from pipelines.ingest.sample import MAX_FPS, Sampling, sample

CLOCK = np.arange(250) / 25


@given(frames=st.integers(1, 500), wanted=st.sampled_from([1, 2, 4, 8, 16]))
def test_uniform_equals_the_stock_models_example(frames: int, wanted: int) -> None:
    stock = np.arange(0, frames, frames / wanted).astype(int)
    chosen = sample(np.arange(frames) / 25, Sampling(frames=wanted))
    assert chosen.tolist() == sorted(set(stock.tolist()))


@given(
    gaps=st.lists(st.floats(0.001, 2), min_size=1, max_size=60),
    fps=st.floats(0.1, 60),
    start=st.floats(0, 1),
    length=st.floats(0.01, 9),
    most=st.integers(1, 20),
)
def test_any_choice_is_increasing_within_bounds_and_on_display(
    gaps: list[float], fps: float, start: float, length: float, most: int
) -> None:
    clock = np.cumsum(gaps) - gaps[0]
    start *= clock[-1]
    chosen = sample(clock, Sampling(fps=fps, max_frames=most, start_s=start, end_s=start + length))
    assert 1 <= len(chosen) <= most
    assert (np.diff(chosen) > 0).all()
    assert clock[chosen[0]] <= start + 1e-6 or chosen[0] == 0
    assert (clock[chosen[1:]] < start + length).all()


def test_fewer_frames_than_asked_for_are_given_once_each() -> None:
    assert sample(CLOCK[:3], Sampling(frames=8)).tolist() == [0, 1, 2]


def test_rate_takes_the_frame_on_display_at_each_tick() -> None:
    assert sample(CLOCK, Sampling(fps=1)).tolist() == list(range(0, 250, 25))
    assert sample(CLOCK, Sampling(fps=2, start_s=3, end_s=5)).tolist() == [75, 87, 100, 112]
    assert sample(np.array([0.0, 0.1, 5.0]), Sampling(fps=1)).tolist() == [0, 1, 2]
    assert sample(CLOCK, Sampling(fps=25)).tolist() == list(range(250))


@given(
    gaps=st.lists(st.floats(0.001, 2), min_size=1, max_size=60),
    fps=st.floats(0.1, 60),
    start=st.floats(0, 1),
)
def test_rate_equals_looking_at_every_tick(gaps: list[float], fps: float, start: float) -> None:
    clock = np.cumsum(gaps) - gaps[0]
    begin = start * clock[-1]
    seen, tick = set(), 0
    while (at := begin + tick / fps) <= clock[-1] + 1e-6 / fps:
        seen.add(int(np.flatnonzero(clock <= at + 1e-6)[-1]))
        tick += 1
    chosen = sample(clock, Sampling(fps=fps, start_s=begin)).tolist()
    assert chosen == sorted(seen)


def test_the_highest_rate_takes_every_frame_at_the_cost_of_the_frames() -> None:
    clock = np.array([0.0, 1e6, 1e9])  # 10 ** 12 ticks
    assert sample(clock, Sampling(fps=MAX_FPS)).tolist() == [0, 1, 2]
    assert sample(CLOCK, Sampling(fps=MAX_FPS)).tolist() == list(range(250))


def test_a_rate_over_the_limit_is_refused_with_both_numbers() -> None:
    for fps in (1000.1, 1e9, 1e308):
        with pytest.raises(InvalidInput, match=r"fps is .*, more than the limit of 1000\.") as caught:
            Sampling(fps=fps)
        assert caught.value.param == "fps"


def test_a_rate_that_gives_too_many_becomes_an_even_choice() -> None:
    assert sample(CLOCK, Sampling(fps=25, max_frames=4)).tolist() == [0, 62, 125, 187]


def test_range_is_half_open_and_begins_with_the_frame_on_display() -> None:
    assert sample(CLOCK, Sampling(frames=100, start_s=1.0, end_s=1.2)).tolist() == [25, 26, 27, 28, 29]
    assert sample(CLOCK, Sampling(frames=8, start_s=1.01, end_s=1.02)).tolist() == [25]


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        ({}, "fps"),
        ({"frames": 8, "fps": 1.0}, "fps"),
        ({"frames": 0}, "frames"),
        ({"fps": -1.0}, "fps"),
        ({"fps": float("nan")}, "fps"),
        ({"frames": 8, "start_s": -1.0}, "start_s"),
        ({"frames": 8, "start_s": float("nan")}, "start_s"),
        ({"frames": 8, "start_s": 5.0, "end_s": 5.0}, "end_s"),
        ({"frames": 8, "end_s": float("nan")}, "end_s"),
    ],
)
def test_nonsense_is_refused_by_name(bad: dict[str, float], param: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Sampling(**bad)  # type: ignore[arg-type]
    assert caught.value.param == param


def test_a_range_behind_the_video_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"start_s is 11\.0, and the last frame appears at 9\.960 s"):
        sample(CLOCK, Sampling(frames=8, start_s=11.0))
