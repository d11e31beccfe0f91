"""Estimates: what is said before a question runs, beside what it then costs."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import REGISTRY

from occam.engine import Engine
from occam.engine.plan import Plan
from occam.kv.break_even import BreakEven
from occam.stats import VisualTokenCounts
from services.media import LocalMedia
from services.messages import PruningChoice
from services.recent import Recent
from tests.parity.checkpoint_llava import write_llava, write_llava_next
from tests.services.test_media import write_clip
from tests.services.world import MODEL, Play, World


async def estimate(service: World, **body: Any) -> dict[str, Any]:
    response = await service.http.post("/v1/estimate", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def decoded() -> float:
    return REGISTRY.get_sample_value("occam_frames_decoded_total", {"backend": "fake"}) or 0.0


def test_an_estimate_says_what_an_answer_then_costs(play: Play) -> None:
    async def scene(service: World) -> None:
        before = decoded()
        options = {"question": "what is it?", "max_frames": 6}
        first = await estimate(service, url="fake://clip", **options)
        assert decoded() == before, "nothing is decoded"
        assert (first["model"], first["frames"], first["basis"], first["requests"]) == (MODEL, 6, "default", None)
        assert first["visual_tokens"] == {"encoded": 24, "stage1": None, "stage2": None}
        assert (first["cached"], first["tokens_now"]) == (False, 24)
        assert set(first["seconds"]) == {"fetch", "decode", "encode", "prefill", "total"}
        assert first["seconds"]["fetch"] == pytest.approx(0.25)
        assert first["seconds"]["total"] > first["seconds"]["fetch"]

        answer = await service.query(await service.post_video("fake://clip"), **options)
        assert answer["usage"]["visual_tokens"]["encoded"] == first["visual_tokens"]["encoded"]

        again = await estimate(service, url="fake://clip", **options)
        assert (again["cached"], again["tokens_now"], again["basis"]) == (True, 0, "measured")
        assert again["visual_tokens"] == answer["usage"]["visual_tokens"], "by the average of one answer"
        assert again["prompt_tokens"] == answer["usage"]["prompt_tokens"]
        assert again["kv_bytes"] < first["kv_bytes"]
        assert again["seconds"]["decode"] == again["seconds"]["encode"] == again["seconds"]["fetch"] == 0
        other = await estimate(service, url="fake://clip", strategy="none", **options)
        assert (other["cached"], other["visual_tokens"]["stage1"]) == (False, None)

    play(scene)


def test_an_estimate_of_a_follow_up_counts_the_turns_before(play: Play) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video("fake://clip")
        first = await service.query(video, "what?")
        asked = {"question": "and then?", "session_id": first["session_id"]}
        said = await estimate(service, video_id=video, **asked)
        second = await service.query(video, **asked)
        assert said["prompt_tokens"] == second["usage"]["prompt_tokens"]
        assert said["cached"]

    play(scene)


@pytest.mark.parametrize("follow_ups", [False, True])
def test_an_estimate_of_a_job_is_the_sum_of_its_answers(follow_ups: bool, play: Play) -> None:
    async def scene(service: World) -> None:
        videos = [{"url": "fake://one"}, {"id": await service.post_video("fake://two?frames=4")}]
        job = {"videos": videos, "questions": ["what?", "who is it?", "why?"], "follow_ups": follow_ups}
        said = await estimate(service, **job)
        assert (said["requests"], said["frames"], said["cached"]) == (6, 12, False)
        assert said["visual_tokens"]["encoded"] == 3 * (32 + 16)
        assert said["tokens_now"] == 32, "the posted one is encoded"
        posted = (await service.http.post("/v1/jobs", json=job)).json()["id"]
        while (await service.http.get(f"/v1/jobs/{posted}")).json()["done"] < 6:
            await asyncio.sleep(0.01)
        lines = (await service.http.get(f"/v1/jobs/{posted}/results")).text.splitlines()
        assert len(lines) == 6
        after = await estimate(service, **job)
        assert (after["cached"], after["tokens_now"], after["basis"]) == (True, 0, "measured")
        assert after["visual_tokens"] == {"encoded": 144, "stage1": 72, "stage2": 36}
        mixed = {"videos": videos[:1], "questions": ["a", {"question": "b", "strategy": "none"}]}
        assert (await estimate(service, **mixed))["tokens_now"] == 32, "a state for each pruning"

    play(scene)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"question": "what?"}, 400),
        ({"question": "what?", "url": "fake://a", "video_id": "video-1"}, 400),
        ({"question": "what?", "video_id": "video-1"}, 404),
        ({"question": "what?", "url": "fake://missing"}, 422),
        ({"question": "what?", "url": "fake://a", "model": "none"}, 404),
        ({"question": "what?", "url": "fake://a", "session_id": "session-1"}, 404),
        ({"videos": [{"url": "fake://a"}, {"url": "fake://missing"}], "questions": ["what?"]}, 422),
        ({"videos": [{"url": "fake://a"}] * 3, "questions": ["what?"] * 4000}, 422),
        ({"videos": [], "questions": ["what?"]}, 400),
    ],
)
def test_what_could_not_be_answered_is_not_estimated(body: dict[str, Any], status: int, play: Play) -> None:
    async def scene(service: World) -> None:
        response = await service.http.post("/v1/estimate", json=body)
        assert response.status_code == status, response.text

    play(scene)


@pytest.mark.parametrize(
    ("video", "model", "param"),
    [
        ({"url": "fake://missing"}, None, "videos.1"),
        ({"id": "video-1"}, None, "videos.1"),
        ({"url": "fake://a"}, "none", "model"),
    ],
)
def test_an_estimate_of_a_job_names_what_is_at_fault(
    video: dict[str, str], model: str | None, param: str, play: Play
) -> None:
    async def scene(service: World) -> None:
        body = {"videos": [{"url": "fake://a"}, video], "questions": ["what?"]} | ({"model": model} if model else {})
        response = await service.http.post("/v1/estimate", json=body)
        assert response.json()["error"]["param"] == param, response.text

    play(scene)


def test_an_image_is_estimated_for_a_model_that_takes_it(play: Play) -> None:
    async def scene(service: World) -> None:
        said = await estimate(service, url="fake://clip", question="what?", model="fake-both")
        assert (said["model"], said["frames"]) == ("fake-both", 8)
        refused = await service.http.post(
            "/v1/estimate", json={"url": "fake://clip", "question": "?", "model": "fake-images"}
        )
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "model")

    play(scene, models=("fake-images", "fake-both"))


def test_the_estimate_of_every_family_is_what_it_encodes(tmp_path: Path, play: Play) -> None:
    """The embedded models and LLaVA's, over real videos and images."""
    for write in (write_llava, write_llava_next):
        (tmp_path / write.__name__).mkdir()
        write(tmp_path / write.__name__)
    models = ("tiny-video-llava", "tiny-qwen3-vl", str(tmp_path / "write_llava"), str(tmp_path / "write_llava_next"))
    clip, still = tmp_path / "clip.mp4", tmp_path / "still.png"
    write_clip(clip, 90)
    Image.fromarray(np.full((90, 210, 3), 70, np.uint8)).save(still)
    cells = [(models[0], clip, "video"), (models[1], clip, "video"), *((model, still, "image") for model in models[1:])]

    async def scene(service: World) -> None:
        for model, path, kind in cells:
            said = await estimate(service, model=model, url=str(path), question="what", max_tokens=2)
            part = {"type": f"{kind}_url", f"{kind}_url": {"url": str(path)}}
            message = {"role": "user", "content": [part, {"type": "text", "text": "what"}]}
            chat = {"model": model, "messages": [message], "max_tokens": 2}
            answer = await service.http.post("/v1/chat/completions", json=chat)
            assert answer.status_code == 200, answer.text
            usage = answer.json()["usage"]
            assert said["visual_tokens"]["encoded"] == usage["visual_tokens"]["encoded"], (model, kind)
            after = await estimate(service, model=model, url=str(path), question="what", max_tokens=2)
            assert after["cached"]
            assert after["prompt_tokens"] == usage["prompt_tokens"], (model, kind)

    play(scene, media=LocalMedia, load=Engine.load, models=models, file_roots=(str(tmp_path),), threads=1)


def test_averages_are_of_what_was_seen_last_and_bounded() -> None:

    recent = Recent(BreakEven())
    plan = Plan(encoded=100, beside=5, turns=(3,), token_nbytes=10)
    choice = PruningChoice(strategy="occam", options={"lambda1": 1.0})

    def said(choice: PruningChoice = choice) -> tuple[int | None, int | None]:
        forecast = recent.forecast(plan, choice, frames=4, past=0, cached=False)
        return forecast.stage1, forecast.stage2

    assert said() == (None, None)
    recent.kept(choice, VisualTokenCounts(encoded=10, stage1=5, stage2=1))
    recent.kept(choice, VisualTokenCounts(encoded=10, stage1=7, stage2=3))
    assert said() == (60, 20)
    assert said(PruningChoice(strategy="occam", options={"lambda1": 2.0})) == (None, None)
    for _ in range(64):
        recent.kept(choice, VisualTokenCounts(encoded=10, stage1=2, stage2=1))
    assert said() == (20, 10), "the last 64"
    for number in range(64):
        other = PruningChoice(strategy="random", options={"budget": float(number)})
        recent.kept(other, VisualTokenCounts(encoded=10, stage1=2, stage2=1))
    assert said() == (None, None), "of the 64 prunings that were asked for last"
