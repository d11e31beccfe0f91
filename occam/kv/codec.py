"""PrefixState <-> bytes, bit for bit: a small manifest of dimensions, and the tensors as parts of one buffer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from occam.kv import layout
from occam.kv.break_even import Offer
from occam.kv.layout import Codec, Part, Sealed, Slot
from occam.tensors import PrefixState

CODEC_VERSION = 3


@dataclass(frozen=True, kw_only=True)
class Manifest(Sealed):
    """What the parts of one encoded state are: its dimensions, its scalars, and the checksum of every part.

    dtype: of keys, values, hidden and planes; tokens N, axes A, layers l, heads H_kv, head_dim D, width C, views V,
    levels (DeepStack's), planes (those of them above the cut): the dimensions that `PrefixState` names; the other
    integers are its scalars
    """

    version: int = CODEC_VERSION
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

    @property
    def offer(self) -> Offer:
        """The bytes of the state; those of its media's embeddings follow from its dimensions, text taken for media."""
        numbers = self.width * (1 + self.levels) * layout.DTYPES[self.dtype].itemsize
        indices = (3 + self.axes) * torch.int64.itemsize
        embeddings = self.tokens * (numbers + indices)
        return Offer(nbytes=self.nbytes, encoded=self.encoded, tokens=self.tokens, embeddings=embeddings)

    def slots(self) -> list[Slot]:
        """Every tensor of a state in the order of the buffer."""
        dtype, tokens = layout.DTYPES[self.dtype], self.tokens
        layer = (self.heads, tokens, self.head_dim)
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
            Slot("hidden", dtype, (tokens, self.width)),
            *(Slot(f"planes.{level}", dtype, (tokens, self.width)) for level in range(self.planes)),
            *(Slot(f"{kind}.{index}", dtype, layer) for index in range(self.layers) for kind in ("keys", "values")),
        ]

    @classmethod
    def from_bytes(cls, raw: bytes) -> "Manifest":
        """The manifest in `raw`, every field checked; raises CorruptState."""
        values = layout.opened(cls, CODEC_VERSION, raw)
        layout.check_dtype(values["dtype"])
        for name in values.keys() - {"parts", "dtype"}:
            limit = layout.MAX_LAYERS if name in ("layers", "levels", "planes") else layout.MAX_INTEGER
            layout.check_integer(name, values[name], limit)
        manifest = cls(**values)
        layout.check_parts(manifest)
        return manifest


def describe(state: PrefixState) -> Manifest:
    """The manifest of `state` before its parts have checksums; its `nbytes` is what encoding will take."""
    shape = asdict(state.shape)
    return Manifest(
        **shape | {"dtype": layout.dtype_name(state.shape.dtype, "hidden")},
        tokens=len(state),
        views=state.view_pts.shape[0],
        register_count=state.register_count,
        next_position=state.next_position,
        encoded=state.encoded,
        turns=state.turns,
    )


def encode(state: PrefixState) -> tuple[Manifest, list[memoryview]]:
    """The manifest of `state` and its parts, views of one buffer; raises ValueError on a state it cannot hold."""
    manifest = describe(state)
    slots = manifest.slots()
    checksums, parts = layout.pack(slots, {slot.name: _tensor(state, slot.name) for slot in slots})
    return replace(manifest, parts=checksums), parts


def decode(manifest: Manifest, parts: Sequence[Part]) -> PrefixState:
    """The state in `parts`, on the CPU, every bit checked; raises CorruptState."""
    tensors = layout.unpack(manifest, parts)
    layout.check_indices(tensors["view"], tensors["patch"], tensors["view_grid"])
    return PrefixState(
        keys=tuple(tensors.pop(f"keys.{layer}") for layer in range(manifest.layers)),
        values=tuple(tensors.pop(f"values.{layer}") for layer in range(manifest.layers)),
        planes=tuple(tensors.pop(f"planes.{level}") for level in range(manifest.planes)),
        register_count=manifest.register_count,
        next_position=manifest.next_position,
        encoded=manifest.encoded,
        turns=manifest.turns,
        **tensors,
    )


STATES = Codec(read=Manifest.from_bytes, describe=describe, encode=encode, decode=decode)


def _tensor(state: PrefixState, slot: str) -> Tensor:
    name, _, layer = slot.partition(".")
    value = getattr(state, name)
    tensor: Tensor = value[int(layer)] if layer else value
    return tensor
