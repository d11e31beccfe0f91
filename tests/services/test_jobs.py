"""Jobs, over the service in one process with fakes: results, restarts, leases, order, and what fails alone."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from occam.errors import Overloaded, StoreUnavailable
from services.conversations import Conversations
from services.errors import QuotaExceeded, ReplicaLost, SessionBusy
from services.job_records import JobRecord
from services.job_schemas import JobRequest
from services.job_store import JobStore
from services.keys import entry_of, fresh_key
from services.messages import FrameChoice, Question, Reply, Source, Text
from services.settings import Settings
from services.state import State
from services.tenants import tenant_of
from tests.fakes import FakeMedia
from tests.redis_server import RedisServer
from tests.services.world import MODEL, Play, World, world

ACME, OTHER = fresh_key(), fresh_key()


def count(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def post(service: World, videos: list[Any], questions: list[Any], **options: Any) -> dict[str, Any]:
    response = await service.http.post("/v1/jobs", json={"videos": videos, "questions": questions, **options})
    assert response.status_code == 202, response.text
    return response.json()


async def ended(service: World, job: str) -> dict[str, Any]:
    while (body := (await service.http.get(f"/v1/jobs/{job}")).json())["status"] in ("queued", "running"):
        await asyncio.sleep(0.01)
    return body


async def lines(service: World, job: str, **params: Any) -> list[dict[str, Any]]:
    response = await service.http.get(f"/v1/jobs/{job}/results", params=params)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text == "" or response.text.endswith("\n")
    return [json.loads(line) for line in response.iter_lines()]


def clips(*names: str) -> list[dict[str, str]]:
    return [{"url": f"fake://{name}"} for name in names]


def test_every_question_of_every_video_has_one_line(play: Play) -> None:
    async def scene(service: World) -> None:
        posted = await service.post_video("fake://posted")
        videos = [{"id": posted}, *clips("other")]
        job = await post(service, videos, ["what?", {"question": "who is it?", "max_tokens": 1}], evidence=True)
        assert (job["status"], job["total"], job["done"], job["failed"]) == ("queued", 4, 0, 0)
        body = await ended(service, job["id"])
        assert (body["status"], body["total"], body["done"], body["failed"]) == ("done", 4, 4, 0)
        results = sorted(await lines(service, job["id"]), key=lambda line: line["index"])
        assert [line["index"] for line in results] == [0, 1, 2, 3]
        assert [line["video"] for line in results] == [videos[0], videos[0], videos[1], videos[1]]
        assert [line["question"] for line in results] == ["what?", "who is it?"] * 2
        assert all(" turn 0" in line["answer"]["answer"] for line in results[::2])
        assert {line["answer"]["answer"] for line in results[1::2]} == {"saw 8 frames"}, "an option of one question"
        assert len(results[0]["answer"]["evidence"]["frames"]) == 8, "an option of all"
        assert "error" not in results[0]
        same = await service.query(posted, "what?")
        assert same["answer"] == results[0]["answer"]["answer"]

    play(scene)


class Asked:
    """Watches what is asked in this process: `texts` of jobs' questions; those with `hold` wait until `go` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        self.questions: list[Question] = []
        self.ends: list[str] = []
        self.go = asyncio.Event()
        self.fails: Callable[[Question], Exception | None] = lambda _: None
        begin, answer = Conversations._open, Conversations.answer
        watch = self

        async def begun(self: Conversations, question: Question, stack: AsyncExitStack) -> Any:
            watch.questions.append(question)
            if question.background:
                watch.texts.append(question.text)
            if "hold" in question.text:
                await watch.go.wait()
            if (error := watch.fails(question)) is not None:
                raise error
            return await begin(self, question, stack)

        async def answered(self: Conversations, question: Question) -> AsyncGenerator[Text | Reply]:
            async with aclosing(answer(self, question)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Reply):
                        watch.ends.append(question.text)
                    yield piece

        monkeypatch.setattr(Conversations, "_open", begun)
        monkeypatch.setattr(Conversations, "answer", answered)

    async def reach(self, text: str) -> None:
        while text not in self.texts:
            await asyncio.sleep(0.01)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


