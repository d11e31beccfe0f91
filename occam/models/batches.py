"""Views through a vision tower: each chunk as a batch of its own, or in batches of a fixed number that chunks share.

What a view becomes depends on how many its batch has, for that chooses the kernels, and neither on the others nor on
its place among them (section gpu of the benchmarks checks that on a device). So with a fixed number a chunk's tokens
are the same bit for bit whoever shares its batches, and these can be recorded.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from occam.config import EngineConfig
from occam.errors import InvalidInput
from occam.models.base import TowerOutput
from occam.models.recording import CudaGraphs, Record
from occam.types import MediaKind

_LOG = logging.getLogger(__name__)

Encode = Callable[[Tensor], TowerOutput]
"""Pixels [V, ...] of V views through the tower."""

OFTEN = 16
"""Batches of one kind before it is recorded, which takes as long as three: users send frames of any size."""
RECORDINGS = 16
MOST_BYTES = 2 << 30
"""Kept at most, and of the pixels and features that these hold."""


@dataclass(frozen=True)
class _Recording:
    pixels: Tensor
    run: Callable[[], TowerOutput]
    nbytes: int


class Batches:
    """Runs chunks through a tower; one thread at a time.

    failures: recordings that could not be made, whose batches are run launch by launch
    """

    def __init__(
        self, views: int = 0, record: Record | None = None, media: Sequence[MediaKind] = ("video", "image")
    ) -> None:
        """views: of every batch, the last filled up with blank ones; 0 where each chunk is one of its own.

        record: where batches of a fixed number are recorded once their kind has come often
        media: what shares batches
        """
        self.failures = 0
        self._views = views
        self._media = media
        self._record = record
        self._uses: Counter[Hashable] = Counter()
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()

    def views(self, media: MediaKind) -> int:
        """Of every batch of such chunks; 0 where each of them is one of its own."""
        return self._views if media in self._media else 0

    def __call__(self, media: MediaKind, encode: Encode, chunks: Sequence[Tensor], kind: Hashable) -> list[TowerOutput]:
        """What the tower gives of each chunk's pixels [V, ...], all of one shape but for V.

        kind: stands for `encode`: batches of one kind and shape have the same done to their pixels
        """
        size = self.views(media)
        if not size:
            return [encode(chunk) for chunk in chunks]
        shape, pixels = (kind, chunks[0].shape[1:]), torch.cat(list(chunks))
        outputs = [self._batch(encode, pixels[at : at + size], shape) for at in range(0, len(pixels), size)]
        whole = _combined(outputs, lambda tensors: torch.cat(list(tensors)))
        ends = list(accumulate(len(chunk) for chunk in chunks))
        return [_views(whole, start, end) for start, end in pairwise([0, *ends])]

    def _batch(self, encode: Encode, pixels: Tensor, shape: Hashable) -> TowerOutput:
        """One batch, without its blank views."""
        count, padded = len(pixels), pixels
        if count < self._views:
            padded = pixels.new_zeros(self._views, *pixels.shape[1:])
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
            run = self._record(lambda: encode(held))
        except RuntimeError as error:
            self._failed(error)
            return None
        self._recordings[shape] = _Recording(held, run, held.nbytes + _nbytes(run()))
        while len(self._recordings) > RECORDINGS or sum(each.nbytes for each in self._recordings.values()) > MOST_BYTES:
            self._recordings.popitem(last=False)
        if shape in self._recordings:
            del self._uses[shape]  # lest it be recorded again, where it alone is too large
        return self._recordings.get(shape)

    def _failed(self, error: RuntimeError) -> None:
        """Go on without; where memory is not what was lacking, without any further recording."""
        _LOG.warning("A batch of the tower cannot be recorded and is run launch by launch: %s", error)
        self.failures += 1
        if not isinstance(error, torch.OutOfMemoryError):
            self._record = None  # an allocator that was left in the middle of a recording takes no other


def batches_of(config: EngineConfig, group: int) -> Batches:
    """Of `batch_views`, or where that is 0: on a GPU of a video's chunk, an image by itself; on a CPU chunk by chunk.

    On a GPU they are recorded. On a CPU a tower of real size takes as long for a view in any company, and for a blank
    one too; there and of an image a batch would be mostly blank. group: frames of a view; InvalidInput for less than 0
    """
    if config.batch_views < 0:
        raise InvalidInput(f"batch_views must be 0 or more, got {config.batch_views}.", "batch_views")
    device = torch.device(config.device)
    record = CudaGraphs(device) if device.type == "cuda" else None
    if config.batch_views or record is None:
        return Batches(config.batch_views, record)
    return Batches(config.chunk_frames // group, record, media=("video",))


def _nbytes(output: TowerOutput) -> int:
    single = (output.scores, output.register_scores, output.features, output.register, output.keys)
    held = (*single, *output.planes, *output.register_planes)
    return sum(tensor.nbytes for tensor in held if tensor is not None)


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
