"""PrefixState <-> bytes: a small manifest, and the tensors as one buffer cut into parts.

Over wire `exact` a state comes back bit for bit. Over `int8` keys, values, hidden and planes come back approximately
(`occam/kv/int8.py`), all else bit for bit, and the state says so; one that is not finite has no scale and goes exactly.

The manifest holds dimensions, not shapes: every tensor's dtype, shape and place in the buffer follows from them, so
bytes from outside have no layout of their own to bring. It is JSON under its own checksum, and each part is named by
its checksum, so the parts of two writers never mix. Nothing is unpickled.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from itertools import accumulate, pairwise
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from occam.config import Wire
from occam.errors import CorruptState
from occam.kv import int8
from occam.tensors import PrefixState

CODEC_VERSION = 4
PART_BYTES = 4 << 20

Part = bytes | memoryview

# Torch's own alignment on the CPU: kernels may sum in another order where data lies otherwise, and cost the last bit.
_ALIGNMENT = 64
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_INTEGER = 1 << 24
_MAX_LAYERS = 1024
_MAX_GRID = 4096
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CHECKSUM = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the parts of one encoded state are: its dimensions, its scalars, and the checksum of every part.

    dtype: of keys, values, hidden and planes; tokens N, axes A, layers l, heads H_kv, head_dim D, width C, views V,
    levels (DeepStack's), planes (those of them above the cut): the dimensions that `PrefixState` names; the other
    integers are its scalars; approximate: whether it was before it was encoded; parts: checksums in order
    """

    version: int = CODEC_VERSION
    wire: Wire
    dtype: str
    tokens: int
    axes: int
    layers: int
    heads: int
    head_dim: int
    width: int
    views: int
    levels: int
    planes: int
    register_count: int
    next_position: int
    encoded: int
    turns: int
    approximate: bool
    parts: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts together."""
        return _offsets(_slots(self))[-1]

    @property
    def part_sizes(self) -> tuple[int, ...]:
        """Bytes of each part: `PART_BYTES`, the last one what remains."""
        whole, rest = divmod(self.nbytes, PART_BYTES)
        return (PART_BYTES,) * whole + ((rest,) if rest else ())

    def to_bytes(self) -> bytes:
        """The manifest as a checksum line and one line of JSON."""
        body = json.dumps(asdict(self), separators=(",", ":")).encode()
        return f"{_checksum(body)}\n".encode() + body

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Manifest":
        """The manifest in `raw`, every field checked; raises CorruptState."""
        if len(raw) > _MAX_MANIFEST_BYTES:
            raise CorruptState(f"The manifest has {len(raw)} bytes; at most {_MAX_MANIFEST_BYTES} are read.")
        checksum, _, body = raw.partition(b"\n")
        if checksum != _checksum(body).encode():
            raise CorruptState("The manifest does not match its checksum.")
        try:
            values = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise CorruptState("The manifest is not JSON.") from error
        return _validated(values)


def describe(state: PrefixState, wire: Wire = "exact") -> Manifest:
    """The manifest of `state` before its parts have checksums; its `nbytes` is what encoding will take."""
    shape = asdict(state.shape)
    dtype = str(shape.pop("dtype")).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(f"hidden must be one of {', '.join(_DTYPES)}, got {dtype}")
    return Manifest(
        **shape,
        wire=wire if wire == "exact" or _is_finite(state) else "exact",
        dtype=dtype,
        tokens=len(state),
        views=state.view_pts.shape[0],
        register_count=state.register_count,
        next_position=state.next_position,
        encoded=state.encoded,
        turns=state.turns,
        approximate=state.approximate,
        parts=(),
    )


def encode(state: PrefixState, wire: Wire = "exact") -> tuple[Manifest, list[memoryview]]:
    """The manifest of `state` and its parts, views of one buffer; raises ValueError on a state it cannot hold."""
    manifest = describe(state, wire)
    buffer = torch.zeros(manifest.nbytes, dtype=torch.uint8)
    views = _views(manifest, buffer)
    for slot in _slots(replace(manifest, wire="exact")):
        tensor = _tensor(state, slot)
        if tensor.dtype != slot.dtype or tensor.shape != slot.shape:
            raise ValueError(
                f"{slot.name} must be {slot.dtype} {list(slot.shape)}, got {tensor.dtype} {list(tensor.shape)}"
            )
        int8.store(views, slot.name, tensor)
    parts = _cut(buffer, manifest.part_sizes)
    return replace(manifest, parts=tuple(_checksum(part) for part in parts)), parts


def decode(manifest: Manifest, parts: Sequence[Part]) -> PrefixState:
    """The state in `parts`, on the CPU, in its own dtype, every bit checked; raises CorruptState."""
    reader = Reader(manifest)
    for index, part in enumerate(parts):
        reader.take(index, part)
    return reader.state()


class Reader:
    """One encoded state as its parts come: each lies at once in the buffer that becomes the tensors.

    places: where the bytes of each part go, for whoever can read straight into them
    """

    def __init__(self, manifest: Manifest) -> None:
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

    def state(self) -> PrefixState:
        """The state, on the CPU, in its own dtype; raises CorruptState unless every part is there and was checked."""
        manifest = self._manifest
        if self._unchecked:
            raise CorruptState(f"{len(self._unchecked)} of {len(self.places)} parts are missing.")
        views, slots = _views(manifest, self._buffer), _slots(replace(manifest, wire="exact"))
        tensors = {slot.name: int8.load(views, slot.name, slot.dtype) for slot in slots}
        _check_indices(tensors["view"], tensors["patch"], tensors["view_grid"])
        return PrefixState(
            keys=tuple(tensors.pop(f"keys.{layer}") for layer in range(manifest.layers)),
            values=tuple(tensors.pop(f"values.{layer}") for layer in range(manifest.layers)),
            planes=tuple(tensors.pop(f"planes.{level}") for level in range(manifest.planes)),
            register_count=manifest.register_count,
            next_position=manifest.next_position,
            encoded=manifest.encoded,
            turns=manifest.turns,
            approximate=manifest.approximate or manifest.wire != "exact",
            **tensors,
        )


class _Slot(NamedTuple):
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _slots(manifest: Manifest) -> list[_Slot]:
    """Every tensor of the buffer in its order; over wire `exact` they are the state's own."""
    tokens = manifest.tokens
    row, layer = (tokens, manifest.width), (manifest.heads, tokens, manifest.head_dim)
    wide = [
        ("hidden", row),
        *((f"planes.{level}", row) for level in range(manifest.planes)),
        *((f"{kind}.{index}", layer) for index in range(manifest.layers) for kind in ("keys", "values")),
    ]
    return [
        _Slot("ids", torch.int64, (tokens,)),
        _Slot("positions", torch.int64, (manifest.axes, tokens)),
        _Slot("view", torch.int64, (tokens,)),
        _Slot("patch", torch.int64, (tokens,)),
        _Slot("view_medium", torch.int64, (manifest.views,)),
        _Slot("view_pts", torch.float64, (manifest.views,)),
        _Slot("view_index", torch.int64, (manifest.views,)),
        _Slot("view_grid", torch.int64, (manifest.views, 2)),
        _Slot("register_sum", torch.float32, (1 + manifest.levels, manifest.width)),
        *(slot for name, shape in wide for slot in _wired(manifest, name, shape)),
    ]


