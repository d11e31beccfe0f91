"""What this machine is, what it can do at most, and how much memory a run takes of it."""

import ctypes
import gc
import os
import platform
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers

from tests.bench.rounds import alternating

REPEATS = 5
MATRIX = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the matrices whose product is the rate's measure."""
BUFFER = {"cpu": 1 << 29, "cuda": 1 << 32}
"""Bytes read to measure bandwidth: far more than any cache holds."""


def described(device: str) -> dict[str, str]:
    """What a figure must be read with."""
    hardware = torch.cuda.get_device_name(device) if device.startswith("cuda") else _cpu()
    return {
        "hardware": hardware,
        "cores": str(len(os.sched_getaffinity(0))),
        "threads": str(torch.get_num_threads()),
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product; of int8, with sums in int32."""
    side = MATRIX[torch.device(device).type]
    left, right = (torch.randn(side, side, device=device).mul(20).to(dtype) for _ in range(2))
    multiply = torch._int_mm if dtype == torch.int8 else torch.mm
    return 2 * side**3 / alternating(device, {"": lambda: multiply(left, right.T)}, REPEATS).median("")


def bandwidth(device: str) -> float:
    """Bytes a second of reading memory, or of copying it (each byte twice) where that is faster."""
    buffer = torch.zeros(BUFFER[torch.device(device).type] // 4, device=device)
    copy = torch.empty_like(buffer)
    rounds = alternating(device, {"read": buffer.sum, "copy": lambda: copy.copy_(buffer)}, REPEATS)
    return max(buffer.nbytes / rounds.median("read"), 2 * buffer.nbytes / rounds.median("copy"))


def free_bytes(device: str) -> int:
    """Memory that can still be taken."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def held_bytes(device: str) -> int:
    """Memory that this process holds: resident, or on the GPU what torch has taken of it."""
    if device.startswith("cuda"):
        return torch.cuda.memory_reserved(device)
    return _kilobytes(Path("/proc/self/status"), "VmRSS")


def peak_bytes(device: str, run: Callable[[], object]) -> tuple[int, int]:
    """Most memory held while a run lasts, and how much more that is than before it."""
    _let_go()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated(device)
    else:
        before = held_bytes(device)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest mark so far
        run()
        peak = _kilobytes(Path("/proc/self/status"), "VmHWM")
    return peak, peak - before


def _let_go() -> None:
    """Give back what is freed: glibc keeps it, and a later run would find its memory there already."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _kilobytes(file: Path, name: str) -> int:
    [line] = [line for line in file.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def _cpu() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def _commit() -> str:
    """Of the working tree, marked where it differs from that."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "not in a repository"
    return found.stdout.strip()
