"""The service on real Ray Serve, two workers, fakes inside: what only processes and sockets can show."""

import asyncio
import hashlib
import json
import os
import random
import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
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
from tests.bench import service
from tests.fakes import FakeEngine, FakeMedia
from tests.ports import free_port
from tests.soak.cancelled import WORK, chat, hang_up_all, until_idle
from tests.soak.live import processes
from tests.soak.overload import overload

MODEL, OTHER = "fake", "fake-both"
MOST = 32
"""Questions in hand: two models, two workers of each, eight questions of each."""
CLIP = {"type": "video_url", "video_url": {"url": "fake://openai"}}


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("node") / "kv"


@pytest.fixture(scope="module")
def base_url(node_folder: Path) -> Iterator[str]:
    port = free_port()
    settings = Settings(
        models=(MODEL, OTHER),
        workers=2,
        max_ongoing=8,
        max_queued=16,
        port=port,
        deadline_s=60,
        kv_node_bytes=64 << 20,
        kv_node_directory=str(node_folder),
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


def pid_in(text: str) -> int:
    return int(text.split("pid ")[1])


def test_follow_ups_go_to_the_worker_that_holds_the_state(base_url: str) -> None:
    """Forty conversations of three turns, eight at a time."""

    def converse(client: httpx.Client, number: int) -> list[dict[str, Any]]:
        body = chat(MODEL, f"fake://talk{number}", "what pid?")
        turns = [client.post("/v1/chat/completions", json=body).json()]
        for _ in range(2):
            body["occam"] = {"session_id": turns[0]["occam"]["session_id"]}
            turns.append(client.post("/v1/chat/completions", json=body).json())
        return turns

    with httpx.Client(base_url=base_url, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        sessions = list(pool.map(lambda number: converse(client, number), range(40)))
    pids = [[pid_in(turn["choices"][0]["message"]["content"]) for turn in turns] for turns in sessions]
    assert len({pid for turns in pids for pid in turns}) == 2, "both workers took part"
    caches = [turn["occam"]["cache"] for turns in sessions for turn in turns[1:]]
    assert caches.count("memory") >= 0.95 * len(caches), caches


def test_nobody_works_for_those_who_hung_up(http: httpx.Client, base_url: str) -> None:
    """Two hundred at random moments, in what would take a minute: in the fetch, in decoding, in the answer."""
    asked = [
        chat(MODEL, url, question, stream=number % 2 == 0, max_tokens=4096)
        for number in range(200)
        for url, question in [
            (
                (f"fake://gone{number}?fetch=60", "what?"),
                (f"fake://gone{number}?delay=15", "what?"),
                ("fake://here", "endless?"),
            )[number % 3]
        ]
    ]
    begun = time.monotonic()
    query(http, post_video(http, "fake://here"), "what?")
    longest_s = max(1.2, 4 * (time.monotonic() - begun))  # on a machine that is busy they get as far
    seen: set[str] = set()
    for patience in (1, 2, 4):  # on a machine that is busy with others they are given up before they get far
        if seen != WORK - {"decodes"}:
            seen |= hang_up_all(base_url, MODEL, asked, patience * longest_s)
    assert seen == WORK - {"decodes"}, "everything but processes, which fakes have none of"
    until_idle(MODEL, patience_s=20)


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


def test_an_uploaded_video_is_asked_about_and_drawn(http: httpx.Client) -> None:
    """A body of many messages, through Ray's proxy, the ingress and the decoder; then one that breaks off."""
    data = b"GIF89a" + random.Random(0).randbytes(9 << 20)
    response = http.post("/v1/videos", files={"file": ("clip.gif", data)})
    assert response.status_code == 200, response.text
    assert response.json()["digest"] == hashlib.sha256(data).hexdigest()
    answer = query(http, response.json()["id"], "what?", evidence=True)
    drawn = http.get(answer["evidence"]["frames"][0]["overlay"])
    assert (drawn.status_code, drawn.headers["content-type"]) == (200, "image/png")
    assert drawn.content.startswith(b"\x89PNG")

    decoder = serve.get_deployment_handle("decoder", APP_NAME)
    host, port = http.base_url.host, http.base_url.port
    with socket.create_connection((host, port)) as line:
        head = "POST /v1/videos HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=e\r\n"
        part = '--e\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        line.sendall(f"{head}Content-Length: 99000000\r\n\r\n{part}".encode() + data)
        while not decoder.open_uploads.remote().result():
            time.sleep(0.05)
    while decoder.open_uploads.remote().result():
        time.sleep(0.05)
    assert decoder.uploads.remote().result() == (response.json()["digest"],)


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
        salt="",
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
        body = {"question": "slow?", "max_tokens": 24}
        asked = [pool.submit(client.post, f"/v1/videos/{video}/queries", json=body) for _ in range(48)]
        responses = [future.result() for future in asked]
    refused = [response for response in responses if response.status_code != 200]
    assert 0 < len(refused) < len(responses)
    for response in refused:
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded"), response.text
        assert int(response.headers["retry-after"]) >= 1
    assert totals(http, "occam_rejections_total")[("overloaded",)] == rejected + len(refused)


def test_under_overload_what_is_admitted_is_answered(base_url: str) -> None:
    """The soak for seconds: sixteen answers of two seconds at a time, and far more questions than that."""

    def body(number: int) -> dict[str, Any]:
        return chat(MODEL, f"fake://over{number}", "slow?", stream=number % 2 == 0)

    before = processes()
    load = asyncio.run(overload(base_url, body, seconds=2.5, rate=40.0))
    assert load.good, load
    assert min(load.retry_after_s) >= 1
    assert processes().keys() >= before.keys(), "none died of it"


@pytest.mark.soak
def test_sessions_go_on_from_redis_when_the_worker_that_holds_them_dies(http: httpx.Client, node_folder: Path) -> None:
    """Each beside one of the same past that has been asked already; the node's files are gone too."""
    questions = ("what pid?", "and then?", "and at last?")

    def converse(number: int) -> tuple[str, str, dict[str, Any], str]:
        video = post_video(http, f"fake://take-over{number}?delay=0.3")  # far slower to compute than any fetch
        first, other = (query(http, video, questions[0]) for _ in range(2))
        for session in (first, other):
            query(http, video, questions[1], session_id=session["session_id"])
        return (
            video,
            first["session_id"],
            query(http, video, questions[2], session_id=other["session_id"]),
            first["answer"],
        )

    with ThreadPoolExecutor(8) as pool:
        sessions = list(pool.map(converse, range(20)))
    victim = pid_in(sessions[0][3])
    held = [(video, session, whole) for video, session, whole, first in sessions if pid_in(first) == victim]
    for state in node_folder.glob("*"):
        state.unlink()
    os.kill(victim, signal.SIGKILL)
    last = [query(http, video, questions[2], session_id=session) for video, session, _ in held]
    assert [answer["answer"] for answer in last] == [whole["answer"] for _, _, whole in held]
    # One is computed anew now and then, to learn what that costs.
    assert {"redis", "embeddings"} & {answer["occam"]["cache"] for answer in last}


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


@pytest.mark.soak
def test_a_worker_that_is_started_anew_finds_the_states_of_its_node(http: httpx.Client) -> None:
    assert http.get("/readyz").json()["kv"] == "files of each node, and a private Redis on this machine"
    written = totals(http, "occam_kv_bytes_total").get(("written", "node"), 0)
    video = post_video(http, "fake://restart")
    deadline = time.monotonic() + 180
    while totals(http, "occam_kv_bytes_total").get(("written", "node"), 0) == written:
        assert time.monotonic() < deadline, "what a worker computes is written"
        time.sleep(0.1)
    known = {pid for pid, name in processes().items() if name == f"worker-{MODEL}"}
    for pid in known:
        os.kill(pid, signal.SIGKILL)
    body = {"question": "what pid?"}
    while (response := http.post(f"/v1/videos/{video}/queries", json=body)).status_code != 200:
        assert time.monotonic() < deadline, "no worker took their place"
        time.sleep(0.1)
    found = response.json()
    assert pid_in(found["answer"]) not in known
    assert found["occam"]["cache"] == "node"


@pytest.mark.soak
def test_slow_fetches_hold_up_nobody_else(http: httpx.Client, base_url: str) -> None:
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=base_url, timeout=60, limits=limits) as client, ThreadPoolExecutor(70) as pool:
        slow = [pool.submit(client.post, "/v1/videos", json={"url": f"fake://slow{i}?fetch=8"}) for i in range(70)]
        time.sleep(2)
        video = post_video(http, "fake://quick")
        assert query(http, video, "what?")["answer"].startswith("saw 8 frames")
        assert not any(future.done() for future in slow)
        assert all(future.result().status_code == 200 for future in slow)


@pytest.mark.soak
def test_slow_media_of_questions_hold_up_no_question_about_others(http: httpx.Client, base_url: str) -> None:
    """More questions than an ingress takes, all about slow addresses: those beyond three quarters are refused."""
    video = post_video(http, "fake://known")
    first = query(http, video, "what?")
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=base_url, timeout=60, limits=limits) as client, ThreadPoolExecutor(2 * MOST) as pool:
        asked = [chat(MODEL, f"fake://late{number}?fetch=8", "what?") for number in range(2 * MOST)]
        slow = [pool.submit(client.post, "/v1/chat/completions", json=body) for body in asked]
        while sum(future.done() for future in slow) < 2 * MOST - 3 * MOST // 4:
            time.sleep(0.05)
        again = query(http, video, "and?", session_id=first["session_id"])
        assert again["answer"].startswith("saw 8 frames")
        refused = [future.result() for future in slow if future.done()]
        assert all(response.status_code == 503 and "retry-after" in response.headers for response in refused)
        answered = [future.result() for future in slow if future.result() not in refused]
        assert [response.status_code for response in answered] == [200] * (3 * MOST // 4)


@pytest.mark.parametrize("name", ["X-Request-Timeout-Seconds", "X_Session-Id", "Serve_Multiplexed-Model-Id"])
def test_headers_that_mean_something_to_ray_mean_nothing(http: httpx.Client, name: str) -> None:
    """Ray would fail on those that are no text in front of every key, and keep what it had of the request."""
    for value in (b"\xff", b"0.000001"):
        response = http.get("/v1/models", headers=[(name.encode(), value)])
        assert response.status_code == 200, response.text


def test_what_a_strangers_page_may_have_sent_is_refused(http: httpx.Client) -> None:
    """Through Ray's proxy, which passes on what the browser wrote."""
    own, strangers = f"http://{http.base_url.host}:{http.base_url.port}", "http://stranger.example"
    for method, headers, status in (
        ("GET", {"host": "stranger.example"}, 403),
        ("GET", {"host": "occam-serve-svc:8000"}, 404),
        ("DELETE", {"origin": strangers}, 403),
        ("DELETE", {"origin": own}, 404),
    ):
        assert http.request(method, "/v1/videos/nobodys", headers=headers).status_code == status, headers


def test_nobody_works_for_those_who_hung_up_and_asked_ray_to_go_on(http: httpx.Client, base_url: str) -> None:
    body = chat(MODEL, "fake://endless-after-hang-up", "endless?", max_tokens=4096)
    order = {"X-Request-Disconnect-Disabled": "?1"}
    with httpx.Client(base_url=base_url, timeout=2, headers=order) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/v1/chat/completions", json=body)
    until_idle(MODEL, patience_s=20)


@pytest.mark.soak
def test_a_body_that_never_comes_is_given_up(http: httpx.Client) -> None:
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=60) as line:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        line.sendall(f"{head}Connection: close\r\nContent-Length: 10\r\n\r\n{{".encode())
        told = line.makefile("rb").read().decode()
    assert told.startswith("HTTP/1.1 504 ")
    assert "1 bytes of it" in told


