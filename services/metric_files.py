"""The numbers of all processes of a node, in files of one folder: who lives, what the dead counted, and the sums.

A process holds a lock on a file of its own for as long as it lives, so whoever shares the folder can tell, from another
container too, where process ids say nothing. The files are named by ids that never come again. What the dead counted is
merged into one file of each kind. The folder must be on a disk of the node: locks of network file systems may not hold.
"""

import fcntl
import json
import math
import os
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Literal, cast

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_Kind = Literal["counter", "gauge", "histogram"]
_Values = Mapping[tuple[_Kind, str], list[float]]
"""By kind and key, which is the library's JSON of [family, sample, labels, help], a value of each process."""

_KEPT: tuple[_Kind, ...] = ("counter", "histogram")  # of the dead; gauges are of the living
_RETIRED = "retired"
_GUARD, _JOURNAL = "guard", "journal"


class Identity:
    """The id under which this process counts in `directory`, taken on first use and anew after a fork."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._id, self._lock = "", -1
        os.register_at_fork(after_in_child=self._forget)

    def __call__(self) -> str:
        """See the class; the library asks before every count."""
        if not self._id:
            self._id, self._lock = _enter(self._directory)
        return self._id

    def _forget(self) -> None:
        """In a child that was forked: the lock is its parent's, and stays held there."""
        if self._id:
            os.close(self._lock)
            self._id = ""


def _enter(directory: Path) -> tuple[str, int]:
    """A fresh id, and the descriptor that holds its lock until this process ends."""
    directory.mkdir(parents=True, exist_ok=True)
    own = secrets.token_hex(8)
    entering = directory / f"{own}.entering"
    lock = os.open(entering, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Only now under its name: a lock that nobody holds is a dead process's.
    entering.rename(_lock_of(directory, own))
    return own, lock


def prepare(directory: Path) -> None:
    """Empty the node's folder; to be called before any process that counts is started."""
    with _alone(directory):
        for path in directory.iterdir():
            if path.name != _GUARD:
                path.unlink()


def render(directory: Path) -> bytes:
    """The numbers of all processes of the node, living and dead, in Prometheus' text format; OSError."""
    with _alone(directory):
        _compact(directory)
        values = _read(path for path in directory.glob("*_*.db"))
    registry = CollectorRegistry()
    registry.register(_Collected(values))
    return generate_latest(registry)


class _Collected(Collector):
    """Values as the library's families; buckets are kept as counted, and add up on their way out."""

    def __init__(self, values: _Values) -> None:
        self._values = values

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        families: dict[str, Metric] = {}
        buckets: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        for (kind, key), numbers in self._values.items():
            family, sample, labels, text = json.loads(key)
            metric = families.setdefault(family, Metric(family, text, kind))
            bound = labels.pop("le", None)
            if bound is None:
                metric.add_sample(sample, labels, math.fsum(numbers))
            else:
                buckets[family, json.dumps(labels)][bound] = math.fsum(numbers)
        for (family, named), counts in buckets.items():
            total, labels = 0.0, json.loads(named)
            for bound in sorted(counts, key=float):
                total += counts[bound]
                families[family].add_sample(f"{family}_bucket", {**labels, "le": bound}, total)
            families[family].add_sample(f"{family}_count", labels, total)
        return families.values()


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Until the context ends nobody else reads or compacts; the kernel lets go of it where a process is killed."""
    directory.mkdir(parents=True, exist_ok=True)
    guard = os.open(directory / _GUARD, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)
        yield
    finally:
        os.close(guard)


def _compact(directory: Path) -> None:
    """Merge what dead processes counted, and remove their files."""
    _finish(directory)
    owners = {path.stem.rpartition("_")[2] for path in (*directory.glob("*_*.db"), *directory.glob("*.lock"))}
    dead = [owner for owner in owners - {_RETIRED} if not _lives(directory, owner)]
    if not dead:
        return
    gone = [path for owner in dead for path in directory.glob(f"*_{owner}.db")]
    for kind in _KEPT:
        files = [path for path in gone if path.name.startswith(kind)]
        if files:
            retired = directory / f"{kind}_{_RETIRED}.db"
            _write(_read([*files, *([retired] if retired.exists() else [])]), retired.with_suffix(".merged"))
    written = directory / f"{_JOURNAL}.part"
    written.write_text("\n".join([*(path.name for path in gone), *(f"{owner}.lock" for owner in dead)]))
    # From here on the merged files count and the others do not, whoever comes to carry it out.
    written.rename(directory / _JOURNAL)
    _finish(directory)


def _finish(directory: Path) -> None:
    """Carry out a compaction that was decided on, and forget one that was not."""
    journal = directory / _JOURNAL
    if journal.exists():
        for merged in directory.glob("*.merged"):
            merged.rename(merged.with_suffix(".db"))
        for name in journal.read_text().splitlines():
            (directory / name).unlink(missing_ok=True)
        journal.unlink()
    for merged in directory.glob("*.merged"):
        merged.unlink()


def _lives(directory: Path, owner: str) -> bool:
    """Whether the process with that id holds its lock."""
    try:
        lock = os.open(_lock_of(directory, owner), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _lock_of(directory: Path, owner: str) -> Path:
    return directory / f"{owner}.lock"


def _read(paths: Iterable[Path]) -> _Values:
    values: dict[tuple[_Kind, str], list[float]] = defaultdict(list)
    for path in paths:
        if path.stat().st_size:  # a process that is just making it has nothing in it
            kind = cast(_Kind, path.name.partition("_")[0])
            for key, value, *_ in MmapedDict.read_all_values_from_file(path):  # type: ignore[no-untyped-call]
                values[kind, key].append(value)
    return values


def _write(values: _Values, path: Path) -> None:
    file = MmapedDict(str(path))  # type: ignore[no-untyped-call]
    for (_, key), numbers in values.items():
        file.write_value(key, _no_less(numbers), 0.0)  # type: ignore[no-untyped-call]
    file.close()  # type: ignore[no-untyped-call]


def _no_less(numbers: Iterable[float]) -> float:
    """The sum, rounded up: one that falls by its last bit is to Prometheus a counter that began anew."""
    exact = sum(map(Fraction, numbers), Fraction())
    rounded = float(exact)
    return rounded if Fraction(rounded) >= exact else math.nextafter(rounded, math.inf)
