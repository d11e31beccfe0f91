"""The service on real Ray Serve, two workers, fakes inside: what only processes and sockets can show."""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from occam.config import SamplingParams
from services.app import APP_NAME
from services.launch import running
from services.messages import Ask, FrameChoice, PruningChoice, Source
from services.settings import Settings
from tests.fakes import FakeEngine, FakeMedia

MODEL, OTHER = "fake", "fake-both"
CLIP = {"type": "video_url", "video_url": {"url": "fake://openai"}}


@pytest.fixture(scope="session")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(
        models=(MODEL, OTHER),
        workers=2,
        max_ongoing=8,
        max_queued=16,
        port=port,
        deadline_s=60,
        kv_node_bytes=64 << 20,
        kv_node_directory=str(tmp_path_factory.mktemp("node") / "kv"),
    )
    with running(settings, load=FakeEngine.load, media=FakeMedia):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def http(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url, timeout=60) as client:
        yield client


def post_video(http: httpx.Client, url: str) -> str:
    video = http.post("/v1/videos", json={"url": url}).json()["id"]
    while http.get(f"/v1/videos/{video}").json()["status"] == "processing":
        time.sleep(0.05)
    return video


def query(http: httpx.Client, video: str, question: str, **options: Any) -> dict[str, Any]:
    response = http.post(f"/v1/videos/{video}/queries", json={"question": question, **options})
    assert response.status_code == 200, response.text
    return response.json()


def totals(http: httpx.Client, name: str) -> dict[tuple[str, ...], float]:
    """Samples of a metric by its label values, in the order of the labels' names."""
    samples = [
        sample
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
        if sample.name == name
    ]
    found = {tuple(value for _, value in sorted(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples), "every number exactly once"
    return found


def test_a_session_goes_on_on_every_replica(http: httpx.Client) -> None:
    video = post_video(http, "fake://session")
    first = query(http, video, "what pid?")
    pids = {first["answer"].split("pid ")[1]}
    for turn in range(1, 12):
        answer = query(http, video, "and pid?", session_id=first["session_id"])["answer"]
        assert f" turn {turn} " in answer
        pids.add(answer.split("pid ")[1])
    assert len(pids) == 2, "both workers took part"
    assert query(http, video, "what?")["occam"]["cache"] in ("memory", "node")


def test_a_deleted_video_is_gone_from_every_process(http: httpx.Client) -> None:
    video = post_video(http, "fake://deleted")
    session = query(http, video, "what?")["session_id"]
    assert http.delete(f"/v1/videos/{video}").status_code == 204
    assert http.get(f"/v1/videos/{video}").status_code == 404
    late = http.post(f"/v1/videos/{video}/queries", json={"question": "and?", "session_id": session})
    assert late.status_code == 404
    content = [{"type": "video_url", "video_url": {"url": "fake://deleted"}}, {"type": "text", "text": "what?"}]
    chat = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    assert http.post("/v1/chat/completions", json=chat).json()["occam"]["cache"] == "none"


def test_encoding_begins_before_decoding_ends(base_url: str) -> None:
    """Between the processes of the decoder and a worker: a chunk is encoded before the next is decoded."""
    decoder = serve.get_deployment_handle("decoder", APP_NAME)
    worker = serve.get_deployment_handle(f"worker-{MODEL}", APP_NAME).options(stream=True)
    described = decoder.describe.remote(
        Source(url="fake://overlap?delay=0.2", kind="video"), FrameChoice(), 8, None
    ).result()
    ask = Ask(
        media=(described.medium,),
        pruning=PruningChoice(),
        system="",
        turns=(),
        history=(),
        question="what?",
        sampling=SamplingParams(),
        evidence=False,
    )
    *_, finished = worker.answer.remote(ask)
    decoded, encoded = ([stage for stage in finished.stats if stage.stage == name] for name in ("decode", "encode"))
    assert len(decoded) == len(encoded) == 4
    assert all(work.ended_s < chunk.ended_s for work, chunk in zip(encoded[:-1], decoded[1:], strict=True))


def test_openais_client_works(base_url: str) -> None:
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="any", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": [CLIP, {"type": "text", "text": "what?"}]}]
        whole = client.chat.completions.create(model=MODEL, messages=messages, extra_body={"occam": {"evidence": True}})
        assert whole.model_extra is not None
        assert len(whole.model_extra["occam"]["evidence"]["frames"]) == 8
        chunks = list(
            client.chat.completions.create(
                model=MODEL, messages=messages, stream=True, stream_options={"include_usage": True}
            )
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage is not None
        assert whole.usage is not None
        assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
        assert client.models.list().data[0].id == MODEL
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "no video"}])
        assert refused.value.body["request_id"]  # type: ignore[index]