@pytest.mark.parametrize("given", ["r-1", "\xff\xfe", "x" * 65, "<b>", None])
def test_a_request_id_is_the_clients_if_it_is_harmless(http: httpx.Client, given: str | None) -> None:
    headers = [] if given is None else [(b"x-request-id", given.encode("latin-1"))]
    response = http.get("/v1/videos/none", headers=headers)
    assert response.status_code == 404
    request_id = response.headers["x-request-id"]
    assert response.json()["error"]["request_id"] == request_id
    assert (request_id == given) == (given == "r-1")
    assert re.fullmatch("[A-Za-z0-9._-]{1,64}", request_id)


def test_a_job_runs_while_others_ask(http: httpx.Client) -> None:
    body = {"videos": [{"url": f"fake://job{n}"} for n in range(3)], "questions": ["what?", "slow?", "who?"]}
    estimate = http.post("/v1/estimate", json=body).json()
    job = http.post("/v1/jobs", json=body)
    assert job.status_code == 202, job.text
    path = f"/v1/jobs/{job.json()['id']}"
    video = post_video(http, "fake://beside")
    while http.get(path).json()["done"] < 9:
        assert query(http, video, "what?")["answer"].startswith("saw 8 frames")
    lines = [json.loads(line) for line in http.get(f"{path}/results").iter_lines()]
    assert sorted(line["index"] for line in lines) == list(range(9))
    assert [line["error"] for line in lines if "error" in line] == []
    encoded = sum(line["answer"]["usage"]["visual_tokens"]["encoded"] for line in lines)
    assert encoded == estimate["visual_tokens"]["encoded"] == 9 * 32
    assert http.delete(path).status_code == 204
    assert http.get(path).status_code == 404


