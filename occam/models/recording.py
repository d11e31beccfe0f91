"""Runs over tensors that stay where they are, recorded once and replayed: on a GPU each a CUDA graph."""

from collections.abc import Callable
from typing import Protocol, TypeVar
from weakref import WeakSet

import torch

T = TypeVar("T")


class Record(Protocol):
    """Makes of a run another that does the same on the same tensors; what it returns may be overwritten by the next."""

    def __call__(self, run: Callable[[], T], /) -> Callable[[], T]:
        """The run, recorded."""
        ...


class CudaGraphs:
    """Records runs on one device as CUDA graphs, which share the memory they work in as long as any of them lives."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._living: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        # One for all: whatever a library sets up for a stream stays until the process ends.
        self._beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, run: Callable[[], T], /) -> Callable[[], T]:
        """Run it beside first, for what is only done once; other threads may go on using the device meanwhile."""
        with torch.cuda.device(self._device):  # what is recorded is the work of the current one
            return self._recorded(run)

    def _recorded(self, run: Callable[[], T]) -> Callable[[], T]:
        # Memory that no graph holds any more is not to be opened again: the first one brings its own.
        graph, pool = torch.cuda.CUDAGraph(), next((other.pool() for other in self._living), None)
        before = torch.cuda.current_stream()
        self._beside.wait_stream(before)
        with torch.cuda.stream(self._beside):
            for _ in range(2):
                run()
            with torch.cuda.graph(graph, pool=pool, stream=self._beside, capture_error_mode="thread_local"):
                result = run()
        before.wait_stream(self._beside)
        self._living.add(graph)

        def replay() -> T:
            with torch.cuda.device(self._device):
                graph.replay()
            return result

        return replay
