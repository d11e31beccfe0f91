"""Decoding of video: seconds until all of some frames, spread evenly over an H.264 clip, are arrays.

Ours is what the decoder deployment does for a file that it knows: a guarded child process that opens the file, frames
sent through a pipe. Rival: transformers' reader of videos with PyAV. Floor: PyAV in this process, which decodes from
the key frame in front of each wanted frame to that frame, and nothing else.
"""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from transformers.video_utils import read_video_pyav

from tests.bench.machine import described
from tests.bench.report import Report, Table
from tests.bench.rounds import alternating

MODELS = ("H.264",)
SECONDS, FRAMES = (30, 600), (8, 64)
_THREADS = 2
_COLUMNS = ("", "ours s", "stock s", "stock / ours", "floor s", "ours / floor", "ours, frames a second")


def add_options(_: argparse.ArgumentParser) -> None:
    """There are none of this section alone."""


def measure(model: str, args: argparse.Namespace) -> Report:
    """Both clips, few frames of each and many."""
    # Here, since elsewhere no decoder is needed.
    from tests.bench.range_cost import HEIGHT, RATE, WIDTH, write_clip

    rows = []
    with TemporaryDirectory(prefix="occam-video-") as name:
        folder = Path(name)
        (folder / "service").mkdir()
        for seconds in SECONDS:
            clip = folder / f"{seconds}.mp4"
            write_clip(clip, 0, seconds * RATE, {"preset": "veryfast"})
            rows += [_row(folder, clip, frames, f"{frames} frames of {seconds} s", args.repeats) for frames in FRAMES]
    facts = described(args.device) | {
        "clip": f"{model}, {WIDTH} x {HEIGHT}, {RATE} frames a second",
        "threads of each decoder": str(_THREADS),
        "repeats": str(args.repeats),
    }
    table = Table(title="Frames of a clip as arrays", columns=_COLUMNS, rows=tuple(rows))
    return Report(section="video", model=model, device=args.device, facts=facts, tables=(table,))


def _row(folder: Path, clip: Path, frames: int, name: str, repeats: int) -> tuple[str | float, ...]:
    from services.media import LocalMedia
    from services.messages import FrameChoice, Source
    from services.settings import Settings

    media = LocalMedia(Settings(directory=str(folder / "service"), file_roots=(str(folder),)))
    source = Source(url=str(clip), kind="video")

    async def ours() -> list[Any]:
        return [chunk.frames.frames async for chunk in media.decode(medium, frames)]

    with asyncio.Runner() as runner:
        medium = runner.run(media.describe(source, FrameChoice(), frames, None)).medium
        wanted = np.array(medium.indices)
        runs = {
            "ours": lambda: np.concatenate(runner.run(ours())),
            "stock": lambda: read_video_pyav(str(clip), lambda **_: wanted)[0],
            "floor": lambda: _least(clip, wanted),
        }
        first, *others = (run() for run in runs.values())
        for other in others:  # the same frames, whatever each does about colours
            assert first.shape == other.shape
            assert np.abs(first.astype(int) - other).mean() < 2
        rounds = alternating("cpu", runs, repeats)
    seconds = {name: rounds.median(name) for name in runs}
    ratios = rounds.ratio("stock", "ours"), rounds.ratio("ours", "floor")
    return name, seconds["ours"], seconds["stock"], ratios[0], seconds["floor"], ratios[1], frames / seconds["ours"]


def _least(clip: Path, wanted: Sequence[int]) -> Any:
    """Frames by index, each decoded from the key frame in front of it, or from the one that was wanted before it."""
    import av  # as above: the command is read where there is no decoder

    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "AUTO", _THREADS
        assert stream.time_base is not None
        assert stream.average_rate is not None
        step = round(1 / (stream.average_rate * stream.time_base))
        keys = [
            packet.pts // step for packet in container.demux(stream) if packet.is_keyframe and packet.pts is not None
        ]
        container.seek(0)
        decoded, at, found = container.decode(stream), 0, []
        for index in wanted:
            key = max(each for each in keys if each <= index)
            if key > at:
                container.seek(key * step, stream=stream)
                decoded = container.decode(stream)
            frame = next(each for each in decoded if each.pts is not None and each.pts // step >= index)
            found.append(frame.to_ndarray(format="rgb24"))
            at = index
        return np.stack(found)
