"""Decoding with decord, of videos that `route` in `decode` found it right for. Runs inside the sandbox."""

from typing import Any

import decord

from pipelines.ingest.wire import BackendFailed, Kind, send_array

_THREADS = 2


def run(job: dict[str, Any]) -> None:
    """Decode the job's targets, by their indices in order of presentation; decord turns frames upright itself."""
    try:
        reader = decord.VideoReader(job["path"], num_threads=_THREADS)
        if len(reader) != job["frames"]:
            raise BackendFailed(f"decord counts {len(reader)} frames, the container {job['frames']}")
        for start in range(0, len(job["targets"]), job["chunk_frames"]):
            chunk = job["targets"][start : start + job["chunk_frames"]]
            frames = reader.get_batch([index for index, _, _ in chunk]).asnumpy()
            if frames.shape[1:3] != (job["height"], job["width"]):
                raise BackendFailed(f"decord gives frames of {list(frames.shape[1:3])}")
            for (_, stamp, _), frame in zip(chunk, frames, strict=True):
                send_array(Kind.FRAME, frame, stamp)
    except decord.DECORDError as error:
        raise BackendFailed(str(error).splitlines()[0]) from None