def test_a_video_is_fetched_and_encoded_once_for_all_of_a_thousand_questions(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    describe = FakeMedia.describe

    async def watched(self: FakeMedia, source: Source, choice: FrameChoice, frames: int, digest: str | None) -> Any:
        if digest is None:
            fetched.append(source.url)
        return await describe(self, source, choice, frames, digest)

    monkeypatch.setattr(FakeMedia, "describe", watched)

    async def scene(service: World) -> None:
        decoded = count("occam_frames_decoded_total", backend="fake")
        job = await post(service, clips(*(f"many{n}" for n in range(10))), [f"what {n}?" for n in range(100)])
        assert (await ended(service, job["id"]))["done"] == 1000
        results = await lines(service, job["id"])
        assert sorted(line["index"] for line in results) == list(range(1000))
        assert all("error" not in line for line in results)
        assert count("occam_frames_decoded_total", backend="fake") - decoded == 10 * 8
        assert sorted(fetched) == sorted(f"fake://many{n}" for n in range(10))

        read = await lines(service, job["id"], after=400)
        assert read == results[400:]
        assert await lines(service, job["id"], after=1000) == []

    play(scene)


def test_answers_of_a_job_are_counted_once(play: Play) -> None:
    async def scene(service: World) -> None:
        before = count("occam_visual_tokens_total", model=MODEL, strategy="occam", stage="encoded")
        questions = count("occam_job_questions_total", outcome="ok")
        job = await post(service, clips("counted"), ["what?", "who?", "where?"])
        await ended(service, job["id"])
        results = await lines(service, job["id"])
        usage = sum(line["answer"]["usage"]["visual_tokens"]["encoded"] for line in results)
        assert usage == 3 * 32
        assert count("occam_visual_tokens_total", model=MODEL, strategy="occam", stage="encoded") - before == usage
        assert count("occam_job_questions_total", outcome="ok") - questions == 3

    play(scene)


def test_follow_ups_are_one_conversation_in_order(play: Play) -> None:
    async def scene(service: World) -> None:
        questions = ["what?", "and then?", {"question": "and in the end?", "start_s": 1}, "really?"]
        job = await post(service, clips("talk", "talk2"), questions, follow_ups=True, max_frames=4)
        assert (await ended(service, job["id"]))["failed"] == 2
        results = [line for line in await lines(service, job["id"]) if line["index"] < 4]
        assert [line["index"] for line in results] == [0, 1, 2, 3]
        said = [line["answer"]["answer"] for line in results if "answer" in line]
        assert [text.split(" digest")[0] for text in said] == [f"saw 4 frames turn {n}" for n in range(3)]
        assert len({line["answer"]["session_id"] for line in results if "answer" in line}) == 1
        assert results[2]["error"]["param"] == "start_s", "the frames are chosen by the first question"

        alone = await post(service, clips("talk"), ["what?", "and then?"])
        await ended(service, alone["id"])
        assert all(" turn 0" in line["answer"]["answer"] for line in await lines(service, alone["id"]))

    play(scene)


def test_a_conversation_whose_session_has_run_out_goes_on_from_its_texts(
    play: Play, asked: Asked, redis_server: RedisServer
) -> None:
    async def scene(service: World) -> None:
        asked.go.set()
        whole = await post(service, clips("gone"), ["what?", "hold on", "and?"], follow_ups=True)
        await ended(service, whole["id"])
        asked.go.clear()
        job = await post(service, clips("gone"), ["what?", "hold on", "and?"], follow_ups=True)
        while len(await lines(service, job["id"])) < 1:
            await asyncio.sleep(0.01)
        for key in redis_server.client.keys("session:*"):
            redis_server.client.delete(key)
        asked.go.set()
        assert (await ended(service, job["id"]))["failed"] == 0
        assert texts(await lines(service, job["id"])) == texts(await lines(service, whole["id"]))

    play(scene)


def texts(results: list[dict[str, Any]]) -> list[str]:
    return [line["answer"]["answer"] for line in sorted(results, key=lambda line: line["index"])]


def test_a_broken_video_fails_its_own_lines_as_over_http(play: Play, asked: Asked) -> None:
    async def scene(service: World) -> None:
        videos = [*clips("missing", "corrupt"), {"id": "video-none"}, *clips("fine")]
        job = await post(service, videos, ["what?", {"question": "when?", "start_s": 200}])
        body = await ended(service, job["id"])
        assert (body["status"], body["done"], body["failed"]) == ("done", 8, 7)
        results = sorted(await lines(service, job["id"]), key=lambda line: line["index"])
        codes = [line["error"]["code"] if "error" in line else "ok" for line in results]
        assert codes == [
            "source_unavailable", "source_unavailable", "unsupported_video", "invalid_input",
            "not_found", "not_found", "ok", "invalid_input",
        ]  # fmt: skip
        assert set(results[0]["error"]) == {"type", "code", "message", "param", "request_id"}
        assert "answer" not in results[0]
        assert asked.texts.count("what?") == 3, "nobody asks about a video that cannot be fetched"

    play(scene)


def test_a_bug_fails_its_own_line(play: Play, asked: Asked) -> None:
    asked.fails = lambda question: RuntimeError("secret") if "bug" in question.text else None

    async def scene(service: World) -> None:
        job = await post(service, clips("bug"), ["a bug", "what?"])
        assert (await ended(service, job["id"]))["failed"] == 1
        first, second = await lines(service, job["id"])
        assert (first["error"]["code"], first["error"]["type"]) == ("internal", "server_error")
        assert "secret" not in str(first)
        assert "answer" in second

    play(scene)


def test_overload_is_waited_for(play: Play, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = [Overloaded("full", retry_after_s=7.5), StoreUnavailable("away"), SessionBusy("busy")]
    waits: list[float] = []
    sleep = asyncio.sleep

    async def waited(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0 if seconds in (1.0, 7.5) else seconds)

    asked.fails = lambda question: refusals.pop(0) if refusals else None

    async def scene(service: World) -> None:
        monkeypatch.setattr("services.job_runner.asyncio.sleep", waited)
        job = await post(service, clips("busy"), ["what?"])
        assert (await ended(service, job["id"]))["failed"] == 0
        assert [line["answer"]["model"] for line in await lines(service, job["id"])] == [MODEL]
        assert [seconds for seconds in waits if seconds in (1.0, 7.5)] == [7.5, 1.0, 1.0]
        assert len(asked.texts) == 4

    play(scene, job_lease_s=60)


def test_a_video_that_kills_workers_is_given_up(play: Play, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    asked.fails = lambda question: ReplicaLost("died") if "killer" in str(question.sources) else None
    sleep = asyncio.sleep
    monkeypatch.setattr("services.job_runner.asyncio.sleep", lambda seconds: sleep(0 if seconds == 1.0 else seconds))

    async def scene(service: World) -> None:
        job = await post(service, clips("killer", "fine"), [f"what {n}?" for n in range(10)])
        assert (await ended(service, job["id"]))["failed"] == 10
        assert len([each for each in asked.questions if "killer" in str(each.sources)]) == 4

    play(scene)


def test_a_job_goes_on_after_a_restart(tmp_path: Path, redis_server: RedisServer, asked: Asked) -> None:
    questions = ["one", "two", "hold three", "four"]

    async def main() -> None:
        async with world(tmp_path, redis_server.url) as service:
            job = (await post(service, clips("a", "b"), questions, follow_ups=True))["id"]
            while (await service.http.get(f"/v1/jobs/{job}")).json()["done"] < 4:
                await asyncio.sleep(0.01)
            await asked.reach("hold three")
        redis_server.client.delete(*redis_server.client.keys("session:*"))
        before = list(asked.texts)
        asked.go.set()
        async with world(tmp_path, redis_server.url) as service:
            body = await ended(service, job)
            assert (body["status"], body["done"], body["failed"]) == ("done", 8, 0)
            results = await lines(service, job)
            assert sorted(line["index"] for line in results) == list(range(8))
            assert sorted(asked.texts[len(before) :]) == ["four", "four", "hold three", "hold three"]
            whole = await post(service, clips("a", "b"), questions, follow_ups=True)
            await ended(service, whole["id"])
            assert texts(results) == texts(await lines(service, whole["id"])), "the conversation went on as it was"

    asyncio.run(main())


def test_a_killed_ingress_loses_its_jobs_and_writes_nothing_more(
    tmp_path: Path, redis_server: RedisServer, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed as far as the store sees: its lease is not extended any more, nor given back."""

    async def scene() -> None:
        async with world(tmp_path, redis_server.url, job_lease_s=2) as dead:
            job = (await post(dead, clips("a"), ["one", "hold two", "three"]))["id"]
            await asked.reach("hold two")
            never = asyncio.Event()
            monkeypatch.setattr(JobStore, "extend", lambda *_: never.wait())
            while redis_server.client.exists(f"job-lease:{job}"):
                await asyncio.sleep(0.02)
            async with world(tmp_path, redis_server.url, job_lease_s=60) as alive:
                while asked.texts.count("hold two") < 2:
                    await asyncio.sleep(0.02)
                asked.go.set()
                body = await ended(alive, job)
                assert (body["done"], body["failed"]) == (3, 0)
                while len(asked.ends) < 4:
                    await asyncio.sleep(0.01)
                assert [line["index"] for line in await lines(alive, job)] == [0, 1, 2]
                assert asked.texts.count("one") == 1

    asyncio.run(scene())


def test_two_ingresses_never_work_on_one_job_both(
    tmp_path: Path, redis_server: RedisServer, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        monkeypatch.setattr("services.job_runner._LOOK_S", 0.01)
        options = {"job_lease_s": 60}
        async with (
            world(tmp_path, redis_server.url, **options) as one,
            world(tmp_path, redis_server.url, **options) as two,
        ):
            jobs = []
            for n in range(6):
                service = (one, two)[n % 2]
                jobs.append((await post(service, clips(f"v{n}"), [f"{n}.{q}" for q in range(20)]))["id"])
            for job in jobs:
                assert (await ended(two, job))["done"] == 20
                assert [line["index"] for line in await lines(one, job)] == list(range(20))
        assert len(asked.texts) == len(set(asked.texts)) == 120

    asyncio.run(scene())


def test_a_deleted_job_stops_at_once_and_leaves_nothing(play: Play, asked: Asked, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        job = (await post(service, clips("a", "b"), ["one", "hold two", "three"]))["id"]
        while asked.texts.count("hold two") < 2:
            await asyncio.sleep(0.01)
        assert (await service.http.delete(f"/v1/jobs/{job}")).status_code == 204
        assert [task for task in asyncio.all_tasks() if "JobRunner._work" in str(task.get_coro())] == []
        assert redis_server.client.keys("job*") == []
        for request in (service.http.get, service.http.delete):
            assert (await request(f"/v1/jobs/{job}")).status_code == 404
        assert (await service.http.get(f"/v1/jobs/{job}/results")).status_code == 404
        asked.go.set()
        other = await post(service, clips("c"), ["what?"])
        assert (await ended(service, other["id"]))["done"] == 1
        assert "three" not in asked.texts

    play(scene)


def test_a_job_that_another_ingress_deletes_stops(tmp_path: Path, redis_server: RedisServer, asked: Asked) -> None:
    async def scene() -> None:
        async with world(tmp_path, redis_server.url, job_lease_s=3) as one:
            job = (await post(one, clips("a"), ["hold one", "two"]))["id"]
            await asked.reach("hold one")
            async with world(tmp_path, redis_server.url) as two:
                assert (await two.http.delete(f"/v1/jobs/{job}")).status_code == 204
                while [task for task in asyncio.all_tasks() if "JobRunner._work" in str(task.get_coro())]:
                    await asyncio.sleep(0.02)
        assert asked.texts == ["hold one"]
        assert redis_server.client.keys("job*") == []

    asyncio.run(scene())


def test_questions_that_somebody_waits_for_go_first(play: Play, asked: Asked) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video("fake://now")
        waiting = asyncio.create_task(service.query(video, "hold on, who waits?"))
        while not asked.questions:
            await asyncio.sleep(0.01)
        job = await post(service, clips("a", "b", "c"), ["what?", "who?"])
        for _ in range(5):
            assert (await service.query(video, "and quickly?"))["answer"]
        assert asked.texts == [], "the job has not begun"
        asked.go.set()
        await waiting
        assert (await ended(service, job["id"]))["done"] == 6

    play(scene, job_patience_s=600)


def test_a_job_goes_on_under_a_load_that_never_ends(play: Play, asked: Asked) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video("fake://now")
        waiting = asyncio.create_task(service.query(video, "hold on, who waits?"))
        while not asked.questions:
            await asyncio.sleep(0.01)
        job = await post(service, clips("a"), ["what?", "who?"])
        assert (await ended(service, job["id"]))["done"] == 2
        asked.go.set()
        await waiting

    play(scene, job_patience_s=0.05)


def test_no_more_videos_are_in_hand_than_are_set(play: Play, asked: Asked) -> None:
    async def scene(service: World) -> None:
        jobs = [(await post(service, clips("a", "b", "c", "d"), [f"hold {n}"]))["id"] for n in range(3)]
        while len(asked.texts) < 3:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert len(asked.texts) == 3
        asked.go.set()
        for job in jobs:
            assert (await ended(service, job))["done"] == 4

    play(scene, job_concurrency=3)


def test_jobs_are_listed_by_page_the_newest_first(play: Play) -> None:
    async def scene(service: World) -> None:
        ids = [(await post(service, clips("a"), [f"{n}?"]))["id"] for n in range(5)]
        for job in ids:
            await ended(service, job)
        found: list[str] = []
        page: dict[str, Any] = {"has_more": True}
        while page["has_more"]:
            params = {"limit": 2, **({"after": found[-1]} if found else {})}
            page = (await service.http.get("/v1/jobs", params=params)).json()
            found += [job["id"] for job in page["data"]]
            assert all(job["status"] == "done" for job in page["data"])
        assert found == ids[::-1]
        unknown = await service.http.get("/v1/jobs", params={"after": "job-none"})
        assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "after")

    play(scene)


def test_a_job_is_its_tenants_alone(play: Play) -> None:
    async def scene(service: World) -> None:
        job = (await post(service, clips("a"), ["what?"]))["id"]
        await ended(service, job)
        service.http._transport.app.dependency_overrides[tenant_of] = lambda: "other"
        for path in (f"/v1/jobs/{job}", f"/v1/jobs/{job}/results"):
            assert (await service.http.get(path)).status_code == 404
        assert (await service.http.delete(f"/v1/jobs/{job}")).status_code == 404
        assert (await service.http.get("/v1/jobs")).json()["data"] == []
        service.http._transport.app.dependency_overrides.clear()
        assert len(await lines(service, job)) == 1

    play(scene)


@pytest.mark.parametrize(
    "damage",
    [
        lambda redis, job: redis.set(f"job:{job}", redis.get(f"job:{job}")[:40]),
        lambda redis, job: redis.set(f"job:{job}", b"\xff\x00"),
        lambda redis, job: redis.set(f"job:{job}", redis.get(f"job:{job}").replace(job.encode(), b"job-another")),
        lambda redis, job: redis.delete(f"job:{job}") and redis.rpush(f"job:{job}", "1"),
        lambda redis, job: redis.delete(f"job-results:{job}") and redis.set(f"job-results:{job}", "1"),
        lambda redis, job: redis.rpush(f"job-results:{job}", "{torn"),
        lambda redis, job: redis.delete(f"job-seen:{job}") and redis.hset(f"job-seen:{job}", "a", "1"),
        lambda redis, job: redis.delete(f"job-tally:{job}") and redis.set(f"job-tally:{job}", "1"),
        lambda redis, job: redis.hset(f"job-tally:{job}", "failed", "many"),
        lambda redis, job: redis.hdel(f"job-tally:{job}", "total"),
        lambda redis, job: redis.hset(f"job-tally:{job}", "created", "9" * 5000),
        lambda redis, job: redis.hset(f"job-tally:{job}", "bytes", "1e999"),
    ],
)
def test_damaged_entries_fail_their_job_alone(
    damage: Callable[[Any, str], Any], tmp_path: Path, redis_server: RedisServer, asked: Asked
) -> None:
    async def scene() -> None:
        async with world(tmp_path, redis_server.url) as service:
            job = (await post(service, clips("a"), ["one", "hold two"], follow_ups=True))["id"]
            await asked.reach("hold two")
        damage(redis_server.client, job)
        asked.go.set()
        async with world(tmp_path, redis_server.url) as service:
            other = (await post(service, clips("b"), ["three"]))["id"]
            assert (await ended(service, other))["done"] == 1
            body = await ended(service, job)
            assert (body["status"], body["error"]["type"]) == ("failed", "server_error")
            listed = (await service.http.get("/v1/jobs")).json()["data"]
            assert [(each["id"], each["status"]) for each in listed] == [(other, "done"), (job, "failed")]
            results = await service.http.get(f"/v1/jobs/{job}/results")
            assert all(isinstance(json.loads(line), dict) for line in results.text.splitlines())
            assert (await service.http.delete(f"/v1/jobs/{job}")).status_code == 204
            assert (await service.http.get(f"/v1/jobs/{job}")).status_code == 404

    asyncio.run(scene())


def test_looking_at_jobs_reads_no_request(play: Play, asked: Asked, redis_server: RedisServer) -> None:
    """A request may have megabytes, and is nothing that whoever asks how far a job is waits for."""

    async def scene(service: World) -> None:
        job = await post(service, clips("a", "b"), ["one", "hold two"])
        await asked.reach("hold two")
        redis_server.client.set(f"job:{job['id']}", b"\xff")
        looked = (await service.http.get(f"/v1/jobs/{job['id']}")).json()
        assert (looked["status"], looked["total"], looked["created"]) == ("running", 4, job["created"])
        assert (await service.http.get("/v1/jobs")).json()["data"] == [looked]
        asked.go.set()
        assert (await ended(service, job["id"]))["status"] == "done"

    play(scene)


def test_more_questions_than_the_limit_are_refused_with_both_numbers(play: Play) -> None:
    async def scene(service: World) -> None:
        body = {"videos": clips("a", "b", "c"), "questions": ["1", "2", "3", "4"]}
        response = await service.http.post("/v1/jobs", json=body)
        assert response.status_code == 422
        message = response.json()["error"]["message"]
        assert message == "The job has 3 videos x 4 questions = 12, more than the limit of 11."
        body["questions"].pop()
        assert (await service.http.post("/v1/jobs", json=body)).status_code == 202

    play(scene, max_job_questions=11)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"videos": [], "questions": ["what?"]}, 400),
        ({"videos": [{"url": "fake://a"}], "questions": []}, 400),
        ({"videos": [{"url": "fake://a"}], "questions": [""]}, 400),
        ({"videos": [{"url": "fake://a"}], "questions": ["half \ud800"]}, 400),
        ({"videos": [{"url": "fake://a"}], "questions": [{"question": "what?", "stream": True}]}, 400),
        ({"videos": [{"url": "fake://a"}], "questions": [{"question": "what?", "session_id": "s"}]}, 400),
        ({"videos": [{"url": "fake://a"}], "questions": ["what?"], "session_id": "s"}, 400),
        ({"videos": [{"url": "fake://a", "id": "video-1"}], "questions": ["what?"]}, 400),
        ({"videos": [{}], "questions": ["what?"]}, 400),
        ({"videos": [{"url": "fake://a"}], "questions": ["what?"], "model": "none"}, 404),
        ({"videos": [{"url": "fake://a"}], "questions": [{"question": "what?", "model": "none"}]}, 404),
        ({"videos": [{"url": "fake://a"}], "questions": ["what?"], "temperature": 1e-9}, 422),
    ],
)
def test_a_job_that_could_not_be_answered_is_refused_at_once(
    body: dict[str, Any], status: int, play: Play, redis_server: RedisServer
) -> None:
    async def scene(service: World) -> None:
        response = await service.http.post(
            "/v1/jobs", content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert response.status_code == status, response.text
        assert redis_server.client.keys("job*") == []

    play(scene)


def test_jobs_of_a_tenant_are_bounded_in_number(play: Play, redis_server: RedisServer) -> None:
    async def scene(service: World) -> None:
        ids = [(await post(service, clips("a"), ["what?"]))["id"] for _ in range(2)]
        for job in ids:
            await ended(service, job)
        body = {"videos": clips("a"), "questions": ["what?"]}
        refused = await service.http.post("/v1/jobs", json=body)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(refused.headers["retry-after"]) > 0
        redis_server.client.delete(f"job:{ids[0]}")  # as if its time had ended
        assert (await service.http.post("/v1/jobs", json=body)).status_code == 202

    play(scene, max_jobs=2)


def test_bytes_of_jobs_are_bounded_and_what_does_not_fit_says_so(play: Play, redis_server: RedisServer) -> None:
    limit = 80_000

    def stored() -> int:
        redis = redis_server.client
        jobs = sum(len(redis.get(key)) for key in redis.keys("job:*"))
        return jobs + sum(len(line) for key in redis.keys("job-results:*") for line in redis.lrange(key, 0, -1))

    async def scene(service: World) -> None:
        small = await post(service, clips("a"), ["what?"])
        await ended(service, small["id"])
        job = await post(service, clips("a"), [f"{n}?" for n in range(40)], evidence=True)
        body = await ended(service, job["id"])
        assert (body["status"], body["done"]) == ("done", 40)
        assert 0 < body["failed"] < 40
        results = await lines(service, job["id"])
        assert {line["error"]["code"] for line in results if "error" in line} == {"results_too_large"}
        assert 0.7 * limit < stored() <= limit
        assert "answer" in (await lines(service, small["id"]))[0]
        refused = await service.http.post(
            "/v1/jobs", json={"videos": clips("a"), "questions": [f"{n}?" for n in range(200)]}
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_jobs")
        await service.http.delete(f"/v1/jobs/{job['id']}")
        again = await post(service, clips("a"), ["what?"], evidence=True)
        assert (await ended(service, again["id"]))["failed"] == 0

    play(scene, max_job_bytes=limit)


def test_results_are_kept_for_their_time_and_open_jobs_for_ever(
    play: Play, asked: Asked, redis_server: RedisServer
) -> None:
    async def scene(service: World) -> None:
        job = (await post(service, clips("a"), ["one", "hold two"]))["id"]
        await asked.reach("hold two")
        entries = [f"{name}:{job}" for name in ("job", "job-results", "job-seen", "job-tally")]
        assert [redis_server.client.ttl(entry) for entry in entries] == [-1] * 4
        asked.go.set()
        await ended(service, job)
        assert all(0 < redis_server.client.ttl(entry) <= 500 for entry in entries)
        redis_server.client.delete(*entries)
        assert (await service.http.get(f"/v1/jobs/{job}")).status_code == 404
        assert (await service.http.get("/v1/jobs")).json() == {"object": "list", "data": [], "has_more": False}

    play(scene, job_ttl_s=500)


def test_lines_are_whole_whatever_is_in_them(play: Play) -> None:
    odd = ["\u2028 \u2029 \x85 \x0c \x1e", "первый\nвторой\r\n", '😀 "quoted" \\ \t', "؟ مرحبا", "\u0000"]

    async def scene(service: World) -> None:
        job = await post(service, [{"url": "fake://ünïcode"}], odd)
        assert (await ended(service, job["id"]))["failed"] == 0
        results = await lines(service, job["id"])
        assert [line["question"] for line in results] == odd
        assert results[0]["video"] == {"url": "fake://ünïcode"}

    play(scene)


def test_results_can_be_followed_to_the_end(play: Play, asked: Asked) -> None:
    async def scene(service: World) -> None:
        job = await post(service, clips("a"), ["one", "hold two", "three"])
        await asked.reach("hold two")
        assert [line["question"] for line in await lines(service, job["id"])] == ["one"]
        following = asyncio.create_task(lines(service, job["id"], after=1, follow=True))
        await asyncio.sleep(0.05)
        assert not following.done()
        asked.go.set()
        assert [line["question"] for line in await following] == ["hold two", "three"]

    play(scene)


def test_results_end_where_the_job_is_deleted_while_they_are_followed(play: Play, asked: Asked) -> None:
    async def scene(service: World) -> None:
        job = await post(service, clips("a"), ["one", "hold two"])
        await asked.reach("hold two")
        following = asyncio.create_task(lines(service, job["id"], follow=True))
        await asyncio.sleep(0.05)
        assert (await service.http.delete(f"/v1/jobs/{job['id']}")).status_code == 204
        assert [line["question"] for line in await following] == ["one"]

    play(scene)


def test_a_tenant_whose_jobs_must_wait_holds_up_nobody_else(play: Play, asked: Asked) -> None:
    used_up = QuotaExceeded("The quota is used up.", retry_after_s=60)
    asked.fails = lambda question: used_up if question.tenant == "acme" else None

    async def scene(service: World) -> None:
        waiting = [await post(service, clips("a"), ["one"]) for _ in range(20)]
        await asked.reach("one")
        other = {"authorization": f"Bearer {OTHER}"}
        body = {"videos": clips("b"), "questions": ["two"]}
        job = (await service.http.post("/v1/jobs", json=body, headers=other)).json()["id"]
        async with asyncio.timeout(10):
            while (await service.http.get(f"/v1/jobs/{job}", headers=other)).json()["status"] != "done":
                await asyncio.sleep(0.01)
        statuses = [(await service.http.get(f"/v1/jobs/{each['id']}")).json()["status"] for each in waiting]
        assert {"running", "queued"} <= set(statuses)

    keys = (entry_of("acme", ACME), entry_of("other", OTHER))
    headers = {"authorization": f"Bearer {ACME}"}
    play(scene, api_keys=keys, headers=headers)


def test_an_answer_that_cannot_be_kept_is_not_asked_for_again(
    play: Play, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is away, or has kept the line and its answer was lost: one line, one answer."""
    monkeypatch.setattr("services.job_runner._STORE_RETRY_S", 0)
    keep, tries = JobStore.keep, 0

    async def failing(self: JobStore, *args: Any, **options: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise StoreUnavailable("away")
        kept = await keep(self, *args, **options)
        if tries < 4:
            raise StoreUnavailable("the answer was lost")
        return kept

    monkeypatch.setattr(JobStore, "keep", failing)

    async def scene(service: World) -> None:
        job = await post(service, clips("a"), ["one", "two"])
        assert (await ended(service, job["id"]))["done"] == 2
        assert [line["question"] for line in await lines(service, job["id"])] == ["one", "two"] == asked.texts

    play(scene)


def test_a_service_ends_whose_library_loses_a_cancellation(
    play: Play, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As redis-py does where a reply comes together with it (`asyncio.wait_for` before Python 3.12)."""
    monkeypatch.setattr("services.background._CANCEL_S", 0.01)
    lost: list[str] = []
    hold = asked.go.wait

    async def losing() -> Any:
        try:
            return await hold()
        except asyncio.CancelledError:
            lost.append("once")
        return await hold()

    monkeypatch.setattr(asked.go, "wait", losing)

    async def scene(service: World) -> None:
        job = await post(service, clips("a"), ["hold one"])
        await asked.reach("hold one")
        assert (await service.http.delete(f"/v1/jobs/{job['id']}")).status_code == 204
        assert lost == ["once"]

    play(scene)


def test_a_lease_is_ones_own_and_so_are_its_lines(redis_server: RedisServer) -> None:
    settings = Settings(state_url=redis_server.url)
    request = JobRequest.model_validate({"videos": clips("a"), "questions": ["one"]})
    record = JobRecord(id="job-1", tenant="acme", created=1.0, request=request)

    async def main() -> None:
        state = State(settings.state_url, ttl_s=9, first_ttl_s=9, turn_s=9, salt=settings.salt)
        store = JobStore(settings, state)
        await store.add(record, record.least_bytes)

        async def keep(token: str) -> str:
            return await store.keep(record, token, 0, b"{}", failed=False, grown=0)

        assert [await store.claim("job-1", token) for token in ("mine", "other", "mine")] == [True, False, True]
        assert await keep("other") == "lost"
        await store.release("job-1", "other")
        assert not await store.extend("job-1", "other")
        assert await store.extend("job-1", "mine")
        assert [await keep("mine"), await keep("mine")] == ["kept", "there"]
        await store.release("job-1", "mine")
        assert await keep("mine") == "lost"
        await store.delete("job-1", "acme")
        assert not await store.claim("job-1", "late"), "deleted since it was looked for"
        with state.talking() as redis:
            await redis.aclose()

    asyncio.run(main())
