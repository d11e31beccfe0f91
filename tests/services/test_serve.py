"""`occam serve` as its users run it: the real engine, real decoding, real Ray, real signals."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from pipelines.evaluation.codec import write_mp4
from tests.parity import checkpoint_qwen
from tests.parity.checkpoint import PATCHES, write_checkpoint
from tests.ports import free_port

MODEL, OTHER = "random-weights", "random-qwen"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    write_checkpoint(tmp_path / MODEL)
    checkpoint_qwen.write_checkpoint(tmp_path / OTHER)
    (tmp_path / OTHER / "occam.json").unlink()
    rng = np.random.default_rng(0)
    write_mp4(tmp_path / "clip.mp4", rng.integers(0, 255, (12, 96, 96, 3), dtype=np.uint8))
    port = free_port()
    environment = os.environ | {
        "OCCAM_MODELS": f"{tmp_path / MODEL},{tmp_path / OTHER}",
        "OCCAM_FILE_ROOTS": str(tmp_path),
        "OCCAM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "services.cli", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def test_sigterm_lets_answers_end_and_exits_zero(serve: tuple["subprocess.Popen[str]", str], tmp_path: Path) -> None:
    process, base_url = serve
    assert process.stdout is not None
    said = ""
    while "answers on" not in said:
        said += (line := process.stdout.readline())
        assert line, "the service ended at its start"
    assert "Cache: a private Redis on this machine. Sessions and videos: a private Redis" in said
    with httpx.Client(base_url=base_url, timeout=60) as http:
        assert http.get("/readyz").json()["kv"] == "a private Redis on this machine"
        video = http.post("/v1/videos", json={"url": str(tmp_path / "clip.mp4")}).json()
        assert video["frames"] == 12
        query = f"/v1/videos/{video['id']}/queries"
        first = http.post(query, json={"question": "what"}).json()
        tokens = first["usage"]["visual_tokens"]
        assert tokens["encoded"] == 8 * PATCHES >= tokens["stage1"] >= tokens["stage2"] > 0

        _ask_the_other_family(http, tmp_path)

        body = {"question": "what", "session_id": first["session_id"], "stream": True, "max_tokens": 48}
        with http.stream("POST", query, json=body) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            events = [line.removeprefix("data: ") for line in lines if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["type"] == "answer"
    assert process.wait(60) == 0


def _ask_the_other_family(http: httpx.Client, folder: Path) -> None:
    """Qwen3-VL beside Video-LLaVA: `model` picks it, it takes images too, and without calibration it prunes nothing."""
    served = {model["id"]: model for model in http.get("/v1/models").json()["data"]}
    assert [(served[name]["family"], served[name]["calibrated"]) for name in (MODEL, OTHER)] == [
        ("video_llava", True),
        ("qwen3_vl", False),
    ]
    noise = np.random.default_rng(1).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "image.png")
    parts = [{"type": "image_url", "image_url": {"url": str(folder / "image.png")}}, {"type": "text", "text": "what"}]
    chat = {"model": OTHER, "max_tokens": 4, "messages": [{"role": "user", "content": parts}]}
    answer = http.post("/v1/chat/completions", json=chat).json()
    assert answer["model"] == OTHER
    tokens = (
        answer["occam"]["visual_tokens"] if "visual_tokens" in answer["occam"] else answer["usage"]["visual_tokens"]
    )
    assert tokens["encoded"] == tokens["stage2"] > 0
    for body, status, code in (
        (chat | {"model": MODEL}, 422, "invalid_input"),
        (chat | {"occam": {"strategy": "occam"}}, 422, "not_calibrated"),
        (chat | {"occam": {"lambda2": 1.0}}, 422, "not_calibrated"),
        (chat | {"model": "absent"}, 404, "unknown_model"),
    ):
        response = http.post("/v1/chat/completions", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text
