"""Views through a vision tower: each chunk as a batch of its own, or in batches of a fixed number that chunks share.

What a view becomes depends on how many its batch has, for that chooses the kernels, and on nothing of the others. So
with a fixed number a chunk's tokens are the same bit for bit whoever shares its batches, and these can be recorded.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from occam.config import EngineConfig
from occam.models.base import TowerOutput
from occam.models.recording import CudaGraphs, Record

_LOG = logging.getLogger(__name__)

Encode = Callable[[Tensor], TowerOutput]
"""Pixels [V, ...] of V views through the tower."""

OFTEN = 8
"""Batches of one kind before it is recorded, which takes as long as three: users send frames of any size."""
RECORDINGS = 16
"""Kept at most; each holds pixels and features of one batch."""


@dataclass(frozen=True)
class _Recording:
    pixels: Tensor
    run: Callable[[], TowerOutput]


class Batches:
    """Runs chunks through a tower; one thread at a time.

    views: of every batch, the last filled up with blank ones; 0 where each chunk is one of its own
    failures: recordings that could not be made, whose batches are run launch by launch
    """

    def __init__(self, views: int = 0, record: Record | None = None) -> None:
        """record: where batches of a fixed number are recorded once their kind has come often."""
        self.views = views
        self.failures = 0
        self._record = record
        self._uses: Counter[Hashable] = Counter()
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()

    def __call__(self, encode: Encode, chunks: Sequence[Tensor], kind: Hashable) -> list[TowerOutput]:
        """What the tower gives of each chunk's pixels [V, ...], all of one shape but for V.

        kind: stands for `encode`: batches of one kind and shape have the same done to their pixels
        """
        if not self.views:
            return [encode(chunk) for chunk in chunks]
        shape = (kind, chunks[0].shape[1:])
        pixels, size = torch.cat(list(chunks)), self.views
        outputs = [self._batch(encode, pixels[at : at + size], shape) for at in range(0, len(pixels), size)]
        whole = _combined(outputs, lambda tensors: torch.cat(list(tensors)))
        ends = list(accumulate(len(chunk) for chunk in chunks))
        return [_views(whole, start, end) for start, end in pairwise([0, *ends])]

    def _batch(self, encode: Encode, pixels: Tensor, shape: Hashable) -> TowerOutput:
        """One batch, without its blank views."""
        count, padded = len(pixels), pixels
        if count < self.views:
            padded = pixels.new_zeros(self.views, *pixels.shape[1:])
            padded[:count] = pixels
        recording = self._recorded(encode, padded, shape)
        if recording is None:
            return _views(encode(padded), 0, count)
        recording.pixels.copy_(padded)
        # The next batch overwrites what this one gives.
        return _combined([_views(recording.run(), 0, count)], lambda tensors: tensors[0].clone())

    def _recorded(self, encode: Encode, pixels: Tensor, shape: Hashable) -> _Recording | None:
        """None for a batch that is not recorded: its kind came seldom so far, or recording it failed once."""
        if shape in self._recordings:
            self._recordings.move_to_end(shape)
            return self._recordings[shape]
        self._uses[shape] += 1
        if self._record is None or self._uses[shape] != OFTEN:
            return None
        held = pixels.clone()
        try:
            recording = _Recording(held, self._record(lambda: encode(held)))
        except RuntimeError as error:
            _LOG.warning("A batch of the tower cannot be recorded and is run launch by launch: %s", error)
            self.failures += 1
            return None
        del self._uses[shape]
        self._recordings[shape] = recording
        if len(self._recordings) > RECORDINGS:
            self._recordings.popitem(last=False)
        return recording


def batches_of(config: EngineConfig, group: int) -> Batches:
    """Of `batch_views`, or where that is 0: on a GPU, where they are recorded, of a chunk's; on a CPU chunk by chunk.

    A CPU takes as long for a view in any company, and for a blank one too. group: frames of a view
    """
    if torch.device(config.device).type != "cuda":
        return Batches(config.batch_views)
    return Batches(config.batch_views or config.chunk_frames // group, CudaGraphs())


def _views(output: TowerOutput, start: int, end: int) -> TowerOutput:
    return _combined([output], lambda tensors: tensors[0][start:end])


def _combined(outputs: Sequence[TowerOutput], combine: Callable[[Sequence[Tensor]], Tensor]) -> TowerOutput:
    """One output of several, tensor by tensor; what the tower does not give is not there either."""

    def each(tensors: Sequence[Tensor | None]) -> Tensor | None:
        there = [tensor for tensor in tensors if tensor is not None]
        return combine(there) if there else None

    return TowerOutput(
        scores=combine([output.scores for output in outputs]),
        register_scores=each([output.register_scores for output in outputs]),
        features=combine([output.features for output in outputs]),
        register=each([output.register for output in outputs]),
        planes=tuple(combine(level) for level in zip(*(output.planes for output in outputs), strict=True)),
        register_planes=tuple(
            combine(level) for level in zip(*(output.register_planes for output in outputs), strict=True)
        ),
        keys=each([output.keys for output in outputs]),
    )
