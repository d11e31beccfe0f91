"""A running service looked at by the process that started it: what its replicas are at, and what they hold."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ray import serve

from services.app import APP_NAME
from services.running import Running

_REPLICA = f"ray::ServeReplica:{APP_NAME}:"
_CHILD = "pipelines.ingest.child"


def running(models: Sequence[str]) -> dict[str, list[Running]]:
    """What every replica is at, by deployment."""
    deployments = ["decoder", *(f"worker-{model}" for model in models)]
    handles = {name: serve.get_deployment_handle(name, APP_NAME) for name in deployments}
    return {name: handle.broadcast("running").results() for name, handle in handles.items()}


def busy(models: Sequence[str]) -> list[str]:
    """What is under way and has not ended, in words: counts of the replicas, and processes that decode."""
    found = []
    for name, replicas in running(models).items():
        for replica in replicas:
            found += [f"{name}: {count} {kind}" for kind, count in replica.counts.items() if count]
            found += [f"{name}: process {pid} decodes" for pid in _decoding(replica.pid)]
    return found


def processes() -> dict[int, str]:
    """The deployments' processes, and which deployment each is of; of the service that this process has started."""
    found = list(_all())
    parents = {pid: parent for pid, parent, _ in found}

    def is_ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_ours(parents[pid]))

    return {
        pid: command.removeprefix(_REPLICA).strip()
        for pid, _, command in found
        if command.startswith(_REPLICA) and is_ours(pid)
    }


def held_bytes(pid: int) -> int:
    """Memory that a process holds, its share of what it has in common with others."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB$", rollup, re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def _decoding(pid: int) -> list[int]:
    """Processes of a decoder that read or decode a file."""
    return [child for child, parent, command in _all() if parent == pid and _CHILD in command]


def _all() -> Iterator[tuple[int, int, str]]:
    """(process, parent, command) of whatever runs, past what ends meanwhile."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = re.search(r"^PPid:\s+(\d+)$", (process / "status").read_text(), re.MULTILINE)
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent is not None:
            yield int(process.name), int(parent[1]), command
