"""What the child says on its pipe: fixed headers, raw bytes, and small JSON; nothing that could run in the reader.

The child reads a stranger's file, so its reader takes every field for hostile.
"""

import json
import os
import struct
import time
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

HEADER = struct.Struct("<Bqdq")  # kind, stamp, monotonic seconds, bytes that follow
MAX_TEXT_BYTES = 2048
_OUT = 1


class Kind(IntEnum):
    """Kinds of message."""

    SANDBOX = 1  # JSON: what is in force
    FACTS = 2  # JSON: what the container says
    STAMPS = 3  # int64 [N]: presentation stamps of all frames
    KEYS = 4  # int64 [K]: those of them that decoding can start from
    FRAME = 5  # uint8 [H, W, 3]; the header carries its stamp and when it was decoded
    REPORT = 6  # JSON: outcome of the self-test
    END = 7
    UNSUPPORTED = 8  # text for the user
    TOO_LARGE = 9  # text for the user
    BACKEND_FAILED = 10  # text for the log; another backend may do better
    HIDDEN = 11  # int64 [H]: stamps of stored frames that are not shown


class BackendFailed(Exception):
    """This backend cannot decode the video correctly; another may."""


def send(kind: Kind, body: bytes | memoryview = b"", stamp: int = 0) -> None:
    """Write one message on standard output, blocking while the reader is behind."""
    parts = [memoryview(HEADER.pack(kind, stamp, time.monotonic(), len(body))), memoryview(body)]
    for view in parts:
        while view:
            view = view[os.write(_OUT, view) :]


def send_json(kind: Kind, value: dict[str, Any]) -> None:
    """Write a message whose body is JSON."""
    send(kind, json.dumps(value).encode())


def send_text(kind: Kind, text: str) -> None:
    """Write a message whose body is a sentence, cut to what the reader accepts."""
    send(kind, text.encode()[:MAX_TEXT_BYTES])


def send_array(kind: Kind, array: npt.NDArray[np.uint8] | npt.NDArray[np.int64], stamp: int = 0) -> None:
    """Write a message whose body is an array's bytes in C order."""
    send(kind, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, stamp)
