"""Three times the load that the service can take: what is admitted is answered, the rest is told when to come back.

`python -m tests.soak.overload` does it to the embedded model with a real clip for a minute. Clients ask about frames
that nobody asked for before, at the pace of a clock, whatever becomes of the questions before.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np

from pipelines.evaluation.codec import write_mp4
from services.launch import running
from services.settings import Settings
from tests.soak.cancelled import chat
from tests.soak.live import held_bytes, processes

MODEL = "tiny-video-llava"
FACTOR = 3.0
"""Requests a second, over those that the service was seen to answer."""
CLIENTS = 16
"""That ask one question after the other while it is measured how many a second are answered."""
GROWTH = 0.1
"""The bar: what the service's processes may hold more afterwards than before."""
SETTLE_S = 5.0
CROWD_S = 30.0
"""Of overload before the one that is measured."""

Body = Callable[[int], dict[str, Any]]


@dataclass
class Load:
    """What became of the requests: `answered`, `refused`, or whatever else it was."""

    seconds: float
    outcomes: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    retry_after_s: list[int] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether each request was answered or refused as it should be, and some were."""
        return set(self.outcomes) == {"answered", "refused"}

    async def ask(self, http: httpx.AsyncClient, body: dict[str, Any]) -> None:
        """One question, and what came of it."""
        begun = time.monotonic()
        try:
            response = await http.post("/v1/chat/completions", json=body)
        except httpx.HTTPError as error:
            self.outcomes[type(error).__name__] += 1
            return
        if response.status_code == 200:
            self.outcomes[_end_of(response, body)] += 1
            self.waits.append(time.monotonic() - begun)
        elif response.status_code in (429, 503) and response.headers.get("Retry-After", "").isdigit():
            self.outcomes["refused"] += 1
            self.retry_after_s.append(int(response.headers["Retry-After"]))
        else:
            self.outcomes[f"{response.status_code} {response.text[:200]}"] += 1

    def __str__(self) -> str:
        waits = sorted(self.waits) or [float("nan")]
        return (
            f"{self.seconds:g} s: {dict(self.outcomes)}; answers after {waits[len(waits) // 2]:.2f} s (p50), "
            f"{waits[-1]:.2f} s (longest); Retry-After {min(self.retry_after_s, default=0)} to "
            f"{max(self.retry_after_s, default=0)} s"
        )


def _end_of(response: httpx.Response, body: dict[str, Any]) -> str:
    """`answered` where an answer came to its end, else what ended it."""
    if body.get("stream"):
        *_, content, done = [line[6:] for line in response.text.split("\n\n") if line.startswith("data: ")]
        if done != "[DONE]":
            return "a stream without its end"
        last = json.loads(content)
    else:
        last = response.json()
    if "error" in last:
        return f"{last['error']['code']} in a stream"
    return "answered" if last["choices"][0]["finish_reason"] else "an answer without its end"


async def capacity(base_url: str, body: Body, seconds: float, clients: int = CLIENTS) -> float:
    """Answers a second to so many clients of which each waits for its own; questions count down from -1."""
    load, ends, number = Load(seconds), time.monotonic() + seconds, 0

    async def client() -> None:
        nonlocal number
        while time.monotonic() < ends:
            number -= 1
            await load.ask(http, body(number))

    async with _client(base_url) as http:
        await asyncio.gather(*(client() for _ in range(clients)))
    assert set(load.outcomes) == {"answered"}, load
    return load.outcomes["answered"] / seconds


async def overload(base_url: str, body: Body, seconds: float, rate: float) -> Load:
    """`rate` questions a second for so long; returns when the last of them has ended."""
    load = Load(seconds)
    async with _client(base_url) as http, asyncio.TaskGroup() as asked:
        begun = time.monotonic()
        for number in range(round(rate * seconds)):
            await asyncio.sleep(begun + number / rate - time.monotonic())
            asked.create_task(load.ask(http, body(number)))
    return load


def _client(base_url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=base_url, timeout=180, limits=httpx.Limits(max_connections=None))


def bodies(clip: Path) -> Body:
    """Questions about frames of their own, every other one streamed."""

    def body(number: int) -> dict[str, Any]:
        options = {"start_s": (number % 4096) / 1024}
        return chat(MODEL, str(clip), "how many objects are there", stream=number % 2 == 0, occam=options)

    return body


def soak(seconds: float, port: int) -> bool:
    """Run it and print what was found; whether all bars were met."""
    with TemporaryDirectory() as folder:
        clip = Path(folder, "clip.mp4")
        write_mp4(clip, np.random.default_rng(0).integers(0, 255, (180, 240, 320, 3), dtype=np.uint8), fps=30)
        settings = Settings(
            models=(MODEL,), workers=2, threads=1, port=port, file_roots=(folder,), kv_memory_bytes=16 << 20
        )
        with running(settings):
            base_url, body = f"http://127.0.0.1:{port}", bodies(clip)
            asyncio.run(capacity(base_url, body, 5.0))  # warm
            rate = FACTOR * asyncio.run(capacity(base_url, body, 10.0))
            small = sum(map(held_bytes, processes()))
            # What a crowd takes once, the next finds there: measured is whether it grows on.
            asyncio.run(overload(base_url, lambda number: body(-1000 - number), CROWD_S, rate))
            time.sleep(SETTLE_S)
            before = processes()
            held = {pid: held_bytes(pid) for pid in before}
            load = asyncio.run(overload(base_url, body, seconds, rate))
            time.sleep(SETTLE_S)
            alive = processes() == before
            grown = {pid: held_bytes(pid) for pid in held} if alive else {}
    print(f"{rate:.1f} requests a second, {FACTOR:g} times what {CLIENTS} clients were answered; {load}")
    for pid, now in grown.items():
        print(f"{before[pid]}: {held[pid] / 2**20:.0f} MiB before, {now / 2**20:.0f} MiB after")
    print(f"all: {small / 2**20:.0f} MiB before the first crowd, of {CROWD_S:g} s")
    growth = sum(grown.values()) / sum(held.values()) - 1 if alive else float("nan")
    print(f"restarted: {'none' if alive else 'some'}; memory of all {growth:+.1%}")
    return load.good and alive and growth < GROWTH


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload (60)")
    parser.add_argument("--port", type=int, default=8765, help="of the service (8765)")
    args = parser.parse_args()
    return 0 if soak(args.seconds, args.port) else 1


if __name__ == "__main__":
    sys.exit(main())
