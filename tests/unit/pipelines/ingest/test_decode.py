"""Frames, against what the clips themselves say they show and against a sequential decode of the whole file."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from occam.errors import DecodeTimeout, OccamError, UnsupportedVideo, VideoTooLarge
from pipelines.ingest import decode, process, pyav_backend
from pipelines.ingest.decode import FrameStream, route
from pipelines.ingest.limits import Limits
from pipelines.ingest.local_file import LocalFile
from pipelines.ingest.probe import probe, probe_async
from pipelines.ingest.sample import Sampling, sample

X264_OPEN = {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}
B_FRAMES = {"g": "12", "bf": "3"}
# name, codec, options, pixel format, width, backend
CLIPS = {
    "b-frames.mp4": ("libx264", B_FRAMES, "yuv420p", 96, "decord"),
    "b-frames.mkv": ("libx264", B_FRAMES, "yuv420p", 96, "decord"),
    "fragmented.mov": ("libx264", B_FRAMES, "yuv420p", 96, "decord"),
    "vp9.webm": ("libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}, "yuv420p", 96, "decord"),
    "hevc.mp4": ("libx265", {"x265-params": "keyint=12:open-gop=0:log-level=none"}, "yuv420p", 96, "decord"),
    "open.mp4": ("libx264", X264_OPEN, "yuv420p", 96, "pyav"),
    "open.mkv": ("libx264", X264_OPEN, "yuv420p", 96, "pyav"),
    "open.ts": ("libx264", X264_OPEN, "yuv420p", 96, "pyav"),
    "hevc-open.mp4": (
        "libx265",
        {"x265-params": "keyint=12:min-keyint=12:open-gop=1:bframes=3:log-level=none"},
        "yuv420p",
        96,
        "pyav",
    ),
    "b-frames.ts": ("libx264", B_FRAMES, "yuv420p", 96, "pyav"),
    "mpeg2.ts": ("mpeg2video", {"g": "12", "bf": "2"}, "yuv420p", 96, "pyav"),
    "mpeg2.mpg": ("mpeg2video", {"g": "12", "bf": "2"}, "yuv420p", 96, "pyav"),
    "b-frames.avi": ("libx264", B_FRAMES, "yuv420p", 96, "pyav"),
    "mpeg4.avi": ("mpeg4", {"g": "12", "bf": "2"}, "yuv420p", 96, "pyav"),
    "b-frames.flv": ("libx264", B_FRAMES, "yuv420p", 96, "pyav"),
    "colours.gif": ("gif", {}, "rgb8", 96, "pyav"),
    "ten-bit.mp4": ("libx264", B_FRAMES, "yuv420p10le", 96, "pyav"),
    "narrow.mp4": ("libx264", B_FRAMES, "yuv420p", 24, "pyav"),
}
INDICES = [1, 2, 11, 13, 37, 58]


def whole(stream: FrameStream) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All frames, times and indices of a stream."""
    with stream:
        chunks = list(stream)
    return (
        np.concatenate([chunk.frames for chunk in chunks]),
        np.concatenate([chunk.pts_seconds for chunk in chunks]),
        np.concatenate([chunk.indices for chunk in chunks]),
    )


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_asked_for(
    name: str,
    make_clip: Callable[..., Path],
    open_stream: Callable[..., FrameStream],
    numbers: Callable[[np.ndarray], list[int]],
) -> None:
    codec, options, pix_fmt, width, backend = CLIPS[name]
    stream = open_stream(make_clip(name, codec, options, pix_fmt=pix_fmt, width=width), INDICES)
    frames, times, indices = whole(stream)
    assert numbers(frames) == indices.tolist() == INDICES
    np.testing.assert_allclose(times, np.array(INDICES) / 25, atol=0.011)  # the clocks of FLV and GIF are coarse
    assert stream.stats.backends == {backend: len(INDICES)}


def test_an_edit_list_hides_frames(
    edited_clip: Path, open_stream: Callable[..., FrameStream], numbers: Callable[[np.ndarray], list[int]]
) -> None:
    stream = open_stream(edited_clip, [0, 7, 24])
    frames, times, _ = whole(stream)
    assert numbers(frames) == [20, 27, 44]
    np.testing.assert_allclose(times, [0, 0.28, 0.96], atol=1e-9)
    assert stream.stats.backends == {"pyav": 3}


