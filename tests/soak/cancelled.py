"""Requests whose clients hang up at random moments, and how soon nobody works for them any more.

`python -m tests.soak.cancelled` does it to the embedded model with a real clip: in the fetch, while it is probed and
decoded, encoded, and in the answer. What still runs is counted by the replicas themselves and in `/proc`.
"""

import argparse
import json
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx
import numpy as np

from pipelines.evaluation.codec import write_mp4
from services.launch import running
from services.settings import Settings
from tests.soak.live import busy

MODEL = "tiny-video-llava"
AT_ONCE = 24
"""Clients at a time: so many that they wait for each other everywhere, and the queues refuse none."""
WORK = {"describe", "decode", "decodes", "answer", "sequences", "visual_tokens"}
"""All kinds of work, as `busy` ends its lines."""
WITHIN_S = 0.25
"""The bar: seconds from the last hang-up until nothing runs."""


def hang_up(base_url: str, body: dict[str, Any], after_s: float) -> None:
    """Ask, and close the connection after so many seconds, whatever came of it."""
    address = urlsplit(base_url)
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        connection.sendall(head.encode() + content)
        time.sleep(after_s)


def hang_up_all(base_url: str, model: str, bodies: Sequence[dict[str, Any]], longest_s: float) -> set[str]:
    """Every request asked and hung up on at a moment of its own within `longest_s`, `AT_ONCE` at a time.

    Gives the kinds of work that were seen meanwhile, so that it is known what was given up.
    """
    draw, seen = random.Random(0), set()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ends = [pool.submit(hang_up, base_url, body, draw.uniform(0, longest_s)) for body in bodies]
        while not all(end.done() for end in ends):
            seen |= {counted.split()[-1] for counted in busy([model])}
        for end in ends:
            end.result()
    return seen


def until_idle(model: str, patience_s: float) -> float:
    """Seconds until nothing runs; AssertionError where it goes on for too long."""
    begun = time.monotonic()
    while left := busy([model]):
        assert time.monotonic() - begun < patience_s, f"still at work after {patience_s:g} s: {left}"
    return time.monotonic() - begun


def chat(model: str, url: str, question: str, **options: Any) -> dict[str, Any]:
    """The body of a question about a video."""
    content = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": question}]
    return {"model": model, "messages": [{"role": "user", "content": content}], **options}


class Dripping(BaseHTTPRequestHandler):
    """Gives a clip's bytes for a minute, and counts whom it is giving them to."""

    served: ClassVar[set[int]] = set()

    def do_GET(self) -> None:
        self.served.add(id(self))
        try:
            self.send_response(200)
            self.end_headers()
            for _ in range(600):
                self.wfile.write(b"\x00\x00\x00\x20ftypisom" + bytes(100))
                time.sleep(0.1)
        except ConnectionError:
            pass
        finally:
            self.served.discard(id(self))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def dripping() -> Iterator[str]:
    """The address of a server that takes a minute for every file."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Dripping)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


def bodies(clip: Path, slow: str, count: int) -> Iterator[dict[str, Any]]:
    """Questions about a slow address, about frames that nobody has asked for yet, and long answers; half streamed."""
    for number in range(count):
        options: dict[str, Any] = {"stream": number % 2 == 0, "max_tokens": 512}
        if number % 3 == 0:
            yield chat(MODEL, f"http://{slow}/{number}.mp4", "what is this", **options)
        elif number % 3 == 1:
            options["occam"] = {"start_s": number / 50, "max_frames": 8}
            yield chat(MODEL, str(clip), "what is this", **options)
        else:
            yield chat(MODEL, str(clip), "how many objects are there", **options, temperature=2.0, seed=number)


def soak(requests: int, port: int) -> bool:
    """Run it and print what was found; whether the bar was met."""
    with TemporaryDirectory() as folder, dripping() as slow:
        clip = Path(folder, "clip.mp4")
        write_mp4(clip, np.random.default_rng(0).integers(0, 255, (300, 240, 320, 3), dtype=np.uint8), fps=30)
        settings = Settings(
            models=(MODEL,), workers=2, threads=1, port=port, file_roots=(folder,), allow_private_hosts=(slow,)
        )
        with running(settings):
            base_url = f"http://127.0.0.1:{port}"
            for number in range(2):  # the first is slow for reasons of its own
                begun = time.monotonic()
                whole = chat(MODEL, str(clip), "how many objects are there", occam={"start_s": number / 50})
                httpx.post(f"{base_url}/v1/chat/completions", json=whole, timeout=120).raise_for_status()
            longest_s = max(3.0, 4 * (time.monotonic() - begun))
            seen = hang_up_all(base_url, MODEL, list(bodies(clip, slow, requests)), longest_s)
            time.sleep(WITHIN_S)
            late, fetching = busy([MODEL]), len(Dripping.served)
            seconds = until_idle(MODEL, patience_s=60)
    print(f"{requests} requests hung up on within {longest_s:.1f} s, in the middle of: {', '.join(sorted(seen))}")
    print(f"after {WITHIN_S:g} s: {late or 'nothing runs'}, {fetching} fetches")
    print(f"nothing ran {WITHIN_S + seconds:.2f} s after the last hang-up at the latest")
    return not late and not fetching and seen == WORK


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.cancelled", description=__doc__)
    parser.add_argument("--requests", type=int, default=200, help="that are hung up on (200)")
    parser.add_argument("--port", type=int, default=8765, help="of the service (8765)")
    args = parser.parse_args()
    return 0 if soak(args.requests, args.port) else 1


if __name__ == "__main__":
    sys.exit(main())
