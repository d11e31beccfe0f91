"""What the service itself adds: seconds from a client's request to its answer, less those its engine worked for it.

The running service (`occam serve`, Redis private), one client that asks one question after the other. What is left
of a follow-up is HTTP, Ray, sessions and the records kept of them; of a first question also probing and decoding,
which partly run beside the engine. Floor: a request that does nothing, through the same proxy.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np

from tests.bench.machine import described
from tests.bench.report import Report, Table
from tests.bench.subject import precision
from tests.ports import free_port

MODELS = ("tiny-video-llava",)
QUESTION, FOLLOW_UP = "what color is the star", "how many objects are there"
RATE, STEP_S = 30, 0.125
"""Frames a second of the clip; from one question's range to the next: frames that nobody has asked about."""
COLUMNS = ("", "HTTP to answer, p50, ms", "engine, p50, ms", "overhead, p50, ms", "overhead, p90, ms")

Asked = tuple[float, float]
"""Seconds of one request to its client, and of the engine for it."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of this section alone."""
    parser.add_argument("--requests", type=int, default=50, help="of each kind in service (50)")


def measure(model: str, args: argparse.Namespace) -> Report:
    """All kinds of requests in turn; the first two rounds do not count."""
    # Here, since elsewhere neither Ray nor Redis nor an encoder is needed.
    from pipelines.evaluation.codec import write_mp4
    from services.launch import running
    from services.settings import Settings

    with TemporaryDirectory(prefix="occam-service-") as folder:
        clip = Path(folder, "clip.mp4")
        frames = round(RATE * (2 + STEP_S * (args.requests + 2)))
        write_mp4(clip, np.random.default_rng(0).integers(0, 255, (frames, 240, 320, 3), dtype=np.uint8), fps=RATE)
        settings = Settings(
            models=(model,),
            device=args.device,
            dtype=args.dtype,
            quantization=args.quantization,
            threads=args.threads,
            port=free_port(),
            file_roots=(folder,),
        )
        url = f"http://{settings.host}:{settings.port}"
        with running(settings), httpx.Client(base_url=url, timeout=settings.deadline_s) as http:
            asked = rounds(http, str(clip), args.requests + 2)
    rows = tuple(_row(name, each[2:]) for name, each in asked.items())
    facts = described(args.device) | {"precision": precision(args), "requests of each": str(args.requests)}
    table = Table(title="Service overhead: HTTP to answer less engine time", columns=COLUMNS, rows=rows)
    return Report(section="service", model=model, device=args.device, facts=facts, tables=(table,))


def rounds(http: httpx.Client, clip: str, number: int, step_s: float = STEP_S) -> dict[str, list[Asked]]:
    """So many requests of each kind, by kind; step_s: from one range to the next."""
    video = http.post("/v1/videos", json={"url": clip}).raise_for_status().json()["id"]
    path = f"/v1/videos/{video}/queries"
    while http.get(f"/v1/videos/{video}").raise_for_status().json()["status"] == "processing":
        time.sleep(0.05)
    kinds: dict[str, Callable[[int], Asked]] = {
        "floor: GET /healthz": lambda _: _timed(lambda: http.get("/healthz")),
        "follow-up, its state in memory": lambda _: follow_up(),
        "first question of a video that was asked about": lambda _: ask(question=QUESTION),
        "first question of a range, nothing cached": lambda each: ask(question=QUESTION, start_s=step_s * (each + 1)),
    }

    def ask(**body: Any) -> Asked:
        return _timed(lambda: http.post(path, json=body))

    session = http.post(path, json={"question": QUESTION}).raise_for_status().json()["session_id"]

    def follow_up() -> Asked:
        nonlocal session
        asked = _timed(lambda: http.post(path, json={"question": FOLLOW_UP, "session_id": session}))
        # A new one each time, else its history and so its engine time would grow.
        session = http.post(path, json={"question": QUESTION}).raise_for_status().json()["session_id"]
        return asked

    asked: dict[str, list[Asked]] = {name: [] for name in kinds}
    for each in range(number):
        for name, kind in kinds.items():
            asked[name].append(kind(each))
    return asked


def _timed(send: Callable[[], httpx.Response]) -> Asked:
    started = time.perf_counter()
    response = send().raise_for_status()
    seconds = time.perf_counter() - started
    body = response.json()
    return seconds, body["usage"]["gpu_seconds"] if "usage" in body else 0.0


def _row(name: str, asked: list[Asked]) -> tuple[str, float, float, float, float]:
    over = [all_s - engine_s for all_s, engine_s in asked]
    medians = (statistics.median(each) for each in (*zip(*asked, strict=True), over))
    http_ms, engine_ms, over_ms = (1000 * seconds for seconds in medians)
    return name, http_ms, engine_ms, over_ms, 1000 * statistics.quantiles(over, n=10)[-1]
