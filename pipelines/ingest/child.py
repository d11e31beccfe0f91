"""The process that reads a stranger's file: `python -m pipelines.ingest.child`, its job as JSON on standard input.

It imports what it needs, shuts itself in (`enter_sandbox`), and writes messages of `wire` on standard output. The
parent started it with an empty environment and no other descriptor, and kills it when time is up.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from occam.errors import UnsupportedVideo, VideoTooLarge

_WORKERS = {
    "pyav": "pipelines.ingest.pyav_backend",
    "decord": "pipelines.ingest.decord_backend",
    "pillow": "pipelines.ingest.pillow_backend",
    "self_test": "pipelines.ingest.self_test",
}


def main() -> None:
    """Do the job on standard input, and say on standard output how it went."""
    job: dict[str, Any] = json.load(sys.stdin)
    # In an empty environment decord misses PATH, and OpenBLAS would start a thread, which would stay outside the walls.
    os.environ.update(PATH="", OPENBLAS_NUM_THREADS="1")
    worker = import_module(_WORKERS[job["worker"]])
    from pipelines.ingest import sandbox, wire

    os.environ.clear()
    os.chdir("/")
    walls = sandbox.enter_sandbox(
        Path(job["path"]), memory_bytes=job["memory_bytes"], cpu_s=job["cpu_s"], parent=job["parent"]
    )
    wire.send_json(wire.Kind.SANDBOX, vars(walls))
    try:
        worker.run(job)
        wire.send(wire.Kind.END)
    except UnsupportedVideo as error:
        wire.send_text(wire.Kind.UNSUPPORTED, error.message)
    except VideoTooLarge as error:
        wire.send_text(wire.Kind.TOO_LARGE, error.message)
    except MemoryError:
        wire.send_text(
            wire.Kind.TOO_LARGE, f"Decoding takes more memory than the limit of {job['memory_bytes']} bytes."
        )
    except wire.BackendFailed as error:
        wire.send_text(wire.Kind.BACKEND_FAILED, str(error))


if __name__ == "__main__":
    main()