def test_two_models_answer_side_by_side_and_share_no_state(base_url: str) -> None:
    photo = {"type": "image_url", "image_url": {"url": "fake://photo"}}
    question = {"type": "text", "text": "who?"}
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="any", max_retries=0) as client:
        clip: Any = [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "fake://two"}}, question]}]
        both: Any = [{"role": "user", "content": [photo, *clip[0]["content"]]}]
        answers = {model: client.chat.completions.create(model=model, messages=clip) for model in (MODEL, OTHER)}
        for model, answer in answers.items():
            assert answer.choices[0].message.content.endswith(f" by {model}")
            assert answer.model_extra["occam"]["cache"] == "none"
        more = client.chat.completions.create(model=OTHER, messages=both)
        assert more.choices[0].message.content.startswith("saw 9 frames")
        with pytest.raises(openai.UnprocessableEntityError, match="fake takes video input, not image"):
            client.chat.completions.create(model=MODEL, messages=both)
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="another", messages=clip)


def test_nobody_listening_ends_the_work(http: httpx.Client, base_url: str) -> None:
    """In the middle of decoding, and in the middle of an answer."""
    video = post_video(http, "fake://gone")
    with httpx.Client(base_url=base_url, timeout=60) as client:
        body = {"question": "slow?", "stream": True}
        with client.stream("POST", f"/v1/videos/{video}/queries", json=body) as response:
            assert next(response.iter_lines())
    decoded = totals(http, "occam_frames_decoded_total")[("fake",)]
    slow_clip = {"type": "video_url", "video_url": {"url": "fake://never?delay=1"}}
    content = [slow_clip, {"type": "text", "text": "what?"}]
    chat = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=base_url, timeout=1.5) as client:
        client.post("/v1/chat/completions", json=chat)
    deadline = time.monotonic() + 10
    wanted = {("decode",), ("generate",), ("prefix",)}
    while not wanted <= (seen := totals(http, "occam_cancellations_total")).keys():
        assert time.monotonic() < deadline, seen
        time.sleep(0.2)
    assert totals(http, "occam_frames_decoded_total")[("fake",)] - decoded < 8, "most of its frames stay undecoded"
    while totals(http, "occam_queue_depth") != {(): 0.0}:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_hanging_up_in_a_follow_up_frees_its_session(http: httpx.Client, base_url: str) -> None:
    video = post_video(http, "fake://hang-up")
    session = query(http, video, "what?")["session_id"]
    body = {"question": "slow?", "session_id": session, "stream": True}
    with (
        httpx.Client(base_url=base_url, timeout=60) as client,
        client.stream("POST", f"/v1/videos/{video}/queries", json=body) as response,
    ):
        assert next(response.iter_lines())
    time.sleep(2)
    assert " turn 1 " in query(http, video, "and then?", session_id=session)["answer"]


def test_a_full_queue_says_when_to_come_back(http: httpx.Client, base_url: str) -> None:
    """Two workers take eight questions each, sixteen wait, and more are sent than that."""
    video = post_video(http, "fake://full")
    rejected = totals(http, "occam_rejections_total").get(("overloaded",), 0)
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=base_url, timeout=60, limits=limits) as client, ThreadPoolExecutor(48) as pool:
        body = {"question": "slow?", "max_tokens": 8}
        asked = [pool.submit(client.post, f"/v1/videos/{video}/queries", json=body) for _ in range(48)]
        responses = [future.result() for future in asked]
    refused = [response for response in responses if response.status_code != 200]
    assert 0 < len(refused) < len(responses)
    for response in refused:
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded"), response.text
        assert int(response.headers["retry-after"]) >= 1
    assert totals(http, "occam_rejections_total")[("overloaded",)] == rejected + len(refused)


