"""A range of a video: the frames that a walk through the whole file gives, for what the range alone takes."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.ingest import decode, pyav_backend
from pipelines.ingest.decode import FrameStream, route
from pipelines.ingest.limits import Limits
from pipelines.ingest.local_file import LocalFile, open_local
from pipelines.ingest.probe import VideoFacts, probe
from pipelines.ingest.sample import Sampling, sample

GROUP, LONG, RATE = 12, 150, 25
B_FRAMES = {"g": str(GROUP), "bf": "3"}
X264_OPEN = {"x264-params": f"open-gop=1:keyint={GROUP}:bframes=3:b-adapt=0:scenecut=0"}
X265_OPEN = {"x265-params": f"keyint={GROUP}:min-keyint={GROUP}:open-gop=1:bframes=3:log-level=none"}
VP9 = {"g": str(GROUP), "deadline": "realtime", "cpu-used": "8"}
CLIPS = {
    "b-frames.mp4": ("libx264", B_FRAMES),
    "b-frames.mkv": ("libx264", B_FRAMES),
    "b-frames.ts": ("libx264", B_FRAMES),
    "b-frames.flv": ("libx264", B_FRAMES),
    "b-frames.avi": ("libx264", B_FRAMES),
    "open.mp4": ("libx264", X264_OPEN),
    "open.mkv": ("libx264", X264_OPEN),
    "open.ts": ("libx264", X264_OPEN),
    "hevc-open.mp4": ("libx265", X265_OPEN),
    "mpeg2.mpg": ("mpeg2video", {"g": str(GROUP), "bf": "2"}),
    "vp9.webm": ("libvpx-vp9", VP9),
}
SHARED = (
    "av1_video.mkv", "flipping_a_pancake.mkv", "h264_10bits.mp4", "h265_video.mp4", "nasa_13013.mp4", "unordered.mov",
    "video_0.mov", "video_90.mov", "video_180.mov", "video_270.mov",
)  # fmt: skip


@pytest.fixture(scope="session")
def long_clip(make_clip: Callable[..., Path]) -> Callable[[str], Path]:
    return lambda name: make_clip(f"long-{name}", CLIPS[name][0], CLIPS[name][1], frames=LONG)


@pytest.fixture(scope="session")
def uneven_clip(tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., np.ndarray]) -> Path:
    """An MP4 of B-frames whose frames last from one to seven units."""
    path = tmp_path_factory.mktemp("uneven") / "uneven.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=B_FRAMES)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        at = 0
        for number in range(LONG):
            frame = av.VideoFrame.from_ndarray(picture(number, 96, 64), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 100)
            at += 1 + number * number % 7
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def turned_clip(long_clip: Callable[[str], Path]) -> Path:
    """The long MP4, to be shown turned by a quarter."""
    path = long_clip("b-frames.mp4")
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    struct.pack_into(">9i", data, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    turned = path.with_name("turned.mp4")
    turned.write_bytes(data)
    return turned


def walked(video: LocalFile, facts: VideoFacts) -> list[np.ndarray]:
    """All frames of the video, upright, by a decoder that goes from its first packet to its last."""
    with av.open(str(video.path), format=video.reader) as container:
        frames = list(container.decode(container.streams.best("video")))
    if video.reader != "avi":  # which stores no time of presentation
        shown = set(facts.stamps.tolist())
        frames = [frame for frame in frames if frame.pts in shown]
    assert len(frames) == len(facts)
    return [np.rot90(frame.to_ndarray(format="rgb24"), facts.turns) for frame in frames]


def ranges(facts: VideoFacts) -> Iterator[np.ndarray]:
    """Six frames of the beginning, of the middle and of the end of the video."""
    begin, last = float(facts.pts_seconds[0]), float(facts.pts_seconds[-1])
    for share in (0.05, 0.45, 0.83):
        start, end = (max(begin + at * (last - begin), 0) for at in (share, share + 0.15))
        yield sample(facts.pts_seconds, Sampling(frames=6, start_s=start, end_s=end))


def check(path: Path, limits: Limits) -> None:
    video = open_local(path, limits)
    facts = probe(video, limits)
    whole = walked(video, facts)
    for indices in ranges(facts):
        assert route(video, facts, indices) == "pyav" or len(facts) <= 2 * len(indices)
        with FrameStream(video, facts, indices, limits, chunk_frames=4) as stream:
            chunks = list(stream)
        assert np.concatenate([chunk.indices for chunk in chunks]).tolist() == indices.tolist()
        frames = np.concatenate([chunk.frames for chunk in chunks]).astype(int)
        # What decord makes of the few frames of a short clip is off by one here and there.
        assert np.abs(frames - np.stack([whole[index] for index in indices])).max() <= 1
        if route(video, facts, indices) == "pyav":
            assert all((frame == whole[index]).all() for frame, index in zip(frames, indices, strict=True))


@pytest.mark.parametrize("name", CLIPS)
def test_frames_of_a_range_are_those_of_a_whole_walk(
    name: str, long_clip: Callable[[str], Path], limits: Limits
) -> None:
    check(long_clip(name), limits)


def test_edit_lists_rotation_and_uneven_frames_change_nothing(
    edited_clip: Path, turned_clip: Path, uneven_clip: Path, limits: Limits
) -> None:
    for path in (edited_clip, turned_clip, uneven_clip):
        check(path, limits)
    assert probe(open_local(turned_clip, limits), limits).turns % 2 == 1


@pytest.mark.parametrize("name", SHARED)
def test_ranges_of_real_clips_are_those_of_a_whole_walk(name: str, shared_videos: Path, limits: Limits) -> None:
    check(shared_videos / name, limits)


class Counting:
    """A container that counts what is read and decoded of its video."""

    def __init__(self, container: Any) -> None:
        self._container = container
        self.packets = self.frames = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def decode(self, stream: Any) -> Iterator[Any]:
        for packet in self._container.demux(stream):
            self.packets += 1
            for frame in packet.decode():
                self.frames += 1
                yield frame


def counted(video: LocalFile, facts: VideoFacts, indices: np.ndarray) -> Counting:
    """What PyAV reads and decodes for these frames."""
    targets = np.stack([indices, facts.stamps[indices], facts.keys_of(indices)], axis=1).tolist()
    with av.open(str(video.path), format=video.reader) as container:
        counting = Counting(container)
        job = {"start": int(facts.stamps[0]), "reader": video.reader, "lead": decode._lead(video, facts)}
        assert [stamp for stamp, _ in pyav_backend._Walk(counting, job).at(targets)] == facts.stamps[indices].tolist()
    return counting


@pytest.mark.parametrize("name", ["b-frames.mp4", "b-frames.mkv", "open.mp4", "open.mkv", "hevc-open.mp4", "vp9.webm"])
def test_a_range_costs_itself_and_a_group_of_pictures(
    name: str, long_clip: Callable[[str], Path], limits: Limits
) -> None:
    video = open_local(long_clip(name), limits)
    facts = probe(video, limits)
    indices = sample(facts.pts_seconds, Sampling(frames=8, start_s=3.2, end_s=4.0))
    counting = counted(video, facts, indices)
    length = int(indices[-1] - indices[0]) + 1
    assert 0 < counting.frames <= length + GROUP
    # Two threads hold a frame each, and B-frames wait for what they refer to; each seek to the next group does so anew.
    assert counting.packets <= length + GROUP + 8 * (len(set(facts.keys_of(indices).tolist())) + 1)


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize(
    "indices", [[140], [3, 140], [0, 20, 21, 60, 100, 140], [*range(0, LONG, 3)]], ids=["one", "two", "few", "many"]
)
def test_frames_walked_are_counted_before_they_are(
    name: str, indices: list[int], long_clip: Callable[[str], Path], limits: Limits
) -> None:
    video = open_local(long_clip(name), limits)
    facts = probe(video, limits)
    wanted = np.array(indices)
    frames, expected = counted(video, facts, wanted).frames, RATE * decode.walked_s(video, facts, wanted)
    if video.reader == "mpegts":  # of what a seek reads there before the key frame, the decoder gives none
        assert frames <= expected <= min(frames + RATE * len(indices), LONG)
    else:
        assert frames == pytest.approx(expected)


def test_no_clock_makes_frames_fewer_than_they_are(tmp_path: Path, edited_clip: Path, limits: Limits) -> None:
    """Neither where ten share a time, so that one of them is shown, nor where an edit list hides them."""
    crowded = tmp_path / "crowded.mkv"
    with av.open(str(crowded), "w") as container:
        stream = container.add_stream("mpeg4", rate=1000, options={"g": "600", "sc_threshold": "1000000000"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(600):
            for packet in stream.encode(av.VideoFrame(32, 32, "yuv420p")):
                packet.pts = packet.dts = packet.pts // 10
                container.mux(packet)
    for path, last, frames in ((crowded, 59, 600), (edited_clip, 0, 5), (edited_clip, 24, 29)):
        video = open_local(path, limits)
        facts = probe(video, limits)
        at_once = replace(facts, time_base=facts.time_base / 1000)
        assert decode.walked_s(video, at_once, np.arange(last + 1)) == pytest.approx(frames / 60)
