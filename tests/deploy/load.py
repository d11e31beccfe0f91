"""A load that touches all that a metric counts: for the tests of rules and dashboards, and for their pictures."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from pipelines.evaluation.codec import write_mp4
from pipelines.evaluation.renderer import FIRST_TEST_SEED, draw_scene, render
from services.keys import entry_of, fresh_key
from services.launch import running
from services.settings import Settings
from tests.ports import free_port
from tests.redis_server import RedisServer

MODEL = "tiny-video-llava"
CLIPS = 6
SLOW = "noise.mp4"
"""A clip whose decoding takes a while."""
QUESTIONS = ("what color is the star", "how many objects are there", "is there a circle", "what moves left")
KEYS = {tenant: fresh_key() for tenant in ("users", "metered", "prometheus")}
_NOBODY = "http://127.0.0.1:9"
_PATIENCE_S = 60


@contextmanager
def service(folder: Path, redis: RedisServer) -> Iterator[str]:
    """The base URL of a real service of one worker, on a cache that may be killed and a collector that is not there."""
    for number in range(CLIPS):
        write_mp4(folder / f"{number}.mp4", render(draw_scene(FIRST_TEST_SEED + number)))
    noise = np.random.default_rng(0).integers(0, 255, (180, 240, 320, 3), dtype=np.uint8)
    write_mp4(folder / SLOW, noise, fps=30)
    (folder / "broken.mp4").write_bytes(b"\x00\x00\x00\x20ftypisom" + bytes(5000))
    (folder / "text.mp4").write_text("no video")
    settings = Settings(
        models=(MODEL,),
        threads=1,
        port=free_port(),
        kv_url=redis.url,
        kv_memory_bytes=2 << 20,
        kv_node_bytes=16 << 20,
        max_queued_tokens=600,
        file_roots=(str(folder),),
        api_keys=tuple(entry_of(tenant, key) for tenant, key in KEYS.items()),
        tenant_quotas=("metered:2:0",),
        otlp_endpoint=_NOBODY,
        job_patience_s=0.5,
        log_level="error",
    )
    with running(settings):
        yield f"http://127.0.0.1:{settings.port}"


class Users:
    """Clients of the service, of whom each call is one visit."""

    def __init__(self, base_url: str, folder: Path) -> None:
        self._folder = folder
        self._draw = random.Random(0)
        self._http = {tenant: self._client(base_url, key) for tenant, key in KEYS.items()}
        self._nobody = self._client(base_url, "occam-unknown")

    @staticmethod
    def _client(base_url: str, key: str) -> httpx.Client:
        return httpx.Client(base_url=base_url, timeout=_PATIENCE_S, headers={"Authorization": f"Bearer {key}"})

    def close(self) -> None:
        """Hang up."""
        for client in (*self._http.values(), self._nobody):
            client.close()

    def converse(self, **options: Any) -> None:
        """Three questions about a clip: the first with its picture, the last one streamed."""
        queries = self._post_clip()
        response = self._users.post(queries, json={**self._question(), **options, "evidence": True})
        if response.status_code == 200:
            answer = response.json()
            self._users.get(answer["evidence"]["frames"][0]["overlay"])
            for stream in (False, True):
                body = {**self._question(), "session_id": answer["session_id"], "stream": stream}
                self._users.post(queries, json=body)

    def look_at_new_frames(self, **options: Any) -> None:
        """A question about frames that nobody has asked for."""
        self._users.post(self._post_clip(), json={**self._new_frames(), **options})

    def crowd(self, clients: int = 8) -> None:
        """More new frames at a time than a worker takes on."""
        slow = self._post_clip(SLOW)
        asked = [self._new_frames() for _ in range(clients)]
        with ThreadPoolExecutor(clients) as pool:
            for body in asked:
                pool.submit(self._users.post, slow, json=body)

    def upload(self) -> None:
        """The file itself, and a question about it."""
        path = self._clip()
        video = self._users.post("/v1/videos", files={"file": (path.name, path.read_bytes())}).json()
        self._users.post(f"/v1/videos/{video['id']}/queries", json=self._question())

    def err(self) -> None:
        """What is no video, not there, not allowed, not known, too late, or from nobody."""
        for url in ("broken.mp4", "text.mp4", "absent.mp4"):
            self._users.post("/v1/videos", json={"url": str(self._folder / url)})
        self._users.post("/v1/videos", json={"url": "http://127.0.0.1/clip.mp4"})
        self._users.get("/v1/videos/video-unknown")
        self._nobody.get("/v1/models")
        self.look_at_new_frames(deadline_s=0.001)

    def hang_up(self) -> None:
        """New frames, given up when the first of them are decoded, and a long answer, given up at its first word."""
        endless = {"stream": True, "max_tokens": 512, "temperature": 2.0}
        slow = self._post_clip(SLOW)
        for enough, body in (("progress", self._new_frames()), ('"text"', self._question())):
            with self._users.stream("POST", slow, json={**body, **endless}) as response:
                next((line for line in response.iter_lines() if enough in line), None)

    def begin_jobs(self) -> None:
        """A job, and one of a tenant whose quota is used up by its first questions."""
        videos = [{"url": str(self._clip())} for _ in range(2)]
        for tenant in ("users", "metered"):
            self._http[tenant].post("/v1/jobs", json={"videos": videos, "questions": list(QUESTIONS[:2])})

    def estimate(self) -> None:
        """What a question would cost."""
        self._users.post("/v1/estimate", json={**self._question(), "url": str(self._clip())})

    def wait_for_jobs(self, patience_s: float = _PATIENCE_S) -> None:
        """Until the users' jobs have ended."""
        ends = time.monotonic() + patience_s
        while any(job["status"] in ("queued", "running") for job in self._users.get("/v1/jobs").json()["data"]):
            assert time.monotonic() < ends
            time.sleep(0.2)

    @property
    def _users(self) -> httpx.Client:
        return self._http["users"]

    def _clip(self) -> Path:
        return self._folder / f"{self._draw.randrange(CLIPS)}.mp4"

    def _question(self) -> dict[str, Any]:
        return {"question": self._draw.choice(QUESTIONS)}

    def _new_frames(self) -> dict[str, Any]:
        return {**self._question(), "start_s": self._draw.uniform(0, 5)}

    def _post_clip(self, name: str | None = None) -> str:
        """Where questions about a clip go, any where none is named, once it is posted."""
        path = self._clip() if name is None else self._folder / name
        video = self._users.post("/v1/videos", json={"url": str(path)}).json()
        return f"/v1/videos/{video['id']}/queries"


def everything(users: Users, redis: RedisServer) -> None:
    """Each kind of visit twice or more, for a rate needs two; at last the cache is killed."""
    for _ in range(2):
        users.converse()
        users.converse(strategy="none")
        for _ in range(3):
            users.err()
        for _ in range(3):
            users.hang_up()
        users.upload()
        users.estimate()
        users.crowd()
        users.begin_jobs()
    users.wait_for_jobs()
    redis.kill()
    for _ in range(12):
        users.look_at_new_frames()
        time.sleep(0.2)