def test_a_killed_worker_ends_no_request_and_loses_no_number(http: httpx.Client, base_url: str) -> None:
    videos = [post_video(http, f"fake://kill{i}") for i in range(3)]
    before = {stage: totals(http, "occam_visual_tokens_total").get((MODEL, stage, "occam"), 0) for stage in STAGES}
    ratios = totals(http, "occam_token_retention_ratio_count").get((MODEL, "stage2", "occam"), 0)
    victim = int(query(http, videos[0], "what pid?")["answer"].split("pid ")[1])

    with ThreadPoolExecutor(8) as pool, httpx.Client(base_url=base_url, timeout=60) as client:
        asked = [pool.submit(query, client, videos[i % 3], f"slow {i}?", max_tokens=12) for i in range(12)]
        time.sleep(0.7)
        os.kill(victim, signal.SIGKILL)
        answers = [future.result() for future in asked]

    assert len(answers) == 12
    after = totals(http, "occam_visual_tokens_total")
    for stage in STAGES:
        spent = sum(answer["usage"]["visual_tokens"][stage] for answer in answers)
        spent += {"encoded": 32, "stage1": 16, "stage2": 8}[stage]  # the question that named the victim
        assert after[(MODEL, stage, "occam")] - before[stage] == spent
    assert totals(http, "occam_token_retention_ratio_count")[(MODEL, "stage2", "occam")] - ratios == 13
    assert totals(http, "occam_queue_depth") == {(): 0.0}, "the gauge of the dead is gone"


def test_a_worker_that_is_started_anew_finds_the_states_of_its_node(http: httpx.Client) -> None:
    assert http.get("/readyz").json()["kv"] == "files of each node, and a private Redis on this machine"
    written = totals(http, "occam_kv_bytes_total").get(("written", "node"), 0)
    video = post_video(http, "fake://restart")

    def ask() -> tuple[int, str]:
        answer = query(http, video, "what pid?")
        return int(answer["answer"].split("pid ")[1]), answer["occam"]["cache"]

    deadline = time.monotonic() + 180
    known: set[int] = set()
    while len(known) < 2 or totals(http, "occam_kv_bytes_total")[("written", "node")] == written:
        known.add(ask()[0])
        assert time.monotonic() < deadline, "there are two workers, and what one computes is written"
    os.kill(known.copy().pop(), signal.SIGKILL)
    while (found := ask())[0] in known:
        assert time.monotonic() < deadline, "no worker took its place"
        time.sleep(0.1)
    assert found[1] == "node"


def test_slow_fetches_hold_up_nobody_else(http: httpx.Client, base_url: str) -> None:
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=base_url, timeout=60, limits=limits) as client, ThreadPoolExecutor(70) as pool:
        slow = [pool.submit(client.post, "/v1/videos", json={"url": f"fake://slow{i}?fetch=8"}) for i in range(70)]
        time.sleep(2)
        video = post_video(http, "fake://quick")
        assert query(http, video, "what?")["answer"].startswith("saw 8 frames")
        assert not any(future.done() for future in slow)
        assert all(future.result().status_code == 200 for future in slow)


@pytest.mark.parametrize("given", ["r-1", "\xff\xfe", "x" * 65, "<b>", None])
def test_a_request_id_is_the_clients_if_it_is_harmless(http: httpx.Client, given: str | None) -> None:
    headers = [] if given is None else [(b"x-request-id", given.encode("latin-1"))]
    response = http.get("/v1/videos/none", headers=headers)
    assert response.status_code == 404
    request_id = response.headers["x-request-id"]
    assert response.json()["error"]["request_id"] == request_id
    assert (request_id == given) == (given == "r-1")
    assert re.fullmatch("[A-Za-z0-9._-]{1,64}", request_id)


def test_a_dead_decoder_ends_no_request(http: httpx.Client) -> None:
    described = post_video(http, "fake://fatal")
    assert query(http, described, "what?")["answer"].startswith("saw 8 frames")
    decoded = post_video(http, "fake://fatal-frames")
    assert query(http, decoded, "what?")["answer"].startswith("saw 8 frames")


STAGES = ("encoded", "stage1", "stage2")