def _wired(manifest: Manifest, name: str, shape: tuple[int, ...]) -> list[_Slot]:
    """What the wire makes of one of the wide tensors."""
    if manifest.wire == "exact":
        return [_Slot(name, _DTYPES[manifest.dtype], shape)]
    return [_Slot(name, torch.int8, shape), _Slot(name + int8.SCALES, torch.float32, (*shape[:-1], 1))]


def _is_finite(state: PrefixState) -> bool:
    return all(map(int8.is_finite, (state.hidden, *state.planes, *state.keys, *state.values)))


def _tensor(state: PrefixState, slot: _Slot) -> Tensor:
    name, _, layer = slot.name.partition(".")
    value = getattr(state, name)
    tensor: Tensor = value[int(layer)] if layer else value
    return tensor


def _offsets(slots: Sequence[_Slot]) -> list[int]:
    """Where each slot starts, and behind the last one where the buffer ends."""
    return list(accumulate((_aligned(slot.nbytes) for slot in slots), initial=0))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _views(manifest: Manifest, buffer: Tensor) -> dict[str, Tensor]:
    """The slots of `buffer` by name, as tensors that share its memory."""
    slots = _slots(manifest)
    return {
        slot.name: buffer[start : start + slot.nbytes].view(slot.dtype).view(slot.shape)
        for start, slot in zip(_offsets(slots), slots, strict=False)
    }


def _cut(buffer: Tensor, sizes: Sequence[int]) -> list[memoryview]:
    """`buffer` as writable views of `sizes` bytes, one behind the other."""
    whole = buffer.numpy().data
    return [whole[start:stop] for start, stop in pairwise(accumulate(sizes, initial=0))]


def _checksum(data: Part) -> str:
    return blake2b(data, digest_size=32).hexdigest()


def _validated(values: object) -> Manifest:
    """The manifest that parsed JSON describes; raises CorruptState on any field out of its range."""
    if not isinstance(values, dict) or values.get("version") != CODEC_VERSION:
        raise CorruptState(f"The manifest is not one of version {CODEC_VERSION}.")
    if values.keys() != {field.name for field in fields(Manifest)}:
        raise CorruptState("The manifest does not have the fields of its version.")
    parts = values["parts"]
    for name, known in (("dtype", tuple(_DTYPES)), ("wire", get_args(Wire))):
        if values[name] not in known:
            raise CorruptState(f"The manifest's {name} is none of {', '.join(known)}.")
    if type(values["approximate"]) is not bool:
        raise CorruptState("The manifest's approximate is neither true nor false.")
    if not isinstance(parts, list) or not all(isinstance(part, str) and _CHECKSUM.fullmatch(part) for part in parts):
        raise CorruptState("The manifest's parts are not a list of checksums.")
    for name in values.keys() - {"parts", "dtype", "wire", "approximate"}:
        limit = _MAX_LAYERS if name in ("layers", "levels", "planes") else _MAX_INTEGER
        if type(values[name]) is not int or not 0 <= values[name] <= limit:
            raise CorruptState(f"The manifest's {name} is not an integer in 0..{limit}.")
    manifest = Manifest(**(values | {"parts": tuple(parts)}))
    if len(parts) != -(-manifest.nbytes // PART_BYTES):
        raise CorruptState(f"The manifest lists {len(parts)} parts for {manifest.nbytes} bytes.")
    return manifest


def _check_indices(view: Tensor, patch: Tensor, view_grid: Tensor) -> None:
    """Raises CorruptState where a token names a view or a patch that is not there: it would end a request later."""
    if bool(((view < -1) | (view >= len(view_grid))).any()):
        raise CorruptState(f"A token names a view outside -1..{len(view_grid) - 1}.")
    if bool(((view_grid < 1) | (view_grid > _MAX_GRID)).any()):
        raise CorruptState(f"A view's grid is outside 1..{_MAX_GRID}.")
    patches = torch.where(view < 0, 0, view_grid.prod(dim=1)[view.clamp_min(0)]) if len(view_grid) else 0
    if bool(((patch < -1) | (patch >= patches)).any()):
        raise CorruptState("A token names a patch outside its view's grid.")
