"""Clips that say which frame they show: frame i carries i as eight black or white bars, so its pixels are the truth."""

import os
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.ingest.decode import FrameStream
from pipelines.ingest.limits import Limits
from pipelines.ingest.local_file import LocalFile, open_local
from pipelines.ingest.probe import VideoFacts, probe

FRAMES, RATE, BITS = 60, 25, 8


def picture_of(number: int, width: int, height: int) -> np.ndarray:
    bars = [255 * (number >> bit & 1) for bit in range(BITS)]
    columns = np.repeat(np.array(bars, np.uint8), -(-width // BITS))[:width]
    return np.ascontiguousarray(np.broadcast_to(columns[None, :, None], (height, width, 3)))


def numbers_of(frames: np.ndarray) -> list[int]:
    """The numbers that frames [T, H, W, 3] show."""
    bars = np.array_split(frames.mean((1, 3)), BITS, axis=1)
    return [sum(int(bar[t].mean() > 127) << bit for bit, bar in enumerate(bars)) for t in range(len(frames))]


@pytest.fixture(scope="session")
def picture() -> Callable[[int, int, int], np.ndarray]:
    return picture_of


@pytest.fixture(scope="session")
def numbers() -> Callable[[np.ndarray], list[int]]:
    return numbers_of


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_clip("x.mp4", codec="libx264", options={...}, pix_fmt=..., width=..., frames=...) -> path."""
    folder = tmp_path_factory.mktemp("clips")

    def make(name: str, codec: str = "libx264", options: dict[str, str] | None = None, **given: Any) -> Path:
        path = folder / name
        width, height = given.get("width", 96), given.get("height", 64)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=RATE, options=options or {})
            stream.width, stream.height, stream.pix_fmt = width, height, given.get("pix_fmt", "yuv420p")
            for number in range(given.get("frames", FRAMES)):
                frame = av.VideoFrame.from_ndarray(picture_of(number, width, height), format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return make


@pytest.fixture(scope="session")
def plain_clip(make_clip: Callable[..., Path]) -> Path:
    """An MP4 with B-frames and closed groups of 12: a video that decord gets right."""
    return make_clip("plain.mp4", options={"g": "12", "bf": "3"})


@pytest.fixture(scope="session")
def edited_clip(plain_clip: Path) -> Path:
    """The plain clip with an edit list that shows frames 20..44 only."""
    data = bytearray(plain_clip.read_bytes())
    entry = data.index(b"elst") + 12
    _, media_start = struct.unpack_from(">Ii", data, entry)
    struct.pack_into(">Ii", data, entry, 1000, media_start + 20 * 512)
    path = plain_clip.with_name("edited.mp4")
    path.write_bytes(data)
    return path


@pytest.fixture(scope="session")
def shared_videos() -> Path:
    """The folder of real clips beside the project; tests that need it are skipped elsewhere."""
    starts = [Path(os.environ["SHARED_DIRECTORY"])] if "SHARED_DIRECTORY" in os.environ else []
    for parent in [*starts, *(parent / "shared" for parent in Path(__file__).resolve().parents)]:
        if (parent / "videos").is_dir():
            return parent / "videos"
    pytest.skip("the folder of real clips is not here")


@pytest.fixture(scope="session")
def limits() -> Limits:
    return Limits()


@pytest.fixture(scope="session")
def local(limits: Limits) -> Callable[[Path], LocalFile]:
    return lambda path: open_local(path, limits)


@pytest.fixture(scope="session")
def open_stream(limits: Limits) -> Callable[..., FrameStream]:
    """open_stream(path, indices, chunk_frames=2): probe, then start decoding."""

    @cache  # clips that many tests share are probed once
    def look(path: Path) -> tuple[LocalFile, VideoFacts]:
        video = open_local(path, limits)
        return video, probe(video, limits)

    def start(path: Path, indices: list[int], **given: Any) -> FrameStream:
        video, facts = look(path)
        given.setdefault("chunk_frames", 2)
        return FrameStream(video, facts, np.array(indices), limits, **given)

    return start
