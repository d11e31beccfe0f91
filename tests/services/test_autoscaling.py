"""How many workers there are: the rule alone, and on real Ray Serve, where they come, go, and lose nothing."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import serve
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve.config import AutoscalingContext

from occam.errors import InvalidInput
from services import autoscaling
from services.app import APP_NAME
from services.autoscaling import QUEUED, wanted
from services.launch import running
from services.settings import Settings
from tests.fakes import FakeEngine, FakeMedia
from tests.ports import free_port
from tests.soak.cancelled import chat

MODEL = "fake"
BOUNDS = st.tuples(st.integers(1, 9), st.integers(0, 9)).map(lambda pair: (pair[0], sum(pair)))


@pytest.mark.parametrize(
    ("queued", "workers", "then"),
    [
        (0, 2, 2),  # never below the least
        (200, 2, 2),
        (201, 2, 3),
        (1000, 2, 8),  # nor above the most
        (201, 4, 4),  # calm enough for three is not calm
        (150, 4, 3),  # where three would have half of what they may
        (0, 8, 2),
    ],
)
def test_workers_follow_the_queued_tokens(queued: float, workers: int, then: int) -> None:
    assert wanted(queued, workers, target=100, least=2, most=8) == then


@given(st.floats(0, 1e6), st.integers(1, 20), st.floats(1, 1e4), BOUNDS)
def test_the_number_is_within_bounds_and_stays_where_it_has_come_to(
    queued: float, workers: int, target: float, bounds: tuple[int, int]
) -> None:
    least, most = bounds
    after = wanted(queued, workers, target, least, most)
    assert least <= after <= most
    assert wanted(queued, after, target, least, most) == after
    if after > max(workers, least):
        assert (after - 1) * target < queued, "no more than are needed"
    if most > after:
        assert after * target >= queued, "enough, or all there may be"


def test_by_default_a_worker_should_have_a_quarter_of_what_it_admits() -> None:
    def workers(settings: Settings, queued: float) -> int:
        config = autoscaling.autoscaling(settings)
        context: Any = AutoscalingContext.__new__(AutoscalingContext)
        vars(context).update(
            aggregated_metrics={QUEUED: {"one": queued / 2, "other": queued / 2}},
            target_num_replicas=1,
            capacity_adjusted_min_replicas=config.min_replicas,
            capacity_adjusted_max_replicas=config.max_replicas,
        )
        return int(_resolve_policy_callable(config.policy)(context)[0])

    by_default = Settings(max_workers=4, max_queued_tokens=1000)
    assert [workers(by_default, queued) for queued in (0, 250, 251, 5000)] == [1, 1, 2, 4]
    assert workers(Settings(max_workers=4, target_queued_tokens=100), 251) == 3


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"workers": 3, "max_workers": 2}, "OCCAM_MAX_WORKERS must be 0 or no less than OCCAM_WORKERS, which is 3"),
        ({"target_queued_tokens": -1}, "OCCAM_TARGET_QUEUED_TOKENS must be 0 or more and finite, got -1."),
        ({"gpus_per_worker": 1.5}, "OCCAM_GPUS_PER_WORKER must be a whole number or a fraction of one, got 1.5."),
        ({"gpus_per_worker": -1.0}, "OCCAM_GPUS_PER_WORKER must be a whole number or a fraction of one, got -1."),
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        Settings(**wrong)


@pytest.mark.soak
def test_a_worker_comes_with_the_load_and_goes_in_the_quiet_and_no_answer_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While it goes, it is in the middle of answers that take longer than what is otherwise waited for at an end."""
    for name, seconds in (("_MEAN_S", 11.0), ("_UP_S", 0.5), ("_DOWN_S", 1.0)):
        monkeypatch.setattr(autoscaling, name, seconds)
    port = free_port()
    settings = Settings(
        models=(MODEL,), max_workers=2, target_queued_tokens=16, max_queued_tokens=512, port=port, deadline_s=100
    )
    with (
        running(settings, load=FakeEngine.load, media=FakeMedia),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=130) as http,
        ThreadPoolExecutor(24) as pool,
    ):
        assert workers() == 1
        load = [ask(pool, http, f"fake://load{number}?delay=4", "what?") for number in range(8)]
        until(lambda: workers("RUNNING") == 2, "a second worker")
        answered(load)

        # Each of forty seconds, on both workers, and begun anew until one of them is going.
        going = threading.Event()
        talks = [pool.submit(talk, http, f"fake://load{number}?delay=4", going) for number in range(8)]
        until(lambda: workers() == 1, "one worker alone", patience_s=150, then=going.set)
        spoken = [answer for talk in talks for answer in talk.result()]
    assert {response.status_code for response in spoken} == {200}
    assert len({pid(response) for response in spoken}) == 2, "both had some of them"
    assert all(response.json()["usage"]["completion_tokens"] == 500 for response in spoken)


def ask(pool: ThreadPoolExecutor, http: httpx.Client, url: str, question: str) -> "Future[httpx.Response]":
    return pool.submit(http.post, "/v1/chat/completions", json=chat(MODEL, url, question))


def talk(http: httpx.Client, url: str, going: threading.Event) -> list[httpx.Response]:
    """Long answers about a clip, one after the other until it is enough."""
    answers = []
    while not going.is_set():
        body = chat(MODEL, url, "what pid, endless?", max_tokens=500)
        answers.append(http.post("/v1/chat/completions", json=body))
    return answers


def pid(response: httpx.Response) -> str:
    text: str = response.json()["choices"][0]["message"]["content"]
    return text.split("pid ")[1].split()[0]


def answered(asked: "list[Future[httpx.Response]]") -> None:
    for future in asked:
        assert future.result().status_code == 200, future.result().text


def workers(state: str | None = None) -> int:
    """Workers in that state, or in any: starting, running, or just ending."""
    states = serve.status().applications[APP_NAME].deployments[f"worker-{MODEL}"].replica_states
    return sum(count for name, count in states.items() if state in (None, name))


def until(
    holds: Callable[[], bool], what: str, patience_s: float = 90, then: Callable[[], None] = lambda: None
) -> None:
    deadline = time.monotonic() + patience_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.2)
    then()
    assert holds(), f"There was not {what} within {patience_s} s."
