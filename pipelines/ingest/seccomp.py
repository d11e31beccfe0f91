"""A seccomp filter that leaves a process nothing but reading, memory and threads (x86-64).

Everything else fails with EPERM: sockets, exec, fork, signals, ptrace, opening to write, even a path's metadata.
Source: seccomp(2), linux/filter.h.
"""

import ctypes
import errno
import platform
import struct

_LOAD, _JUMP_EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_AUDIT_ARCH_X86_64 = 0xC000003E
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARGS = 0, 4, 16
_SYS_SECCOMP, _SET_MODE_FILTER, _TSYNC = 317, 1, 1

_ALLOWED = {
    **{"read": 0, "write": 1, "close": 3, "fstat": 5, "lseek": 8, "pread64": 17, "readv": 19, "writev": 20},
    **{"munmap": 11, "brk": 12, "mremap": 25, "madvise": 28, "membarrier": 324, "sched_yield": 24},
    **{"rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "sigaltstack": 131},
    **{"nanosleep": 35, "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "gettimeofday": 96},
    **{"getpid": 39, "gettid": 186, "getrusage": 98, "sched_getaffinity": 204, "getrandom": 318},
    **{"futex": 202, "set_robust_list": 273, "rseq": 334, "exit": 60, "exit_group": 231},
}
# name: (number, argument, mask, value): allowed iff argument & mask == value.
_ALLOWED_IF = {
    "mmap": (9, 2, 0x4, 0),  # never PROT_EXEC
    "mprotect": (10, 2, 0x4, 0),
    "clone": (56, 0, 0x10000, 0x10000),  # CLONE_THREAD: threads, not processes
    "fcntl": (72, 1, ~0x7 & 0xFFFFFFFF, 0),  # descriptor flags and locks, not F_SETOWN
    "openat": (257, 2, 0o1103, 0),  # O_RDONLY, neither O_CREAT nor O_TRUNC
    "newfstatat": (262, 3, 0x1000, 0x1000),  # AT_EMPTY_PATH: how glibc spells fstat
}
_CLONE3 = 435  # its flags lie behind a pointer; "not implemented" makes glibc use clone


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def install() -> bool:
    """Put the filter on all threads of this process for good; False where the machine or the kernel has no support.

    The caller has set no_new_privs.
    """
    if platform.machine() != "x86_64":
        return False
    program = _program()
    buffer = ctypes.create_string_buffer(program)
    descriptor = _Program(len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, _TSYNC, ctypes.byref(descriptor)) == 0)


def _program() -> bytes:
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    code = [
        (_LOAD, 0, 0, _OFFSET_ARCH),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _OFFSET_NUMBER),
        (_JUMP_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for number in _ALLOWED.values():
        code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for number, argument, mask, value in _ALLOWED_IF.values():
        code += [
            (_JUMP_EQUAL, 0, 5, number),
            (_LOAD, 0, 0, _OFFSET_ARGS + 8 * argument),
            (_AND, 0, 0, mask),
            (_JUMP_EQUAL, 0, 1, value),
            (_RETURN, 0, 0, _ALLOW),
            refuse,
        ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in [*code, refuse])
