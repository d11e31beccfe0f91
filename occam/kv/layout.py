"""What the codecs share: tensors of known shapes in one buffer that is cut into parts, and manifests that seal them.

A manifest holds dimensions, not shapes: every tensor's dtype, shape and place in the buffer follows from them, so
bytes from outside have no layout of their own to bring. It is JSON under its own checksum, and each part is named by
its checksum, so the parts of two writers never mix. Nothing is unpickled.
"""

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate, pairwise
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from occam.config import Wire
from occam.errors import CorruptState
from occam.kv.break_even import Offer

PART_BYTES = 4 << 20
MAX_INTEGER = 1 << 24
MAX_LAYERS = 1024
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Part = bytes | memoryview

# Torch's own alignment on the CPU: kernels may sum in another order where data lies otherwise, and cost the last bit.
_ALIGNMENT = 64
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_GRID = 4096
_CHECKSUM = re.compile("[0-9a-f]{64}")


class Slot(NamedTuple):
    """A tensor's place in the buffer, by what fills it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Sealed(ABC):
    """What every manifest has: the names of its parts, and what follows from its dimensions.

    parts: checksums in order; empty before there are any
    """

    parts: tuple[str, ...] = ()

    @abstractmethod
    def slots(self) -> list[Slot]:
        """Every tensor in the order of the buffer."""

    @property
    @abstractmethod
    def offer(self) -> Offer:
        """What fetching the entry costs and spares."""

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all parts together."""
        return _offsets(self.slots())[-1]

    @property
    def part_sizes(self) -> tuple[int, ...]:
        """Bytes of each part: `PART_BYTES`, the last one what remains."""
        whole, rest = divmod(self.nbytes, PART_BYTES)
        return (PART_BYTES,) * whole + ((rest,) if rest else ())

    def to_bytes(self) -> bytes:
        """The manifest as a checksum line and one line of JSON."""
        body = json.dumps(asdict(self), separators=(",", ":")).encode()
        return f"{_checksum(body)}\n".encode() + body


M = TypeVar("M", bound=Sealed)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Codec(Generic[M, T]):
    """How values of one kind become entries of a tier and come back.

    read: the manifest in bytes, every field checked, or CorruptState; describe: that of a value for a wire, whose parts
    have no checksums yet; encode: the manifest and its parts; assembled: the value of a `Reader`'s tensors, or
    CorruptState
    """

    read: Callable[[bytes], M]
    describe: Callable[[T, Wire], M]
    encode: Callable[[T, Wire], tuple[M, list[memoryview]]]
    assembled: Callable[[M, dict[str, Tensor]], T]


def opened(kind: type[Sealed], version: int, raw: bytes) -> dict[str, Any]:
    """The fields in `raw`, the manifest of that kind and version; only `version` and `parts` are checked already."""
    if len(raw) > _MAX_MANIFEST_BYTES:
        raise CorruptState(f"The manifest has {len(raw)} bytes; at most {_MAX_MANIFEST_BYTES} are read.")
    checksum, _, body = raw.partition(b"\n")
    if checksum != _checksum(body).encode():
        raise CorruptState("The manifest does not match its checksum.")
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CorruptState("The manifest is not JSON.") from error
    if not isinstance(values, dict) or type(values.get("version")) is not int or values["version"] != version:
        raise CorruptState(f"The manifest is not one of version {version}.")
    if values.keys() != {field.name for field in fields(kind)}:
        raise CorruptState("The manifest does not have the fields of its version.")
    parts = values["parts"]
    if not isinstance(parts, list) or not all(isinstance(part, str) and _CHECKSUM.fullmatch(part) for part in parts):
        raise CorruptState("The manifest's parts are not a list of checksums.")
    return values | {"parts": tuple(parts)}


def check_choice(name: str, value: object, known: Collection[str]) -> None:
    """CorruptState where it is none of these."""
    if not isinstance(value, str) or value not in known:
        raise CorruptState(f"The manifest's {name} is none of {', '.join(known)}.")


def check_integer(name: str, value: object, limit: int = MAX_INTEGER, least: int = 0) -> None:
    """CorruptState where it is none in least..limit."""
    if type(value) is not int or not least <= value <= limit:
        raise CorruptState(f"The manifest's {name} is not an integer in {least}..{limit}.")


