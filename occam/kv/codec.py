"""PrefixState <-> bytes: a small manifest of dimensions, and the tensors as parts of one buffer.

Over wire `exact` a state comes back bit for bit. Over `int8` keys, values, hidden and planes come back approximately
(`occam/kv/int8.py`), all else bit for bit, and the state says so; one that is not finite has no scale and goes exactly.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from occam.config import Wire
from occam.errors import CorruptState
from occam.kv import int8, layout
from occam.kv.break_even import Offer
from occam.kv.layout import Codec, Part, Sealed, Slot
from occam.tensors import PrefixState

CODEC_VERSION = 4


@dataclass(frozen=True, kw_only=True)
class Manifest(Sealed):
    """What the parts of one encoded state are: its dimensions, its scalars, and the checksum of every part.

    dtype: of keys, values, hidden and planes; tokens N, axes A, layers l, heads H_kv, head_dim D, width C, views V,
    levels (DeepStack's), planes (those of them above the cut): the dimensions that `PrefixState` names; the other
    integers are its scalars; approximate: whether it was before it was encoded
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

    @property
    def offer(self) -> Offer:
        """The bytes of the state; those of its media's embeddings follow from its dimensions, text taken for media."""
        numbers = self.width * (1 + self.levels) * layout.DTYPES[self.dtype].itemsize
        indices = (3 + self.axes) * torch.int64.itemsize
        embeddings = self.tokens * (numbers + indices)
        return Offer(nbytes=self.nbytes, encoded=self.encoded, tokens=self.tokens, embeddings=embeddings)

    def slots(self) -> list[Slot]:
        """Every tensor of the buffer in its order; over wire `exact` they are the state's own."""
        tokens = self.tokens
        row, layer = (tokens, self.width), (self.heads, tokens, self.head_dim)
        wide = [
            ("hidden", row),
            *((f"planes.{level}", row) for level in range(self.planes)),
            *((f"{kind}.{index}", layer) for index in range(self.layers) for kind in ("keys", "values")),
        ]
        return [
            Slot("ids", torch.int64, (tokens,)),
            Slot("positions", torch.int64, (self.axes, tokens)),
            Slot("view", torch.int64, (tokens,)),
            Slot("patch", torch.int64, (tokens,)),
            Slot("view_medium", torch.int64, (self.views,)),
            Slot("view_pts", torch.float64, (self.views,)),
            Slot("view_index", torch.int64, (self.views,)),
            Slot("view_grid", torch.int64, (self.views, 2)),
            Slot("register_sum", torch.float32, (1 + self.levels, self.width)),
            *(slot for name, shape in wide for slot in self._wired(name, shape)),
        ]

    @property
    def own_slots(self) -> list[Slot]:
        """Those of the state's own tensors, whatever the wire makes of them."""
        return replace(self, wire="exact").slots()

    def _wired(self, name: str, shape: tuple[int, ...]) -> list[Slot]:
        """What the wire makes of one of the wide tensors."""
        if self.wire == "exact":
            return [Slot(name, layout.DTYPES[self.dtype], shape)]
        return [Slot(name, torch.int8, shape), Slot(name + int8.SCALES, torch.float32, (*shape[:-1], 1))]

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Manifest":
        """The manifest in `raw`, every field checked; raises CorruptState."""
        values = layout.opened(cls, CODEC_VERSION, raw)
        layout.check_choice("dtype", values["dtype"], layout.DTYPES)
        layout.check_choice("wire", values["wire"], get_args(Wire))
        if type(values["approximate"]) is not bool:
            raise CorruptState("The manifest's approximate is neither true nor false.")
        for name in values.keys() - {"parts", "dtype", "wire", "approximate"}:
            limit = layout.MAX_LAYERS if name in ("layers", "levels", "planes") else layout.MAX_INTEGER
            layout.check_integer(name, values[name], limit)
        manifest = cls(**values)
        layout.check_parts(manifest)
        return manifest


def describe(state: PrefixState, wire: Wire = "exact") -> Manifest:
    """The manifest of `state` before its parts have checksums; its `nbytes` is what encoding will take."""
    shape = asdict(state.shape)
    return Manifest(
        **shape | {"dtype": layout.dtype_name(state.shape.dtype, "hidden")},
        wire=wire if wire == "exact" or _is_finite(state) else "exact",
        tokens=len(state),
        views=state.view_pts.shape[0],
        register_count=state.register_count,
        next_position=state.next_position,
        encoded=state.encoded,
        turns=state.turns,
        approximate=state.approximate,
    )


def encode(state: PrefixState, wire: Wire = "exact") -> tuple[Manifest, list[memoryview]]:
    """The manifest of `state` and its parts, views of one buffer; raises ValueError on a state it cannot hold."""
    manifest = describe(state, wire)
    slots = manifest.slots()
    names = {slot.name for slot in slots}
    tensors: dict[str, Tensor] = {}
    for slot in manifest.own_slots:
        tensor = _tensor(state, slot.name)
        layout.check_fits(slot, tensor)
        tensors |= int8.sent(slot.name, tensor) if slot.name + int8.SCALES in names else {slot.name: tensor}
    checksums, parts = layout.pack(slots, tensors)
    return replace(manifest, parts=checksums), parts


def decode(manifest: Manifest, parts: Sequence[Part]) -> PrefixState:
    """The state in `parts`, on the CPU, in its own dtype, every bit checked; raises CorruptState."""
    return assembled(manifest, layout.unpack(manifest, parts))


def assembled(manifest: Manifest, sent: dict[str, Tensor]) -> PrefixState:
    """The state of the tensors that came over the wire; raises CorruptState where a token names what is not there."""
    tensors = {slot.name: int8.received(sent, slot.name, slot.dtype) for slot in manifest.own_slots}
    layout.check_indices(tensors["view"], tensors["patch"], tensors["view_grid"])
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


STATES = Codec(read=Manifest.from_bytes, describe=describe, encode=encode, assembled=assembled)


def _is_finite(state: PrefixState) -> bool:
    return all(map(int8.is_finite, (state.hidden, *state.planes, *state.keys, *state.values)))


def _tensor(state: PrefixState, slot: str) -> Tensor:
    name, _, layer = slot.partition(".")
    value = getattr(state, name)
    tensor: Tensor = value[int(layer)] if layer else value
    return tensor
