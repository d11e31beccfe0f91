"""Frames as an H.264 file and back, so that clips reach a model as a user's video would."""

import io
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]


def write_mp4(target: Path | BinaryIO, frames: Frames, fps: int = 1, crf: int = 18, preset: str = "veryfast") -> None:
    """Encode RGB frames [T, H, W, 3] (even sides) as H.264 in mp4, a frame every 1 / fps seconds."""
    destination = str(target) if isinstance(target, Path) else target
    with av.open(destination, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": preset})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def read_mp4(source: Path | BinaryIO) -> Frames:
    """Decode every frame of a file that `write_mp4` made, [T, H, W, 3] RGB; not for files from elsewhere."""
    with av.open(str(source) if isinstance(source, Path) else source, "r", format="mp4") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def through_h264(frames: Frames, crf: int, preset: str = "ultrafast") -> Frames:
    """The frames as they look after H.264, encoded and decoded in memory."""
    buffer = io.BytesIO()
    write_mp4(buffer, frames, crf=crf, preset=preset)
    buffer.seek(0)
    return read_mp4(buffer)