@pytest.mark.soak
def test_a_dead_decoder_ends_no_request(http: httpx.Client) -> None:
    described = post_video(http, "fake://fatal")
    assert query(http, described, "what?")["answer"].startswith("saw 8 frames")
    decoded = post_video(http, "fake://fatal-frames")
    assert query(http, decoded, "what?")["answer"].startswith("saw 8 frames")


STAGES = ("encoded", "stage1", "stage2")


def test_the_id_of_a_request_comes_back_once_through_the_proxy(http: httpx.Client) -> None:
    """Of an answer, a stream, an error and what the proxy says by itself: Ray's adds one of its own to each."""
    video = post_video(http, "fake://ids")
    for method, path, body, status in (
        ("GET", "/healthz", None, 200),
        ("POST", f"/v1/videos/{video}/queries", {"question": "what?", "stream": True}, 200),
        ("GET", "/nothing", None, 404),
        ("PUT", "/v1/models", None, 405),
        ("GET", "/-/healthz", None, 200),
    ):
        for sent in ("r-2", None):
            headers = {} if sent is None else {"x-request-id": sent}
            response = http.request(method, path, json=body, headers=headers)
            assert response.status_code == status, path
            (given,) = response.headers.get_list("x-request-id")
            assert given == sent or (sent is None and len(given) == 32)


