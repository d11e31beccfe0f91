"""The walls round a process that reads a stranger's file: resource limits, namespaces, Landlock, seccomp.

`enter_sandbox` is the one place where a wall that the host does not have is gone without, and says so in its `Sandbox`.
Libraries are imported before, while the process is still trusted and has one thread: Landlock binds the calling thread
and those it starts. Source: landlock(7), seccomp(2), unshare(2).
"""

import ctypes
import math
import os
import resource
import signal
import struct
from dataclasses import dataclass
from pathlib import Path

from pipelines.ingest import seccomp

_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION, _LANDLOCK_RULE_PATH_BENEATH = 1, 1
_LANDLOCK_READ_FILE = 1 << 2
_LANDLOCK_FS_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}  # rights that an ABI knows; 16 from ABI 5 on
_LANDLOCK_NET_RIGHTS, _LANDLOCK_SCOPES = 0b11, 0b11  # TCP bind and connect (ABI 4); abstract sockets, signals (ABI 6)
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_OPEN_FILES, _THREADS, _WRITTEN_BYTES = 16, 64, 1 << 16


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """Which walls stand.

    landlock: ABI of Landlock, 0 where the kernel has none: then other files can be read
    seccomp: system calls are filtered: no sockets, processes, signals, or writing opens
    namespaces: own user, network and IPC namespaces: no network and no capabilities
    """

    landlock: int
    seccomp: bool
    namespaces: bool

    @property
    def missing(self) -> tuple[str, ...]:
        """Names of the walls that the host does not have."""
        return tuple(name for name, value in vars(self).items() if not value)


def enter_sandbox(video: Path, *, memory_bytes: int, cpu_s: float, parent: int) -> Sandbox:
    """Shut this process in for good: it may read `video`, use its open descriptors, start threads, and nothing else.

    It ends with `parent`, the process that started it.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("a thread that is already running would stay outside the sandbox")
    libc = ctypes.CDLL(None, use_errno=True)
    namespaces = libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise RuntimeError("the parent has died")
    _limit_resources(memory_bytes, math.ceil(cpu_s), own_user_namespace=namespaces)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    landlock = _restrict_files(libc, video)
    return Sandbox(landlock=landlock, seccomp=seccomp.install(), namespaces=namespaces)


def _limit_resources(memory_bytes: int, cpu_s: int, *, own_user_namespace: bool) -> None:
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: _WRITTEN_BYTES,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_CORE: 0,
    }
    if own_user_namespace:  # elsewhere the limit would count the whole service's threads
        limits[resource.RLIMIT_NPROC] = _THREADS
    for name, wanted in limits.items():
        hard = resource.getrlimit(name)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(name, (value, value))


def _restrict_files(libc: ctypes.CDLL, video: Path) -> int:
    abi = libc.syscall(_SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION)
    if abi < 1:
        return 0
    fields = [(1 << _LANDLOCK_FS_RIGHTS.get(abi, 16)) - 1]
    if abi >= 4:
        fields.append(_LANDLOCK_NET_RIGHTS)
    if abi >= 6:
        fields.append(_LANDLOCK_SCOPES)
    handled = struct.pack(f"<{len(fields)}Q", *fields)
    ruleset = libc.syscall(_SYS_LANDLOCK_CREATE, handled, ctypes.c_size_t(len(handled)), 0)
    file = os.open(video, os.O_PATH | os.O_CLOEXEC)
    rule = struct.pack("<Qi", _LANDLOCK_READ_FILE, file)
    added = libc.syscall(_SYS_LANDLOCK_ADD, ruleset, _LANDLOCK_RULE_PATH_BENEATH, rule, 0)
    restricted = libc.syscall(_SYS_LANDLOCK_RESTRICT, ruleset, 0)
    os.close(file)
    os.close(ruleset)
    return int(abi) if added == restricted == 0 else 0
