"""Overlays: what was kept is clear and what was not is dimmed, at the geometry that the model saw."""

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from occam.engine import Engine
from occam.types import Evidence, FrameEvidence, Framing
from services import kept_evidence
from services.kept_evidence import pack, unpack
from services.media import LocalMedia
from services.overlay import LONGEST, Patches, draw
from services.state import State
from tests.redis_server import RedisServer
from tests.services.world import Play, World

RNG = np.random.default_rng(0)
KEPT = np.array([[True, False, False], [False, False, True]])


@pytest.fixture
def usual() -> dict[str, Any]:
    return {"kv_url": "memory://"}


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png), formats=["PNG"])).astype(int)


def noise(height: int, width: int) -> np.ndarray:
    return RNG.integers(60, 255, (height, width, 3), dtype=np.uint8)


def grid(kept: np.ndarray, levels: np.ndarray | None = None) -> Patches:
    return Patches(kept=kept, levels=np.zeros(kept.shape, np.uint8) if levels is None else levels)


async def fetch(service: World, path: str) -> np.ndarray:
    response = await service.http.get(path)
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png"), response.text
    return pixels(response.content)


def check(drawn: np.ndarray, frame: np.ndarray, mask: np.ndarray, box: tuple[float, float, float, float]) -> None:
    """In the middle of every patch the frame is as it was where the mask is, and dark where it is not."""
    rows, columns = mask.shape
    left, top, right, bottom = box
    for row in range(rows):
        for column in range(columns):
            y = int(top + (row + 0.5) * (bottom - top) / rows)
            x = int(left + (column + 0.5) * (right - left) / columns)
            if not (0 <= y < frame.shape[0] and 0 <= x < frame.shape[1]):
                continue
            if mask[row, column]:
                assert np.abs(drawn[y, x] - frame[y, x]).max() <= 1
            else:
                assert drawn[y, x].max() <= 0.35 * frame[y, x].max()


@pytest.mark.parametrize(
    ("height", "width", "framing"),
    [
        (60, 90, Framing()),
        (60, 90, Framing(size=40, crop=40)),
        (90, 60, Framing(size=40, crop=30)),
        (60, 90, Framing(size=40, crop=40, pad=True)),
        (90, 60, Framing(size=40, crop=40, pad=True)),
    ],
)
def test_kept_patches_are_clear_and_all_else_is_dimmed(height: int, width: int, framing: Framing) -> None:
    frame = noise(height, width)
    drawn = pixels(draw(frame, [grid(KEPT)], framing, "kept"))
    assert drawn.shape == frame.shape
    check(drawn, frame, KEPT, framing.box(height, width))


def test_what_the_model_never_saw_is_hatched_and_darker_still() -> None:
    frame = np.full((40, 120, 3), 200, np.uint8)
    drawn = pixels(draw(frame, [grid(np.ones((2, 2), bool))], Framing(size=40, crop=40), "kept"))[:, :, 0]
    assert (drawn[2:-2, 42:78] == 200).all()
    for border in (drawn[:, :38], drawn[:, 82:]):
        assert set(np.unique(border)) == {24, 90}, "its own grey, and the strokes"
    assert drawn[20, 40] == 235, "the edge of what it saw"


def test_views_of_one_frame_add_up() -> None:
    frame = noise(60, 90)
    drawn = pixels(draw(frame, [grid(KEPT), grid(~KEPT)], Framing(), "kept"))
    assert (drawn == frame).all()


