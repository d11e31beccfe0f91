"""A service that is replaced while it is asked, on real Ray Serve: nothing is cut short, and nobody waits for it."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from ray import serve

from services import app
from services.app import APP_NAME, build_app
from services.launch import running
from services.settings import Settings
from tests.fakes import FakeEngine, FakeMedia
from tests.ports import free_port
from tests.soak.cancelled import chat

WORDS = 160  # 8 s of them
SHORT_S = 1.0


def deploy(settings: Settings) -> None:
    application = build_app(settings, FakeEngine.load, FakeMedia, redeployed=True)
    serve.run(application, name=APP_NAME)


@pytest.mark.soak
def test_what_has_begun_ends_while_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "_DRAIN_S", SHORT_S)
    settings = Settings(models=("fake",), workers=2, port=free_port(), kv_url="memory://")
    with (
        running(settings, load=FakeEngine.load, media=FakeMedia) as live,
        httpx.Client(base_url=f"http://127.0.0.1:{live.port}", timeout=60) as http,
        ThreadPoolExecutor() as pool,
    ):
        deploy(live)
        body = chat("fake", "fake://long", "endless", max_tokens=WORDS)
        with http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            began = time.monotonic()
            deploying = pool.submit(deploy, replace(live, max_images=3))
            rest = pool.submit(lambda: ([line for line in lines if line], time.monotonic()))
            waited = []
            while not deploying.done():
                asked = time.monotonic()
                answer = http.post("/v1/chat/completions", json=chat("fake", "fake://short", "what"))
                assert answer.status_code == 200, answer.text
                waited.append(time.monotonic() - asked)
                time.sleep(0.1)
            deploying.result()
            read, ended = rest.result()
        print(f"the stream ran {ended - began:.1f} s on; {len(waited)} answers within {max(waited):.1f} s")
        assert read[-1] == "data: [DONE]"
        assert ended - began > 5 * SHORT_S
        assert max(waited) < (ended - began) / 2, "nobody waits until it has ended"
        began = time.monotonic()
    print(f"idle, it ended within {time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < live.deadline_s / 4, "what is idle is not waited for"