def check_parts(manifest: Sealed) -> None:
    """CorruptState where it has not as many as its dimensions take."""
    if len(manifest.parts) != -(-manifest.nbytes // PART_BYTES):
        raise CorruptState(f"The manifest lists {len(manifest.parts)} parts for {manifest.nbytes} bytes.")


def check_indices(view: Tensor, patch: Tensor, view_grid: Tensor) -> None:
    """CorruptState where a token names a view or a patch that is not there: it would end a request later."""
    if bool(((view < -1) | (view >= len(view_grid))).any()):
        raise CorruptState(f"A token names a view outside -1..{len(view_grid) - 1}.")
    if bool(((view_grid < 1) | (view_grid > _MAX_GRID)).any()):
        raise CorruptState(f"A view's grid is outside 1..{_MAX_GRID}.")
    patches = torch.where(view < 0, 0, view_grid.prod(dim=1)[view.clamp_min(0)]) if len(view_grid) else 0
    if bool(((patch < -1) | (patch >= patches)).any()):
        raise CorruptState("A token names a patch outside its view's grid.")


def dtype_name(dtype: torch.dtype, of: str) -> str:
    """What manifests call it; ValueError where `of` cannot have it."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"{of} must be one of {', '.join(DTYPES)}, got {name}")
    return name


def check_fits(slot: Slot, tensor: Tensor) -> None:
    """ValueError where the tensor is none for its slot."""
    if tensor.dtype != slot.dtype or tensor.shape != slot.shape:
        raise ValueError(
            f"{slot.name} must be {slot.dtype} {list(slot.shape)}, got {tensor.dtype} {list(tensor.shape)}"
        )


def pack(slots: Sequence[Slot], tensors: Mapping[str, Tensor]) -> tuple[tuple[str, ...], list[memoryview]]:
    """Tensors by their slots' names as checksums and parts, views of one buffer; ValueError where one does not fit."""
    buffer = torch.zeros(_offsets(slots)[-1], dtype=torch.uint8)
    for slot, view in zip(slots, _views(slots, buffer), strict=True):
        check_fits(slot, tensors[slot.name])
        view.copy_(tensors[slot.name])
    whole = len(buffer)
    parts = _cut(buffer, [min(PART_BYTES, whole - start) for start in range(0, whole, PART_BYTES)])
    return tuple(_checksum(part) for part in parts), parts


class Reader:
    """One entry as its parts come: each lies at once in the buffer that becomes the tensors.

    places: where the bytes of each part go, for whoever can read straight into them
    """

    def __init__(self, manifest: Sealed) -> None:
        self._manifest = manifest
        self._buffer = torch.empty(manifest.nbytes, dtype=torch.uint8)
        self._unchecked = set(range(len(manifest.parts)))
        self.places = _cut(self._buffer, manifest.part_sizes)

    def take(self, index: int, part: Part) -> None:
        """Copy part `index` into its place; raises CorruptState unless these are its bytes."""
        if index >= len(self.places) or len(part) != len(self.places[index]):
            raise CorruptState(f"Part {index} of {len(part)} bytes does not have the sizes that the manifest gives.")
        self.places[index][:] = part
        self.check(index)

    def check(self, index: int) -> None:
        """Check the bytes that lie in place `index`; raises CorruptState."""
        if _checksum(self.places[index]) != self._manifest.parts[index]:
            raise CorruptState(f"Part {index} of {len(self.places)} does not match its checksum.")
        self._unchecked.discard(index)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their slots' names, on the CPU, contiguous and aligned; CorruptState where any is missing."""
        if self._unchecked:
            raise CorruptState(f"{len(self._unchecked)} of {len(self.places)} parts are missing.")
        slots = self._manifest.slots()
        return {slot.name: view for slot, view in zip(slots, _views(slots, self._buffer), strict=True)}


def unpack(manifest: Sealed, parts: Sequence[Part]) -> dict[str, Tensor]:
    """The tensors in the parts by name, every bit checked; raises CorruptState."""
    reader = Reader(manifest)
    for index, part in enumerate(parts):
        reader.take(index, part)
    return reader.tensors()


def _offsets(slots: Sequence[Slot]) -> list[int]:
    """Where each slot starts, and behind the last one where the buffer ends."""
    return list(accumulate((_aligned(slot.nbytes) for slot in slots), initial=0))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _views(slots: Sequence[Slot], buffer: Tensor) -> list[Tensor]:
    """The slots of `buffer` as tensors that share its memory."""
    return [
        buffer[start : start + slot.nbytes].view(slot.dtype).view(slot.shape)
        for start, slot in zip(_offsets(slots), slots, strict=False)
    ]


def _cut(buffer: Tensor, sizes: Sequence[int]) -> list[memoryview]:
    """`buffer` as writable views of `sizes` bytes, one behind the other."""
    whole = buffer.numpy().data
    return [whole[start:stop] for start, stop in pairwise(accumulate(sizes, initial=0))]


def _checksum(data: Part) -> str:
    return blake2b(data, digest_size=32).hexdigest()