def test_a_large_frame_is_made_smaller() -> None:
    frame = np.full((400, 2 * LONGEST, 3), 180, np.uint8)
    drawn = pixels(draw(frame, [grid(KEPT)], Framing(size=40, crop=40), "kept"))
    assert drawn.shape == (200, LONGEST, 3)
    assert (drawn[5:95, LONGEST // 2 - 95 : LONGEST // 2 - 40] == 180).all()


def test_scores_are_brighter_the_higher_they_are() -> None:
    frame = np.full((60, 90, 3), 128, np.uint8)
    levels = np.array([[0, 1, 60], [130, 200, 255]], np.uint8)
    drawn = pixels(draw(frame, [grid(KEPT, levels)], Framing(), "scores"))
    means = [drawn[15 + 30 * row, 15 + 30 * column].mean() for row in range(2) for column in range(3)]
    assert means == sorted(means)
    assert len(set(means)) == 6


def evidence(kept: np.ndarray, scores: np.ndarray, threshold: float = 0.5, index: int = 3) -> Evidence:
    frame = FrameEvidence(
        medium=1, index=index, pts_s=0.0, of=kept.size, grid=kept.shape, stage1=kept, stage2=kept,
        scores=scores.astype(np.float32),
    )  # fmt: skip
    return Evidence(threshold=threshold, frames=(frame,))


def test_what_is_kept_is_small_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.array([[np.nan, 0, 0.25], [0.5, 1.0, 9.0]])
    raw = pack(evidence(KEPT, scores))
    assert raw is not None
    (patches,) = unpack(raw, 1, 3)
    assert (patches.kept == KEPT).all()
    assert patches.levels.tolist() == [[0, 1, 64], [128, 255, 255]]
    assert unpack(raw, 0, 3) == unpack(raw, 1, 4) == []
    (highest,) = unpack(pack(evidence(KEPT, scores, float("nan"))) or b"", 1, 3)
    assert highest.levels[1].tolist() == [15, 29, 255], "without a threshold the highest score is the measure"
    (none,) = unpack(pack(evidence(KEPT, np.full((2, 3), np.nan), float("nan"))) or b"", 1, 3)
    assert not none.levels.any()

    side = np.ones((64, 64), bool)
    large = pack(evidence(side, np.ones(side.shape)))
    assert large is not None
    assert len(large) < 1.6 * side.size
    monkeypatch.setattr(kept_evidence, "MAX_PATCHES", side.size - 1)
    assert pack(evidence(side, np.ones(side.shape))) is None
    assert pack(Evidence(threshold=0.5, frames=())) is None


@pytest.mark.parametrize("change", [b"", b"{", (b'"rows":2', b'"rows":3'), (b'"rows":2', b'"rows":-2')])
def test_what_is_torn_shows_nothing(change: bytes | tuple[bytes, bytes]) -> None:
    raw = pack(evidence(KEPT, np.ones(KEPT.shape))) or b""
    assert len(unpack(raw, 1, 3)) == 1
    assert unpack(raw.replace(*change) if isinstance(change, tuple) else change, 1, 3) == []


def test_answers_say_where_their_overlays_are(play: Play, own_redis: RedisServer) -> None:
    async def scene(service: World) -> None:
        video = await service.post_video("fake://clip?frames=200")
        first = await service.query(video, "what?", evidence=True, start_s=100)
        frame = first["evidence"]["frames"][1]
        session = first["session_id"]
        assert frame["overlay"] == f"/v1/sessions/{session}/turns/0/frames/{frame['index']}.png"
        drawn = await fetch(service, frame["overlay"])
        shade = drawn[0, 0, 0]
        assert (drawn[:4, :4] == shade).all(), "the one patch that the fake keeps"
        assert drawn[:4, 4:].max() <= 0.35 * shade
        scores = await fetch(service, frame["overlay"] + "?view=scores")
        assert (scores != drawn).any()

        second = await service.query(video, "and?", session_id=session)
        assert second["evidence"] is None
        third = await service.query(video, "and then?", session_id=session, evidence=True)
        assert "/turns/2/frames/" in third["evidence"]["frames"][0]["overlay"]
        await fetch(service, third["evidence"]["frames"][0]["overlay"])
        base = f"/v1/sessions/{session}/turns"
        index = frame["index"]
        for path in (
            f"{base}/1/frames/{index}.png",
            f"{base}/9/frames/{index}.png",
            f"{base}/0/frames/{index + 1000}.png",
            f"{base}/0/frames/{index}.png?medium=1",
            f"/v1/sessions/session-other/turns/0/frames/{index}.png",
        ):
            response = await service.http.get(path)
            assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
        for path in (f"{base}/0/frames/{index}.png?view=x", f"{base}/-1/frames/1.png", f"{base}/0/frames/x.png"):
            response = await service.http.get(path)
            assert (response.status_code, response.json()["error"]["code"]) == (400, "malformed")

        name = f"evidence:{session}"
        assert 0 < own_redis.client.ttl(name) <= own_redis.client.ttl(f"session:{session}")
        for _ in range(kept_evidence.KEPT_TURNS - 1):
            await service.query(video, "more?", session_id=session, evidence=True)
        assert own_redis.client.hlen(name) == kept_evidence.KEPT_TURNS
        assert (await service.http.get(frame["overlay"])).status_code == 404
        await service.http.delete(f"/v1/videos/{video}")
        assert (await service.http.get(third["evidence"]["frames"][0]["overlay"])).status_code == 404

    play(scene, state_url=own_redis.url)


def write_noise(path: Path) -> np.ndarray:
    """A clip of one noise; its frame as it is decoded."""
    frame = np.kron(noise(12, 24), np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 192, 96, "yuv420p"
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")


@pytest.mark.parametrize("model", ["tiny-video-llava", "tiny-qwen3-vl"])
def test_a_clip_is_drawn_as_the_model_saw_it(model: str, play: Play, tmp_path: Path) -> None:
    """The first sees a square in the middle of the frame, the second all of it."""
    frame = write_noise(tmp_path / "clip.mp4")

    async def scene(service: World) -> None:
        posted = (await service.http.post("/v1/videos", json={"url": str(tmp_path / "clip.mp4")})).json()
        answer = await service.query(posted["id"], "what color is the star", evidence=True, max_tokens=1)
        shown = next(each for each in answer["evidence"]["frames"] if 0 < each["kept"] < each["of"])
        drawn = await fetch(service, shown["overlay"])
        box = (48.0, 0.0, 144.0, 96.0) if model == "tiny-video-llava" else (0.0, 0.0, 192.0, 96.0)
        check(drawn, frame, np.array(shown["mask"]), box)
        if model == "tiny-video-llava":
            assert set(np.unique(drawn[:, :46])) <= {*range(32), 90}

    play(scene, models=(model,), load=Engine.load, media=LocalMedia, file_roots=(str(tmp_path),))


def test_images_of_a_conversation_have_overlays_of_their_own(play: Play) -> None:
    stills = [np.kron(noise(4, 8), np.ones((32, 32, 1), np.uint8)) for _ in range(2)]

    def part(frame: np.ndarray) -> dict[str, Any]:
        png = io.BytesIO()
        Image.fromarray(frame).save(png, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    async def scene(service: World) -> None:
        content = [*map(part, stills), {"type": "text", "text": "what?"}]
        body = {"model": "tiny-qwen3-vl", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
        response = await service.http.post("/v1/chat/completions", json={**body, "occam": {"evidence": True}})
        frames = response.json()["occam"]["evidence"]["frames"]
        assert [frame["medium"] for frame in frames] == [0, 1]
        assert frames[1]["overlay"] == f"{frames[0]['overlay']}?medium=1"
        for frame, still in zip(frames, stills, strict=True):
            check(await fetch(service, frame["overlay"]), still, np.array(frame["mask"]), (0.0, 0.0, 256.0, 128.0))

    play(scene, models=("tiny-qwen3-vl",), load=Engine.load, media=LocalMedia)


def test_a_session_that_is_forgotten_in_the_middle_of_a_turn_leaves_no_evidence(redis_server: RedisServer) -> None:
    async def scene() -> None:
        state = State(redis_server.url, ttl_s=60, first_ttl_s=60, turn_s=5, salt=str)
        for followed_up in (False, True):
            await state.save_evidence("session-gone", 1, b"what was kept", followed_up)
        await state._redis.aclose()

    asyncio.run(scene())
    assert redis_server.client.keys() == []
