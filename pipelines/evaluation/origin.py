"""Where and from what a measurement comes."""

import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A command, the hardware it ran on, the day, and the state of the code (`git describe`)."""

    command: str
    cores: int
    cpu: str
    date: str
    commit: str

    @classmethod
    def of(cls, command: str) -> "Origin":
        """Here and now."""
        return cls(
            command=command,
            cores=len(os.sched_getaffinity(0)),
            cpu=_cpu(),
            date=datetime.now(UTC).date().isoformat(),
            commit=_commit(),
        )

    def __str__(self) -> str:
        return f"`{self.command}`; {self.cores} cores of {self.cpu}; {self.date}; commit {self.commit}"


def _cpu() -> str:
    """The CPU's model, as Linux names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)  # noqa: S603
    return done.stdout.strip() or "unknown"
