"""`make demo`: a clip that no training has seen, two questions to two models, and the books checked at the end.

The clip shows, and the questions name, none of the pairs of colour and shape that training left out: how the models do
on those is in their cards.

`make demo ARGS='--seed 1000000 --clips 50'` asks about fifty and prints how often a model's both answers are right. The
clips stay in `runs/demo`, to be looked at and asked again.
"""

import argparse
import secrets
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from pipelines.evaluation.accuracy import is_right, questions_about
from pipelines.evaluation.codec import write_mp4
from pipelines.evaluation.questions import Question, names_unseen_pair
from pipelines.evaluation.renderer import FIRST_TEST_SEED, SceneConfig, draw_scene, render
from services.launch import running
from services.settings import Settings

MODELS = ("tiny-video-llava", "tiny-qwen3-vl")
CLIPS = Path("runs", "demo")
QUESTIONS = 2
PATIENCE_S = 120
STAGES = ("encoded", "stage1", "stage2")


def main() -> int:
    """Run the demo; 0 iff the metrics agree with the answers."""
    parser = argparse.ArgumentParser(prog="python -m services.demo", description=main.__doc__)
    parser.add_argument("--seed", type=int, help=f"clip and questions, at least {FIRST_TEST_SEED} (random)")
    parser.add_argument("--clips", type=int, default=1, help="clips, of this seed and those after it (1)")
    options = parser.parse_args()
    first = options.seed or FIRST_TEST_SEED + secrets.randbelow(FIRST_TEST_SEED)
    if first < FIRST_TEST_SEED or options.clips < 1:
        parser.error(f"--seed must be at least {FIRST_TEST_SEED}, --clips at least 1")
    print("starting the service", flush=True)
    both_right: Counter[str] = Counter()
    answers: list[dict[str, Any]] = []
    CLIPS.mkdir(parents=True, exist_ok=True)
    with _file_server(CLIPS) as files:
        settings = replace(Settings.load(), models=MODELS, port=_free_port(), api_keys=(), allow_private_hosts=(files,))
        with running(settings), httpx.Client(base_url=f"http://127.0.0.1:{settings.port}", timeout=PATIENCE_S) as http:
            for seed in range(first, first + options.clips):
                print(f"\nseed {seed} (again: make demo ARGS='--seed {seed}')", flush=True)
                print(f"clip      {CLIPS / f'{seed}.mp4'}")
                questions = _write_clip(CLIPS / f"{seed}.mp4", seed)
                video = _upload(http, f"http://{files}/{seed}.mp4")
                for model in MODELS:
                    answered = _converse(http, video, model, questions)
                    both_right[model] += all(map(_right, questions, answered))
                    answers += answered
            agrees = _metrics_agree(http, answers)
    if options.clips > 1:
        print()
        for model in MODELS:
            print(f"both answers right, {model}: {both_right[model]} of {options.clips} clips")
    return 0 if agrees else 1


def _write_clip(path: Path, seed: int) -> list[Question]:
    """Render the seed's clip into an H.264 file; the questions drawn for it."""
    scene = draw_scene(seed, SceneConfig(unseen_pairs=False))
    write_mp4(path, render(scene))
    drawn = questions_about(scene, 3 * QUESTIONS)
    return [question for question in drawn if not names_unseen_pair(question.text)][:QUESTIONS]


def _upload(http: httpx.Client, url: str) -> str:
    """Post the clip, which the first model encodes at once; its id."""
    started = time.monotonic()
    video = _post(http, "/v1/videos", {"url": url})
    while http.get(f"/v1/videos/{video['id']}").json()["status"] == "processing":
        if time.monotonic() > started + PATIENCE_S:
            raise SystemExit(f"the clip was not encoded within {PATIENCE_S} s")
        time.sleep(0.02)
    print(
        f"video     {video['frames']} frames, {video['duration_s']:.1f} s, sha256 {video['digest'][:12]}: "
        f"fetched, decoded, encoded and cached in {time.monotonic() - started:.2f} s"
    )
    return str(video["id"])


def _converse(http: httpx.Client, video: str, model: str, questions: list[Question]) -> list[dict[str, Any]]:
    """Ask one model; every question but the first follows up on those before."""
    print(f"\nmodel     {model}")
    answers: list[dict[str, Any]] = []
    for question in questions:
        body = {"question": question.text, "model": model}
        if answers:
            body["session_id"] = answers[-1]["session_id"]
        answer = _post(http, f"/v1/videos/{video}/queries", body)
        answers.append(answer)
        _show(question, answer)
    return answers


def _show(question: Question, answer: dict[str, Any]) -> None:
    tokens = answer["usage"]["visual_tokens"]
    right = "right" if _right(question, answer) else "wrong"
    print(f"question  {question.text}")
    print(f"answer    {answer['answer']}   (truth: {question.answer}, {right})")
    kept = f"{tokens['stage1']} after stage I, {tokens['stage2']} after stage II"
    print(f"tokens    {tokens['encoded']} visual encoded, {kept}")
    print(f"seconds   {answer['timings']['total_s']:.2f}, cache tier: {answer['occam']['cache']}", flush=True)


def _right(question: Question, answer: dict[str, Any]) -> bool:
    return is_right(answer["answer"], question.answer)


def _metrics_agree(http: httpx.Client, answers: list[dict[str, Any]]) -> bool:
    """Whether `/metrics` counts exactly the visual tokens that the answers say they cost."""
    counted = dict.fromkeys(STAGES, 0.0)
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            if sample.name == "occam_visual_tokens_total":
                counted[sample.labels["stage"]] += sample.value
    spent = {stage: sum(answer["usage"]["visual_tokens"][stage] for answer in answers) for stage in STAGES}
    agrees = counted == spent
    print("\nvisual tokens by stage, all answers")
    print(f"/metrics  {', '.join(f'{stage} {count:.0f}' for stage, count in counted.items())}")
    print(f"usage     {', '.join(f'{stage} {count}' for stage, count in spent.items())}")
    print("they agree" if agrees else "THEY DISAGREE")
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
