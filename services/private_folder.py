"""A folder of this process alone that is gone after it, however the process ends."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

# Whoever still runs may be writing a file while the folder goes.
_WATCH = 'read -r _; until rm -rf "$1"; do sleep 1; done'


@contextmanager
def private_folder() -> Iterator[str]:
    """A fresh folder; a shell waits on a pipe that this process holds open, and removes it when the pipe closes."""
    folder = tempfile.mkdtemp(prefix="occam-")  # mode 0700
    # Its own session: a ^C on the terminal is for this process alone, which then ends in order.
    watch = subprocess.Popen(  # noqa: S603 - every word is ours
        ["/bin/sh", "-c", _WATCH, "sh", folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield folder
    finally:
        watch.communicate()