def test_a_gap_in_an_avi_is_kept(
    tmp_path: Path,
    open_stream: Callable[..., FrameStream],
    picture: Callable[[int, int, int], np.ndarray],
    numbers: Callable[[np.ndarray], list[int]],
) -> None:
    path = tmp_path / "gap.avi"
    clock = [*range(10), *range(60, 70)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25, options={"g": "4"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for pts in clock:
            frame = av.VideoFrame.from_ndarray(picture(pts, 96, 64), format="rgb24")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames, times, indices = whole(open_stream(path, [0, 9, 10, 19]))
    assert indices.tolist() == [0, 9, 10, 19]
    assert numbers(frames) == [0, 9, 60, 69]
    np.testing.assert_allclose(times, np.array([0, 9, 60, 69]) / 25, atol=1e-9)


@pytest.mark.parametrize("name", ["b-frames.mp4", "b-frames.mkv", "b-frames.ts", "open.mp4", "open.mkv", "open.ts"])
def test_seeking_saves_the_way(name: str, make_clip: Callable[..., Path], local: Callable[[Path], LocalFile]) -> None:
    codec, options, *_ = CLIPS[name]
    video = local(make_clip(name, codec, options, frames=250))
    facts = probe(video, Limits())
    stamp = int(facts.stamps[240])
    job = {"start": int(facts.stamps[0]), "reader": video.reader, "lead": decode._lead(video, facts)}
    with av.open(str(video.path)) as container:
        walk = pyav_backend._Walk(container, job)
        walked = []
        walk._frames = walk._from_key(int(facts.keys[facts.keys <= stamp][-1]))
        for at, _ in walk._frames:
            walked.append(at)
            if at >= stamp:
                break
    assert walked[-1] == stamp
    assert len(walked) < 60


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_an_image_is_a_video_of_one_frame(suffix: str, tmp_path: Path, open_stream: Callable[..., FrameStream]) -> None:
    path = tmp_path / f"red.{suffix}"
    Image.new("RGB", (40, 30), (250, 0, 0)).save(path)
    frames, times, _ = whole(open_stream(path, [0]))
    assert frames.shape == (1, 30, 40, 3)
    assert np.abs(frames[0] - np.array([250.0, 0, 0])).max() < 8
    assert times.tolist() == [0.0]


SHARED = {
    "av1_video.mkv": ("pyav", 125),
    "flipping_a_pancake.mkv": ("decord", 310),
    "h264_10bits.mp4": ("pyav", 30),
    "h265_video.mp4": ("pyav", 10),
    "nasa_13013.mp4": ("decord", 390),
    "unordered.mov": ("decord", 4),
    "video_0.mov": ("decord", 3),
    "video_90.mov": ("decord", 3),
    "video_180.mov": ("decord", 3),
    "video_270.mov": ("decord", 3),
}


@pytest.mark.parametrize("name", SHARED)
def test_real_clips_equal_a_sequential_decode(
    name: str, shared_videos: Path, local: Callable[[Path], LocalFile], limits: Limits
) -> None:
    backend, count = SHARED[name]
    video = local(shared_videos / name)
    facts = probe(video, limits)
    chosen = sample(facts.pts_seconds, Sampling(frames=8))
    assert (len(facts), route(video, facts, chosen)) == (count, backend)
    frames, times, _ = whole(FrameStream(video, facts, chosen, limits, chunk_frames=3))
    with av.open(str(video.path)) as container:
        stream = container.streams.best("video")
        decoded = list(container.decode(stream))
    truth = [np.rot90(decoded[i].to_ndarray(format="rgb24"), decoded[i].rotation // 90) for i in chosen]
    assert np.abs(frames.astype(int) - np.stack(truth)).max() <= 1
    np.testing.assert_allclose(times, [decoded[i].time for i in chosen], atol=1e-9)


def test_a_corrupt_clip_says_how_far_it_went(shared_videos: Path, open_stream: Callable[..., FrameStream]) -> None:
    stream = open_stream(shared_videos / "corrupted.mp4", list(range(0, 50, 6)))
    with pytest.raises(UnsupportedVideo, match=r"cannot be decoded: Invalid data.* \d of 9 sampled frames were found"):
        whole(stream)
    assert list(stream.stats.backends) == ["decord", "pyav"]


@pytest.mark.parametrize(("turns", "shape"), [(0, (64, 96)), (1, (96, 64)), (2, (64, 96)), (3, (96, 64))])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_both_backends_turn_frames_upright(
    turns: int, shape: tuple[int, int], pix_fmt: str, tmp_path: Path, open_stream: Callable[..., FrameStream]
) -> None:
    upright = np.zeros((*shape, 3), np.uint8)
    upright[: shape[0] // 2, : shape[1] // 2] = 255  # the upper left corner is white
    stored = np.ascontiguousarray(np.rot90(upright, -turns))
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *stored.shape[:2], pix_fmt
        stream.set_display_rotation(90 * turns)
        for pts in range(5):
            frame = av.VideoFrame.from_ndarray(stored, format="rgb24")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    opened = open_stream(path, [0, 4])
    frames, _, _ = whole(opened)
    assert np.abs(frames.astype(int) - upright).mean() < 3
    assert list(opened.stats.backends) == ["decord" if pix_fmt == "yuv420p" else "pyav"]


def test_the_first_chunk_is_there_before_the_last_frame_is_decoded(
    plain_clip: Path, open_stream: Callable[..., FrameStream]
) -> None:
    with open_stream(plain_clip, list(range(60)), chunk_frames=4) as stream:
        first = next(stream)
        seen_s = time.monotonic()
        rest = list(stream)
    assert [len(chunk) for chunk in (first, *rest)] == [4] * 15
    assert [chunk.offset for chunk in (first, *rest)] == list(range(0, 60, 4))
    ended = stream.stats.chunk_ended_s
    assert ended == sorted(ended)
    assert stream.stats.started_s < ended[0] < seen_s < ended[-1]


@pytest.mark.parametrize("death", [signal.SIGSEGV, signal.SIGKILL])
def test_a_new_child_goes_on_where_decord_died(
    death: signal.Signals,
    plain_clip: Path,
    open_stream: Callable[..., FrameStream],
    numbers: Callable[[np.ndarray], list[int]],
) -> None:
    with open_stream(plain_clip, list(range(60))) as stream:
        chunks = [next(stream)]
        os.kill(stream._child.pid, death)
        chunks += stream
    assert numbers(np.concatenate([chunk.frames for chunk in chunks])) == list(range(60))
    assert list(stream.stats.backends) == ["decord", "pyav"]


def test_decord_failing_on_a_video_it_was_thought_right_for(
    make_clip: Callable[..., Path], open_stream: Callable[..., FrameStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "route", lambda *_: "decord")
    stream = open_stream(make_clip("only-pyav.gif", "gif", pix_fmt="rgb8"), INDICES)
    _, _, indices = whole(stream)
    assert indices.tolist() == INDICES
    assert stream.stats.backends == {"decord": 0, "pyav": len(INDICES)}


def test_the_last_backend_dying_is_the_videos_fault(edited_clip: Path, open_stream: Callable[..., FrameStream]) -> None:
    with open_stream(edited_clip, [0, 1]) as stream:
        os.kill(stream._child.pid, signal.SIGSEGV)
        with pytest.raises(UnsupportedVideo, match=r"makes the decoder crash\. 0 of 2"):
            next(stream)


def test_a_stopped_child_is_killed_at_the_deadline(plain_clip: Path, open_stream: Callable[..., FrameStream]) -> None:
    with open_stream(plain_clip, [0, 1], deadline_s=0.5) as stream:
        os.kill(stream._child.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(DecodeTimeout, match=r"within 0\.5 s"):
            next(stream)
        assert time.monotonic() - began < 5
    assert not alive(stream._child.pid)


def test_a_fifo_keeps_a_prober_waiting_no_longer_than_its_deadline(tmp_path: Path, limits: Limits) -> None:
    os.mkfifo(tmp_path / "fifo")
    video = LocalFile(path=tmp_path / "fifo", digest="", bytes=0, reader="mov")
    with pytest.raises(DecodeTimeout):
        probe(video, limits, deadline_s=1.0)


def children() -> set[int]:
    """The processes that this one started and has not yet buried."""
    pids: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            pids.update(map(int, (task / "children").read_text().split()))
    return pids


def test_cancelling_a_probe_kills_its_child(tmp_path: Path, limits: Limits) -> None:
    os.mkfifo(tmp_path / "fifo")
    video = LocalFile(path=tmp_path / "fifo", digest="", bytes=0, reader="mov")
    before = children()

    async def look_away() -> None:
        task = asyncio.create_task(probe_async(video, limits))
        await asyncio.sleep(0.2)
        assert len(children() - before) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert children() == before

    asyncio.run(look_away())


def test_stalled_probes_do_not_hold_up_the_loops_own_threads(tmp_path: Path, limits: Limits) -> None:
    os.mkfifo(tmp_path / "fifo")
    video = LocalFile(path=tmp_path / "fifo", digest="", bytes=0, reader="mov")

    async def resolve_meanwhile() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        stalled = [asyncio.create_task(probe_async(video, limits)) for _ in range(2)]
        await asyncio.sleep(0.2)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "resolved"), timeout=5) == "resolved"
        assert not any(task.done() for task in stalled)
        for task in stalled:
            task.cancel()
        await asyncio.wait(stalled)

    asyncio.run(resolve_meanwhile())


def alive(pid: int) -> bool:
    return Path("/proc", str(pid)).exists()


def test_an_event_loop_reads_chunks_and_cancelling_it_kills_the_child(
    plain_clip: Path, open_stream: Callable[..., FrameStream]
) -> None:
    async def read() -> None:
        with open_stream(plain_clip, list(range(60))) as stream:
            assert [chunk.indices[0] async for chunk in stream.chunks()] == list(range(0, 60, 2))
        stream = open_stream(plain_clip, list(range(60)))
        os.kill(stream._child.pid, signal.SIGSTOP)
        task = asyncio.ensure_future(anext(stream.chunks()))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not alive(stream._child.pid)

    asyncio.run(read())


def test_closing_early_ends_the_iteration_and_the_child(
    plain_clip: Path, open_stream: Callable[..., FrameStream]
) -> None:
    stream = open_stream(plain_clip, list(range(60)))
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []
    assert not alive(stream._child.pid)


@pytest.mark.parametrize(
    ("limit", "match"),
    [
        ({"max_frames": 59}, "more frames than the limit of 59"),
        ({"max_seconds": 2.3}, r"lasts 2\.4 s, longer than the limit of 2\.3 s"),
        ({"max_pixels": 6143}, "96 x 64 = 6144 pixels, over the limit of 6143"),
        ({"max_aspect": 1.49}, r"96 x 64 pixels, one side 1\.5 times the other, over the limit of 1\.49"),
    ],
)
def test_limits_name_themselves_and_the_value(
    limit: dict[str, float], match: str, plain_clip: Path, local: Callable[[Path], LocalFile], limits: Limits
) -> None:
    with pytest.raises(VideoTooLarge, match=match):
        probe(local(plain_clip), replace(limits, **limit))


def test_a_strip_is_refused_whichever_way_it_lies(
    make_clip: Callable[..., Path], local: Callable[[Path], LocalFile], limits: Limits
) -> None:
    for name, width, height in (("wide.mp4", 1040, 32), ("tall.mp4", 32, 1040)):
        with pytest.raises(VideoTooLarge, match=r"32\.5 times the other, over the limit of 32"):
            probe(local(make_clip(name, width=width, height=height, frames=2)), limits)
    strip = make_clip("strip.mp4", width=1024, height=32, frames=2)
    assert probe(local(strip), limits).width == 1024


def test_a_file_cut_short_says_what_it_announces_and_holds(
    plain_clip: Path, tmp_path: Path, local: Callable[[Path], LocalFile], limits: Limits
) -> None:
    fast = tmp_path / "fast.mp4"
    with av.open(str(plain_clip)) as source, av.open(str(fast), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    data = fast.read_bytes()
    fast.write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(UnsupportedVideo, match=r"cut short: it announces 60 frames and holds \d\d"):
        probe(local(fast), limits)


@pytest.mark.parametrize("name", ["b-frames.mkv", "b-frames.flv", "vp9.webm"])
def test_a_container_that_holds_less_than_it_states_is_cut_short(
    name: str, make_clip: Callable[..., Path], tmp_path: Path, local: Callable[[Path], LocalFile], limits: Limits
) -> None:
    codec, options, *_ = CLIPS[name]
    whole_clip = make_clip(f"long-{name}", codec, options, frames=200)
    assert len(probe(local(whole_clip), limits)) == 200
    cut = tmp_path / name
    cut.write_bytes(whole_clip.read_bytes()[: whole_clip.stat().st_size * 6 // 10])
    with pytest.raises(UnsupportedVideo, match=r"cut short: it announces 8\.\d s and holds \d\.\d s"):
        probe(local(cut), limits)


@pytest.mark.parametrize("suffix", ["mkv", "flv"])
def test_sound_may_outlast_the_pictures(
    suffix: str, tmp_path: Path, local: Callable[[Path], LocalFile], limits: Limits
) -> None:
    path = tmp_path / f"long-sound.{suffix}"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=44100, layout="mono")
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        quiet = av.AudioFrame.from_ndarray(np.zeros((1, 10 * 44100), np.int16), format="s16", layout="mono")
        quiet.sample_rate, quiet.pts = 44100, 0
        for pts in range(10):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), format="rgb24")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        container.mux(sound.encode(quiet))
    assert len(probe(local(path), limits)) == 10


def test_a_stream_that_states_no_length_is_taken_as_it_is(
    tmp_path: Path, local: Callable[[Path], LocalFile], limits: Limits
) -> None:
    path = tmp_path / "live.mkv"
    with av.open(str(path), "w", options={"live": "1"}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for pts in range(100):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 96, 3), np.uint8), format="rgb24")
            frame.pts = pts
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert len(probe(local(path), limits)) == 100


def test_damaged_files_never_crash_the_caller(
    make_clip: Callable[..., Path], tmp_path: Path, local: Callable[[Path], LocalFile], limits: Limits
) -> None:
    dice = random.Random(0)
    for name in ("b-frames.mp4", "b-frames.mkv", "b-frames.ts"):
        codec, options, *_ = CLIPS[name]
        data = make_clip(name, codec, options).read_bytes()
        for _ in range(2):
            damaged = bytearray(data)
            for _ in range(40):
                damaged[dice.randrange(300, len(data))] = dice.randrange(256)
            path = tmp_path / name
            path.write_bytes(damaged)
            with suppress(OccamError):
                video = local(path)
                facts = probe(video, limits)
                whole(FrameStream(video, facts, sample(facts.pts_seconds, Sampling(frames=4)), limits, chunk_frames=2))


HEADER = "import struct, os; say = lambda k, b, s=0: os.write(1, struct.pack('<Bqdq', k, s, 0.0, len(b)) + b); "
WALLS = 'say(1, b\'{"landlock": 7, "seccomp": true, "namespaces": true}\'); '


@pytest.mark.parametrize(
    "lie",
    [
        "os.write(1, b'x' * 100)",
        "os.write(1, struct.pack('<Bqdq', 2, 0, 0.0, 1 << 40))",
        "os.write(1, struct.pack('<Bqdq', 2, 0, 0.0, -5))",
        "say(2, b'[' * 2000)",
        "say(2, b'[]')",
        "say(2, b'{}')",
        "say(1, b'{\"landlock\": 7}')",
        "[say(1, b'{}') for _ in range(5000)]",
        "say(6, b'')",
        "say(5, bytes(18432), 0)",
        "pass",
    ],
)
@pytest.mark.parametrize("walls", [WALLS, ""])
def test_a_child_that_lies_is_not_believed(
    lie: str,
    walls: str,
    plain_clip: Path,
    local: Callable[[Path], LocalFile],
    limits: Limits,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "_COMMAND", ("-S", "-c", HEADER + walls + lie))
    with pytest.raises(UnsupportedVideo, match="crash"):
        probe(local(plain_clip), limits, deadline_s=20.0)


@pytest.mark.parametrize(
    "lie",
    [
        *('"width": Infinity', '"width": NaN', '"width": []', '"height": 1e400', '"codec": [[]], "turns": {}'),
        *('"time_base": []', '"time_base": {}', '"time_base": [1, 0]', '"time_base": null', '"origin": "x"'),
    ],
)
def test_facts_that_are_none_are_not_believed(
    lie: str, plain_clip: Path, local: Callable[[Path], LocalFile], limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = '"codec": "h264", "pix_fmt": "yuv420p", "width": 96, "height": 64, "turns": 0, "time_base": [1, 25], '
    true += '"origin": 0, "last_duration": 1, "plain": true'
    stamps = "; ".join(f"say({kind}, struct.pack('<q', 0))" for kind in (3, 4, 11))
    for facts in (true, f"{true}, {lie}"):
        speech = f"{HEADER}{WALLS}say(2, b'{{{facts}}}'); {stamps}"
        monkeypatch.setattr(process, "_COMMAND", ("-S", "-c", speech))
        if facts is true:
            assert len(probe(local(plain_clip), limits, deadline_s=20.0)) == 1
            continue
        with pytest.raises(UnsupportedVideo, match="crash"):
            probe(local(plain_clip), limits, deadline_s=20.0)


@pytest.mark.parametrize(
    "lie",
    ["say(5, bytes(18432), 1)", "say(5, bytes(18432), -512)", "say(5, bytes(9), 0)", "say(2, b'{}')", "say(7, b'')"],
)
def test_frames_that_were_not_asked_for_are_not_taken(
    lie: str, plain_clip: Path, local: Callable[[Path], LocalFile], limits: Limits, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = probe(local(plain_clip), limits)
    monkeypatch.setattr(process, "_COMMAND", ("-S", "-c", HEADER + WALLS + lie))
    monkeypatch.setattr(decode, "route", lambda *_: "pyav")
    with (
        FrameStream(local(plain_clip), facts, np.array([0, 5]), limits, chunk_frames=2) as stream,
        pytest.raises(UnsupportedVideo, match="crash"),
    ):
        next(stream)
