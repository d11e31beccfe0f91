"""API keys: who is let in where, and that a key is nowhere but with its user."""

import asyncio
import itertools
import json
import logging
import re
import socket
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client import REGISTRY, generate_latest

from occam.errors import InvalidInput
from services import preflight
from services.cli import main
from services.keys import Keys, entry_of, fresh_key
from services.settings import Settings
from services.sites import OwnSite
from services.tenants import Doorkeeper
from tests.redis_server import RedisServer
from tests.services.document import operations
from tests.services.world import MODEL, Play, World

KEY, SECOND, OTHER = (fresh_key() for _ in range(3))
KEYS = (entry_of("acme", KEY), entry_of("acme", SECOND), entry_of("other", OTHER))
OPEN = {"/", "/docs", "/openapi.json", "/healthz", "/readyz", "/startupz"}


@pytest.fixture
def usual() -> dict[str, Any]:
    return {"api_keys": KEYS}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_every_route_but_the_open_ones_needs_a_key(play: Play) -> None:
    async def scene(service: World) -> None:
        listed = [(each.method, each.path(), each.body) for each in await operations(service)]
        assert {"/v1/videos", "/v1/chat/completions", "/v1/models", "/metrics"} <= {path for _, path, _ in listed}
        unknown = [
            (method, path, None)
            for method in ("GET", "POST", "HEAD", "OPTIONS", "PROPFIND")
            for path in ("/v1", "/v1/", "/v1/nothing", "/v1/models/", "//v1/models", "/metrics/", "/docsx", "/static",
                         "/x/static/y", "/v1/%2e%2e/healthz", "/redoc", "/healthz/")
        ]  # fmt: skip
        for method, path, body in [*listed, *unknown, ("GET", "/docs", None), ("GET", "/openapi.json", None)]:
            for headers in ({}, bearer("wrong"), bearer(KEY[:-1]), bearer(KEYS[0].split(":")[1])):
                response = await service.http.request(method, path, json=body, headers=headers)
                if path in OPEN:
                    assert response.status_code == 200, path
                    continue
                assert response.status_code == 401, (method, path, headers)
                assert response.headers["www-authenticate"] == "Bearer"
                if method != "HEAD":
                    error = response.json()["error"]
                    assert set(error) == {"type", "code", "message", "param", "request_id"}
                    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
            answered = await service.http.request(method, path, json=body, headers=bearer(KEY))
            assert answered.status_code != 401, (method, path)

    play(scene)


@pytest.mark.parametrize(
    ("headers", "enters"),
    [
        ([("authorization", f"Bearer {KEY}")], True),
        ([("authorization", f"Bearer {SECOND}")], True),
        ([("Authorization", f"bearer   {KEY} ")], True),
        ([("authorization", KEY)], False),
        ([("authorization", f"Basic {KEY}")], False),
        ([("authorization", "Bearer ")], False),
        ([("authorization", "Bearer")], False),
        ([("authorization", "")], False),
        ([("authorization", f"Bearer {KEY} {KEY}")], False),
        ([("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")], False),
        ([("authorization", "Bearer wrong"), ("authorization", f"Bearer {KEY}")], False),
        ([("authorization", b"Bearer \xff\xfe")], False),
        ([("x-api-key", KEY)], False),
    ],
)
def test_a_key_comes_in_one_header_of_its_form(play: Play, headers: list[tuple[str, Any]], enters: bool) -> None:
    async def scene(service: World) -> None:
        response = await service.http.get("/v1/models", headers=headers)
        assert response.status_code == (200 if enters else 401)

    play(scene)


def test_without_keys_everybody_enters(play: Play) -> None:
    async def scene(service: World) -> None:
        for headers in ({}, bearer("anything")):
            assert (await service.http.get("/v1/models", headers=headers)).status_code == 200

    play(scene, api_keys=())


@pytest.mark.parametrize(
    ("keys", "method", "site", "status"),
    [
        ((), "POST", "cross-site", 403),
        ((), "DELETE", "cross-site", 403),
        ((), "GET", "cross-site", 404),
        ((), "POST", "same-origin", 405),
        ((), "POST", "none", 405),
        (KEYS, "POST", "cross-site", 405),
    ],
)
def test_without_keys_pages_of_other_sites_may_read_and_no_more(
    play: Play, keys: tuple[str, ...], method: str, site: str, status: int
) -> None:
    """A key says whose a request is, which a page elsewhere cannot know."""

    async def scene(service: World) -> None:
        headers = {**bearer(KEY), "sec-fetch-site": site}
        response = await service.http.request(method, "/v1/videos/nobodys", headers=headers)
        assert response.status_code == status
        assert (response.json()["error"]["code"] == "cross_site") == (status == 403)

    play(scene, api_keys=keys)


