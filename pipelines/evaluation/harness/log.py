"""The log of a run: a header line, then a line an answer, so that what was interrupted goes on where it stopped.

Each line is one write; whatever ends the process may tear the last one, and a torn last line is dropped.
"""

import fcntl
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from occam.errors import InvalidInput

Line = dict[str, Any]


class AnswerLog:
    """One run's log, open for writing by one process.

    run: what must be the same for two runs to be one; a log of another is refused, and InvalidInput says by what
    """

    def __init__(self, path: Path, run: Line) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._run: Line = json.loads(json.dumps(run))
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self._lines = self._read()
            self._check()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    @property
    def settings(self) -> list[Line] | None:
        """What the header says the strategies were set to; None in a log that has not begun."""
        return self._lines[0]["settings"] if self._lines else None

    @property
    def answers(self) -> list[Line]:
        """The lines that are answers."""
        return [line for line in self._lines[1:] if "text" in line]

    def begin(self, settings: list[Line]) -> None:
        """Write the header of a log that has not begun."""
        self.append({"run": self._run, "settings": settings})

    def append(self, line: Line) -> None:
        """Write one line, in one piece."""
        os.write(self._file, json.dumps(line).encode() + b"\n")
        self._lines.append(line)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InvalidInput(f"Another process is writing {self._path}.", "out") from None

    def _read(self) -> list[Line]:
        whole, _, torn = self._path.read_bytes().rpartition(b"\n")
        if torn:
            os.ftruncate(self._file, len(whole) + 1 if whole else 0)
        try:
            return [json.loads(line) for line in whole.split(b"\n") if line]
        except ValueError as error:
            raise InvalidInput(
                f"{self._path} is damaged before its last line; choose another folder.", "out"
            ) from error

    def _check(self) -> None:
        if not self._lines:
            return
        written = self._lines[0].get("run")
        if not isinstance(written, dict):
            raise InvalidInput(f"{self._path} is no log of answers; choose another folder.", "out")
        if other := [name for name in (self._run | written) if self._run.get(name) != written.get(name)]:
            raise InvalidInput(
                f"{self._path} is the log of a run with another {', '.join(other)}: "
                f"{_both(written.get(other[0]), self._run.get(other[0]))}. Choose another folder.",
                "out",
            )


def _both(written: object, wanted: object) -> str:
    return f"{str(written)[:80]} there, {str(wanted)[:80]} now"