def test_openais_client_waits_out_an_overload(http: httpx.Client, base_url: str) -> None:
    """Three times what two workers and their queue take at once: whoever is refused comes again, and is answered."""
    clip: Any = [{"role": "user", "content": [CLIP, {"type": "text", "text": "slow?"}]}]
    rejected = totals(http, "occam_rejections_total").get(("overloaded",), 0)

    async def main() -> list[str]:
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(limits=limits, timeout=60) as transport,
            openai.AsyncOpenAI(
                base_url=f"{base_url}/v1", api_key="any", max_retries=20, http_client=transport
            ) as client,
        ):
            asked = (client.chat.completions.create(model=MODEL, messages=clip, max_tokens=8) for _ in range(48))
            return [answer.choices[0].message.content or "" for answer in await asyncio.gather(*asked)]

    answers = asyncio.run(main())
    assert len(answers) == 48
    assert all(answer.startswith("saw 8 frames") for answer in answers)
    assert totals(http, "occam_rejections_total")[("overloaded",)] > rejected


# Every route of the document, asked once of the running service: method and path, the body, the status.
ROUTES: dict[str, tuple[dict[str, Any] | None, int]] = {
    "POST /v1/videos": ({"url": "fake://routes"}, 200),
    "GET /v1/videos/{video_id}": (None, 200),
    "POST /v1/videos/{video_id}/queries": ({"question": "what?"}, 200),
    "GET /v1/sessions/{session_id}/turns/{turn}/frames/{index}.png": (None, 200),
    "POST /v1/estimate": ({"url": "fake://routes", "question": "what?"}, 200),
    "POST /v1/jobs": ({"videos": [{"url": "fake://routes"}], "questions": ["what?"]}, 202),
    "GET /v1/jobs": (None, 200),
    "GET /v1/jobs/{job_id}": (None, 200),
    "GET /v1/jobs/{job_id}/results": (None, 200),
    "DELETE /v1/jobs/{job_id}": (None, 204),
    "POST /v1/chat/completions": (
        {"model": MODEL, "messages": [{"role": "user", "content": [CLIP, {"type": "text", "text": "what?"}]}]},
        200,
    ),
    "GET /v1/models": (None, 200),
    "GET /healthz": (None, 200),
    "GET /startupz": (None, 200),
    "GET /readyz": (None, 200),
    "GET /metrics": (None, 200),
    "GET /v1/sessions/{session_id}": (None, 200),
    "DELETE /v1/sessions/{session_id}": (None, 204),
    "DELETE /v1/videos/{video_id}": (None, 204),
}


def test_every_route_of_the_document_is_asked_of_the_running_service(http: httpx.Client) -> None:
    """A route without a row in `ROUTES` fails here."""
    document = http.get("/openapi.json").json()
    routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert routes == set(ROUTES)
    video = post_video(http, "fake://routes")
    answer = query(http, video, "what?", evidence=True)
    ids = {"video_id": video, "session_id": answer["session_id"], "turn": 0, "job_id": ""}
    ids["index"] = answer["evidence"]["frames"][0]["index"]
    for route, (body, status) in ROUTES.items():
        method, path = route.split()
        response = http.request(method, path.format(**ids), json=body)
        assert response.status_code == status, (route, response.text)
        if route == "POST /v1/jobs":
            ids["job_id"] = response.json()["id"]


def test_the_bench_measures_what_the_service_adds(http: httpx.Client) -> None:
    asked = service.rounds(http, "fake://overhead?frames=16&delay=0.15", 2, step_s=1.0)
    floor, *kinds = asked.values()
    assert all(engine_s == 0 < all_s for all_s, engine_s in floor)
    assert all(0 < engine_s < all_s for kind in kinds for all_s, engine_s in kind)
    first = asked["first question of a range, nothing cached"]
    assert min(all_s for all_s, _ in first) > 0.4, "eight frames of it, two at a time"
