"""Probing, and decoding where decord is wrong: PyAV with an explicit demuxer and no protocol but `file`.

Runs inside the sandbox. A frame is known by its stamp: its presentation time in the stream's time base. AVI stores no
time of presentation: there the stamps are those of decoding in order, and a frame is found by its number.
"""

from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
import av.error

# Whatever is first imported inside the walls fails. PyAV imports these when it first meets a subtitle stream.
import av.subtitles.codeccontext
import av.subtitles.stream
import av.subtitles.subtitle
import numpy as np

from occam.errors import UnsupportedVideo, VideoTooLarge
from pipelines.ingest.wire import Kind, send_array, send_json

_THREADS = 2
_SEEKABLE = {"mov", "matroska", "mpegts"}
_STATING = {"matroska", "flv"}  # whose head may say how long it all lasts; elsewhere FFmpeg takes it from what is there


class _Packet(NamedTuple):
    stamp: int
    duration: int
    key: bool
    shown: bool


def run(job: dict[str, Any]) -> None:
    """Probe the job's video, or decode its targets if it has any."""
    try:
        if job["targets"]:
            _decode(job)
        else:
            _probe(job)
    except MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise UnsupportedVideo(f"The video cannot be decoded: {error.strerror}.") from None


def _open(job: dict[str, Any], **options: str) -> Any:
    return av.open(f"file:{job['path']}", format=job["reader"], options={"protocol_whitelist": "file", **options})


def _video_stream(container: Any) -> Any:
    stream = container.streams.best("video")
    if stream is None:
        raise UnsupportedVideo("The file has no video stream.")
    stream.thread_type = "AUTO"
    stream.thread_count = _THREADS
    return stream


def _probe(job: dict[str, Any]) -> None:
    with _open(job) as container:
        stream = _video_stream(container)
        packets = _packets(container, stream, job)
        base = stream.time_base
        origin = round(Fraction(container.start_time or 0, av.time_base) / base)
        stated_s = None if container.duration is None else container.duration / av.time_base
        missing = stream.frames - len(packets) if job["reader"] == "mov" else 0
    if job["reader"] in _STATING and stated_s is not None:
        _check_whole(job, stated_s)
    edited = missing > 0 and _is_edited(job, len(packets) + missing)
    stamps, keys = _timeline(packets)
    last_duration = packets[-1].duration
    if job["reader"] == "avi":
        origin, last_duration = 0, max(last_duration, 1)
    if job["reader"] not in _SEEKABLE:
        keys = stamps[:1]
    hidden = _hidden(packets, stamps)
    facts = {
        "time_base": [base.numerator, base.denominator],
        "origin": origin,
        "last_duration": last_duration,
        "plain": not (edited or hidden or _has_leading_frames(packets)),
    }
    send_json(Kind.FACTS, {**facts, **_first_frame(job)})
    send_array(Kind.STAMPS, np.array(stamps, np.int64))
    send_array(Kind.KEYS, np.array(keys, np.int64))
    send_array(Kind.HIDDEN, np.array(hidden, np.int64))


def _packets(container: Any, stream: Any, job: dict[str, Any]) -> list[_Packet]:
    """All packets of the stream that carry a frame, in decoding order."""
    packets = []
    for packet in container.demux(stream):
        stamp = packet.dts if job["reader"] == "avi" else packet.pts
        if packet.size and stamp is not None:
            packets.append(_Packet(stamp, packet.duration or 0, packet.is_keyframe, not packet.is_discard))
        if len(packets) > job["max_frames"]:
            raise VideoTooLarge(f"The video has more frames than the limit of {job['max_frames']}.")
    if not packets:
        raise UnsupportedVideo("The file's video stream has no frames.")
    return packets


def _is_edited(job: dict[str, Any], announced: int) -> bool:
    """True if an edit list hides the missing frames; if the file does, it was cut short."""
    with _open(job, ignore_editlist="1") as container:
        found = len(_packets(container, _video_stream(container), job))
    if found < announced:
        raise UnsupportedVideo(f"The file is cut short: it announces {announced} frames and holds {found}.")
    return True


