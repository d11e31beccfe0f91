"""`make demo`: a clip that no training has seen, two questions over REST, and the books checked at the end."""

import argparse
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from pipelines.evaluation.codec import write_mp4
from pipelines.evaluation.questions import Question, draw_questions
from pipelines.evaluation.renderer import draw_scene, render
from services.launch import running
from services.settings import Settings

FIRST_TEST_SEED = 1_000_000
QUESTIONS = 2
STAGES = ("encoded", "stage1", "stage2")


def main() -> int:
    """Run the demo; 0 iff the metrics agree with the answers."""
    parser = argparse.ArgumentParser(prog="python -m services.demo", description=main.__doc__)
    parser.add_argument("--seed", type=int, help=f"clip and questions, at least {FIRST_TEST_SEED} (random)")
    seed = parser.parse_args().seed or FIRST_TEST_SEED + secrets.randbelow(FIRST_TEST_SEED)
    print(f"seed {seed} (again: make demo ARGS='--seed {seed}')", flush=True)
    with TemporaryDirectory(prefix="occam-demo-") as folder:
        questions = _write_clip(Path(folder, "clip.mp4"), seed)
        with _file_server(Path(folder)) as files:
            settings = replace(Settings.load(), port=_free_port(), allow_private_hosts=(files,))
            print("starting the service", flush=True)
            with running(settings), httpx.Client(base_url=f"http://127.0.0.1:{settings.port}", timeout=120) as http:
                answers = _converse(http, f"http://{files}/clip.mp4", questions)
                agrees = _metrics_agree(http, answers)
    return 0 if agrees else 1


def _write_clip(path: Path, seed: int) -> list[Question]:
    """Render the seed's clip into an H.264 file; the questions drawn for it."""
    scene = draw_scene(seed)
    write_mp4(path, render(scene))
    return draw_questions(scene, np.random.default_rng(seed), QUESTIONS)


def _converse(http: httpx.Client, url: str, questions: list[Question]) -> list[dict[str, Any]]:
    """Post the clip and ask; every question but the first follows up on those before."""
    video = _post(http, "/v1/videos", {"url": url})
    print(f"POST /v1/videos -> {video['frames']} frames, {video['duration_s']:.1f} s, sha256 {video['digest'][:12]}")
    answers: list[dict[str, Any]] = []
    for question in questions:
        body = {"question": question.text}
        if answers:
            body["session_id"] = answers[-1]["session_id"]
        answer = _post(http, f"/v1/videos/{video['id']}/queries", body)
        answers.append(answer)
        _show(question, answer)
    return answers


def _show(question: Question, answer: dict[str, Any]) -> None:
    tokens = answer["usage"]["visual_tokens"]
    right = "right" if answer["answer"].strip().lower() == question.answer else "wrong"
    print(f"\nquestion  {question.text}")
    print(f"answer    {answer['answer']}   (truth: {question.answer}, {right})")
    print(
        f"tokens    {tokens['encoded']} visual encoded, {tokens['stage1']} after stage I, {tokens['stage2']} after II"
    )
    print(f"seconds   {answer['timings']['total_s']:.2f}, cache tier: {answer['occam']['cache']}", flush=True)


def _metrics_agree(http: httpx.Client, answers: list[dict[str, Any]]) -> bool:
    """Whether `/metrics` counts exactly the visual tokens that the answers say they cost."""
    counted = dict.fromkeys(STAGES, 0.0)
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "occam_visual_tokens_total":
                counted[sample.labels["stage"]] += sample.value
    spent = {stage: sum(answer["usage"]["visual_tokens"][stage] for answer in answers) for stage in STAGES}
    agrees = counted == spent
    print(f"\n/metrics  {'agrees with' if agrees else 'DISAGREES with'} the answers: {counted}, usage {spent}")
    return agrees


def _post(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = http.post(path, json=body)
    if response.is_error:
        raise SystemExit(f"POST {path}: {response.status_code} {response.text}")
    answer: dict[str, Any] = response.json()
    return answer


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of requests: the terminal is the demo's."""


@contextmanager
def _file_server(folder: Path) -> Iterator[str]:
    """Serve the folder's files on this machine; `host:port`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
