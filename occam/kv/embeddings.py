"""MediumTokens <-> bytes, bit for bit: what stage I let through of one video or image, ready for the language model.

One entry for each medium, by the facts of the state's key but for the text in front and the other media, which the
tower never saw: conversations with other system texts, and with more media, share it. It keeps the chunks apart, for
they are appended as they were encoded: only so is the state over them that of the frames, bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from occam.config import Wire
from occam.errors import CorruptState
from occam.kv import layout
from occam.kv.break_even import Offer
from occam.kv.layout import Codec, Part, Sealed, Slot
from occam.tensors import MediaTokens, MediumTokens

EMBEDDINGS_VERSION = 1

# Bounds on what a manifest of few bytes can make its reader do; it has nine tensors and more a chunk.
_MAX_CHUNKS, _MAX_AXES, _MAX_LEVELS = 1 << 12, 8, 16


@dataclass(frozen=True, kw_only=True)
class MediumManifest(Sealed):
    """What the parts of one encoded medium are: the chunks' dimensions and scalars, and the checksum of every part.

    dtype: of embeddings and planes; axes A, width C, levels (DeepStack's)
    tokens N, views V, and `length`, `encoded` and `register_count` of `MediaTokens`: one of each for every chunk
    """

    version: int = EMBEDDINGS_VERSION
    dtype: str
    axes: int
    width: int
    levels: int
    tokens: tuple[int, ...]
    views: tuple[int, ...]
    length: tuple[int, ...]
    encoded: tuple[int, ...]
    register_count: tuple[int, ...]

    @property
    def offer(self) -> Offer:
        """The bytes of the embeddings: they spare the tower."""
        return Offer(nbytes=self.nbytes, encoded=sum(self.encoded))

    def slots(self) -> list[Slot]:
        """Every tensor of every chunk in the order of the buffer."""
        return [
            slot._replace(name=f"{chunk}.{slot.name}")
            for chunk, (tokens, views) in enumerate(zip(self.tokens, self.views, strict=True))
            for slot in self._chunk_slots(tokens, views)
        ]

    def _chunk_slots(self, tokens: int, views: int) -> list[Slot]:
        dtype = layout.DTYPES[self.dtype]
        return [
            Slot("ids", torch.int64, (tokens,)),
            Slot("positions", torch.int64, (self.axes, tokens)),
            Slot("view", torch.int64, (tokens,)),
            Slot("patch", torch.int64, (tokens,)),
            Slot("pts_seconds", torch.float64, (views,)),
            Slot("indices", torch.int64, (views,)),
            Slot("grid", torch.int64, (views, 2)),
            Slot("register_sum", torch.float32, (1 + self.levels, self.width)),
            Slot("embeddings", dtype, (tokens, self.width)),
            *(Slot(f"planes.{level}", dtype, (tokens, self.width)) for level in range(self.levels)),
        ]

    @classmethod
    def from_bytes(cls, raw: bytes) -> "MediumManifest":
        """The manifest in `raw`, every field checked; raises CorruptState."""
        values = layout.opened(cls, EMBEDDINGS_VERSION, raw)
        layout.check_choice("dtype", values["dtype"], layout.DTYPES)
        for name, most in (("axes", _MAX_AXES), ("levels", _MAX_LEVELS)):
            layout.check_integer(name, values[name], most)
        layout.check_integer("width", values["width"], least=1)
        chunks = ("tokens", "views", "length", "encoded", "register_count")
        for name in chunks:
            if not isinstance(values[name], list) or not 0 < len(values[name]) <= _MAX_CHUNKS:
                raise CorruptState(f"The manifest's {name} are not those of 1..{_MAX_CHUNKS} chunks.")
            for value in values[name]:
                layout.check_integer(name, value)
        if len({len(values[name]) for name in chunks}) != 1:
            raise CorruptState("The manifest's chunks are not equally many in all of its fields.")
        manifest = cls(**values | {name: tuple(values[name]) for name in chunks})
        layout.check_parts(manifest)
        return manifest


def describe(medium: MediumTokens, wire: Wire = "exact") -> MediumManifest:
    """The manifest of `medium` before its parts have checksums; over every wire it goes bit for bit."""
    del wire
    first = medium.chunks[0]
    return MediumManifest(
        dtype=layout.dtype_name(first.embeddings.dtype, "embeddings"),
        axes=len(first.positions),
        width=first.embeddings.shape[1],
        levels=len(first.planes),
        tokens=tuple(len(chunk.ids) for chunk in medium.chunks),
        views=tuple(len(chunk.indices) for chunk in medium.chunks),
        length=tuple(chunk.length for chunk in medium.chunks),
        encoded=tuple(chunk.encoded for chunk in medium.chunks),
        register_count=tuple(chunk.register_count for chunk in medium.chunks),
    )


def encode(medium: MediumTokens, wire: Wire = "exact") -> tuple[MediumManifest, list[memoryview]]:
    """The manifest of `medium` and its parts, views of one buffer; raises ValueError on one it cannot hold."""
    manifest = describe(medium, wire)
    slots = manifest.slots()
    checksums, parts = layout.pack(slots, {slot.name: _tensor(medium, slot.name) for slot in slots})
    return replace(manifest, parts=checksums), parts


def decode(manifest: MediumManifest, parts: Sequence[Part]) -> MediumTokens:
    """The medium in `parts`, on the CPU, every bit checked; raises CorruptState."""
    return assembled(manifest, layout.unpack(manifest, parts))


def assembled(manifest: MediumManifest, tensors: dict[str, Tensor]) -> MediumTokens:
    """The medium of the tensors that came over the wire; raises CorruptState where a token names what is not there."""
    return MediumTokens(chunks=tuple(_chunk(manifest, chunk, tensors) for chunk in range(len(manifest.tokens))))


EMBEDDINGS = Codec(read=MediumManifest.from_bytes, describe=describe, encode=encode, assembled=assembled)


def _chunk(manifest: MediumManifest, chunk: int, tensors: dict[str, Tensor]) -> MediaTokens:
    """One chunk, by the slots of its number."""
    layout.check_indices(*(tensors[f"{chunk}.{name}"] for name in ("view", "patch", "grid")))
    names = ("ids", "embeddings", "positions", "view", "patch", "pts_seconds", "indices", "grid", "register_sum")
    return MediaTokens(
        **{name: tensors[f"{chunk}.{name}"] for name in names},
        planes=tuple(tensors[f"{chunk}.planes.{level}"] for level in range(manifest.levels)),
        length=manifest.length[chunk],
        encoded=manifest.encoded[chunk],
        register_count=manifest.register_count[chunk],
    )


def _tensor(medium: MediumTokens, slot: str) -> Tensor:
    chunk, name, *level = slot.split(".")
    value = getattr(medium.chunks[int(chunk)], name)
    tensor: Tensor = value[int(level[0])] if level else value
    return tensor