def _check_whole(job: dict[str, Any], stated_s: float) -> None:
    """Raise UnsupportedVideo if all streams end long before the container says.

    Sound may outlast the pictures, and containers count their last packets' lengths differently: less than a second
    or a twentieth proves nothing.
    """
    with _open(job) as container:
        packets = (packet for packet in container.demux() if packet.pts is not None)
        last_s = max((float((packet.pts + (packet.duration or 0)) * packet.time_base) for packet in packets), default=0)
    if last_s < stated_s - max(1.0, stated_s / 20):
        raise UnsupportedVideo(f"The file is cut short: it announces {stated_s:.1f} s and holds {last_s:.1f} s.")


def _timeline(packets: list[_Packet]) -> tuple[list[int], list[int]]:
    """Stamps of the frames that are shown, in order of presentation, and those of the key frames."""
    keys = sorted({packet.stamp for packet in packets if packet.key})
    # What comes before the first key frame cannot be decoded.
    stamps = sorted({packet.stamp for packet in packets if packet.shown and (not keys or packet.stamp >= keys[0])})
    if not stamps:
        raise UnsupportedVideo("The file's video stream has no frame that can be shown.")
    return stamps, keys or stamps[:1]


def _hidden(packets: list[_Packet], stamps: list[int]) -> list[int]:
    """Stamps of what is decoded and not shown: an edit list leaves it out, or another frame has its time."""
    return sorted((Counter(packet.stamp for packet in packets) - Counter(stamps)).elements())


def _has_leading_frames(packets: list[_Packet]) -> bool:
    """True if a group of pictures is open: a frame is stored behind a key frame and shown before it."""
    last_key = packets[0].stamp
    for packet in packets:
        last_key = packet.stamp if packet.key else last_key
        if packet.stamp < last_key:
            return True
    return False


def _first_frame(job: dict[str, Any]) -> dict[str, Any]:
    """Decode one frame: only it tells the true size, format and rotation."""
    with _open(job) as container:
        stream = _video_stream(container)
        frame = next(container.decode(stream), None)
        if frame is None:
            raise UnsupportedVideo("No frame of the video can be decoded.")
        turns = round(frame.rotation / 90) % 4
        width, height = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
        size = {"width": width, "height": height, "turns": turns}
        return {"codec": stream.codec_context.name, "pix_fmt": frame.format.name, **size}


def _decode(job: dict[str, Any]) -> None:
    turned = job["turns"] % 2
    width, height = (job["height"], job["width"]) if turned else (job["width"], job["height"])
    with _open(job) as container:
        for stamp, frame in _Walk(container, job).at(job["targets"]):
            rgb = frame.reformat(width=width, height=height, format="rgb24", threads=1).to_ndarray()
            send_array(Kind.FRAME, np.rot90(rgb, job["turns"]), stamp)


class _Walk:
    """A way through the video that only goes forward, from key frame to key frame where that saves decoding."""

    def __init__(self, container: Any, job: dict[str, Any]) -> None:
        self._container = container
        self._stream = _video_stream(container)
        self._counted = job["reader"] == "avi"
        self._start = job["start"]
        self._lead = job["lead"]
        self._can_seek = True
        self._frames = self._from_start()

    def at(self, targets: list[tuple[int, int, int]]) -> Iterator[tuple[int, Any]]:
        """Yield stamp and frame for each target (index, stamp, stamp of its key frame).

        Where the decoder gave no frame for a target's stamp, the next one it gives stands in, under its own stamp.
        """
        position = self._start
        for index, stamp, key in targets:
            if key - self._lead > position and self._can_seek:
                self._frames = self._from_key(key)
            wanted = index if self._counted else stamp
            found = next(((at, frame) for at, frame in self._frames if at >= wanted), None)
            if found is None:
                raise UnsupportedVideo("The video ends before its container says.")
            position = stamp if self._counted else found[0]
            yield position, found[1]

    def _from_start(self) -> Iterator[tuple[int, Any]]:
        for number, frame in enumerate(self._container.decode(self._stream)):
            stamp = number if self._counted else frame.pts
            if stamp is not None:
                yield stamp, frame

    def _from_key(self, key: int) -> Iterator[tuple[int, Any]]:
        """Frames from the key frame on; from the start, if the demuxer landed behind it."""
        self._container.seek(key - self._lead, stream=self._stream)
        clean = False
        for frame in self._container.decode(self._stream):
            clean = clean or (frame.key_frame and frame.pts is not None and frame.pts <= key)
            if clean and frame.pts is not None:
                yield frame.pts, frame
            elif frame.pts is None or frame.pts > key:
                break
        if not clean:
            self._can_seek = False
            self._container.seek(self._start, stream=self._stream)
            yield from self._from_start()