@pytest.mark.parametrize(
    ("host", "taken"),
    [
        ("127.0.0.1", True),
        ("192.168.1.5:8000", True),
        ("[::1]:8000", True),
        ("[fe80::1]", True),
        ("[::ffff:127.0.0.1]:8000", True),
        ("localhost:8000", True),
        ("LOCALHOST.", True),
        ("app.localhost", True),
        ("occam", True),
        ("occam-serve-svc:8000", True),
        ("occam-serve-svc.occam.svc:8000", True),
        ("occam-serve-svc.occam.svc.cluster.local:8000", True),
        ("host.docker.internal:8000", True),
        ("Video.Lab.Example:8000", True),  # what it was told to listen on
        ("gpu-7.lab.example", True),  # what the machine is called
        ("evil.example", False),
        ("evil.example:8000", False),
        ("evil.example.:8000", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example:8000@localhost", False),
        ("localhost.evil.example", False),
        ("evillocal.example", False),
        ("[evil.example]", False),
        ("[::1].evil.example", False),
        ("", False),
        ("ev\u00efl", False),
    ],
)
def test_without_keys_a_name_that_strangers_may_own_is_not_answered(
    play: Play, monkeypatch: pytest.MonkeyPatch, host: str, taken: bool
) -> None:
    """Its owner can have it mean this machine, and a browser then takes the owner's pages for the service's own."""
    monkeypatch.setattr(socket, "gethostname", lambda: "GPU-7.lab.example")

    async def scene(service: World) -> None:
        headers = {**bearer(KEY), "host": host.encode("latin-1")}
        for method, path in (("GET", "/v1/models"), ("GET", "/"), ("GET", "/docs"), ("POST", "/v1/models")):
            response = await service.http.request(method, path, headers=headers)
            assert (response.status_code == 403) is not taken, path
            if not taken:
                error = response.json()["error"]
                assert error["code"] == "cross_site"
                assert "OCCAM_API_KEYS" in error["message"]
        for path in ("/healthz", "/readyz", "/startupz", "/metrics"):
            assert (await service.http.get(path, headers=headers)).status_code == 200

    play(scene, api_keys=(), host="video.lab.example")


@pytest.mark.parametrize(
    ("host", "origin", "taken"),
    [
        ("192.168.1.5:8000", "http://192.168.1.5:8000", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        ("LocalHost:8000", "http://localhost:8000", True),
        ("box", "http://box", True),
        ("box:80", "http://box", True),
        ("box:443", "https://box", True),
        ("192.168.1.5:8000", None, True),
        (None, None, True),
        ("192.168.1.5:8000", "http://evil.example", False),
        ("192.168.1.5:8000", "http://192.168.1.5", False),
        ("192.168.1.5:8000", "http://192.168.1.5:3000", False),
        ("192.168.1.5:8000", "http://evil.example/192.168.1.5:8000", False),
        ("192.168.1.5:8000", "null", False),
        ("box:443", "http://box", False),
        (None, "http://evil.example", False),
    ],
)
def test_without_keys_only_the_services_own_page_may_change_something(
    play: Play, host: str | None, origin: str | None, taken: bool
) -> None:
    """Over plain HTTP browsers send no `Sec-Fetch-Site`, and a form needs nobody's leave."""

    async def scene(service: World) -> None:
        headers = {name: value for name, value in (("host", host), ("origin", origin)) if value is not None}
        for method, status in (("GET", 404), ("POST", 405), ("DELETE", 404)):
            request = service.http.build_request(method, "/v1/videos/nobodys", headers=headers)
            if host is None:
                del request.headers["host"]
            response = await service.http.send(request)
            assert response.status_code == (status if taken or method == "GET" else 403), method

    play(scene, api_keys=())


def test_with_keys_neither_name_nor_page_matters(play: Play) -> None:
    async def scene(service: World) -> None:
        headers = {**bearer(KEY), "host": "occam.example", "origin": "https://elsewhere.example"}
        assert (await service.http.get("/v1/models", headers=headers)).status_code == 200
        assert (await service.http.post("/v1/videos/nobodys", headers=headers)).status_code == 405

    play(scene)


def test_a_refusal_is_counted_and_has_an_id(play: Play) -> None:
    def rejected() -> float:
        return REGISTRY.get_sample_value("occam_rejections_total", {"reason": "invalid_api_key"}) or 0.0

    async def scene(service: World) -> None:
        before = rejected()
        response = await service.http.get("/v1/models", headers={"x-request-id": "r7"})
        assert response.json()["error"]["request_id"] == "r7"
        assert rejected() == before + 1

    play(scene)


def test_openais_client_knows_a_wrong_key(play: Play) -> None:
    async def scene(service: World) -> None:
        def client(key: str) -> openai.AsyncOpenAI:
            return openai.AsyncOpenAI(api_key=key, base_url="http://occam/v1", http_client=service.http, max_retries=0)

        assert [model.id async for model in client(KEY).models.list()] == [MODEL]
        with pytest.raises(openai.AuthenticationError) as refused:
            await client("sk-wrong").models.list()
        assert refused.value.code == "invalid_api_key"

    play(scene)


def test_a_key_reaches_no_log_error_metric_or_store(
    play: Play, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(service: World) -> None:
        service.http.headers.update(bearer(KEY))
        video = await service.post_video()
        path = f"/v1/videos/{video}/queries"
        texts = [json.dumps(await service.query(video, "what?"))]
        for headers in ({}, bearer("occam-wrong")):
            for asked in ({"question": "crash?"}, {"question": "what?", "stream": True}, {"no": KEYS[0]}):
                response = await service.http.post(path, json=asked, headers=headers)
                texts.append(response.text + repr(response.headers))
        texts.append((await service.http.get("/v1/nothing")).text)
        await service.worker.target._prefixes._tiers.drain()
        store = redis_server.client
        read = {b"string": store.get, b"hash": store.hgetall, b"set": store.smembers}
        texts += [repr((name, read[store.type(name)](name))) for name in store.scan_iter()]
        texts.append(generate_latest(REGISTRY).decode())
        texts.append(caplog.text)
        assert "failed" in caplog.text
        for secret in (KEY, "occam-wrong"):
            assert not [text for text in texts if secret in text]

    with caplog.at_level(logging.DEBUG):
        play(scene)


def test_nothing_behind_the_door_sees_a_key() -> None:
    seen: list[Any] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    async def scene() -> None:
        for keys in (Keys(KEYS), Keys(())):
            headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"x-request-id", b"r1")]
            scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers}
            await Doorkeeper(behind, keys, OwnSite("127.0.0.1"))(scope, None, None)  # type: ignore[arg-type]

    asyncio.run(scene())
    assert len(seen) == 2
    assert KEY not in repr(seen)


def test_the_command_prints_a_key_and_its_entry(capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for _ in range(2):
        assert main(["key", "acme"]) == 0
        key, entry = (line.split()[-1] for line in capsys.readouterr().out.splitlines())
        assert re.fullmatch(r"occam-[A-Za-z0-9_-]{43}", key), "256 bits"
        assert Keys([entry]).tenant(key.encode()) == "acme"
        printed.append(key)
    assert printed[0] != printed[1]
    assert main(["key", "a:b"]) == 1
    assert "letters" in capsys.readouterr().err


def test_keys_are_known_by_their_hashes() -> None:
    keys = Keys(KEYS)
    assert [keys.tenant(each.encode()) for each in (KEY, SECOND, OTHER)] == ["acme", "acme", "other"]
    for wrong in (b"", KEY[:-1].encode(), KEYS[0].encode(), KEYS[0].split(":")[1].encode(), b"\xff"):
        assert keys.tenant(wrong) is None


@pytest.mark.parametrize(
    "entry",
    [
        KEY,
        f"acme:{KEY}",
        KEYS[0].upper(),
        KEYS[0] + "0",
        KEYS[0] + "\n",
        "acme:",
        KEYS[0].removeprefix("acme"),
        "a b:" + "0" * 64,
        "acme:" + "g" * 64,
    ],
    ids=itertools.count(),  # keys are random, and every process must collect the same names
)
def test_an_entry_that_is_none_is_refused_and_not_repeated(entry: str) -> None:
    with pytest.raises(InvalidInput, match=r"Entry 2 of OCCAM_API_KEYS must have the form tenant:hash") as refused:
        Settings(api_keys=(KEYS[0], entry))
    assert entry.strip() not in refused.value.message


def test_one_key_has_one_tenant() -> None:
    with pytest.raises(InvalidInput, match="one key twice") as refused:
        Settings(api_keys=(KEYS[0], "other:" + KEYS[0].split(":")[1]))
    assert KEYS[0].split(":")[1] not in refused.value.message


def test_keys_come_from_the_environment_or_a_list(tmp_path: Path) -> None:
    assert Settings.load({"OCCAM_API_KEYS": f" {KEYS[0]}, {KEYS[2]}"}).api_keys == (KEYS[0], KEYS[2])
    file = tmp_path / "occam.yaml"
    file.write_text(f"api_keys:\n  - {KEYS[0]}\n  - {KEYS[1]}\n")
    settings = Settings.load({"OCCAM_CONFIG": str(file)})
    assert settings.api_keys == KEYS[:2]
    assert KEYS[0].split(":")[1] not in repr(settings)
    for broken in ("api_keys: 5", "api_keys:", f"api_keys:\n  acme: {KEY}"):
        file.write_text(broken)
        with pytest.raises(InvalidInput, match="api_keys must be a list") as refused:
            Settings.load({"OCCAM_CONFIG": str(file)})
        assert KEY not in refused.value.message


@pytest.mark.parametrize(
    ("host", "keys", "warns"),
    [
        ("127.0.0.1", (), False),
        ("127.1.2.3", (), False),
        ("::1", (), False),
        ("localhost", (), False),
        ("0.0.0.0", (), True),
        ("::", (), True),
        ("10.0.0.1", (), True),
        ("example.org", (), True),
        ("0.0.0.0", KEYS, False),
    ],
)
def test_who_serves_a_network_without_keys_is_told(
    caplog: pytest.LogCaptureFixture, host: str, keys: tuple[str, ...], warns: bool
) -> None:
    preflight.warn_if_open(Settings(api_keys=keys), host)
    assert ("OCCAM_API_KEYS" in caplog.text) is warns
