import json
from collections.abc import Callable
from dataclasses import fields, replace
from hashlib import blake2b
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from occam.errors import CorruptState
from occam.kv import layout
from occam.kv.embeddings import MediumManifest, decode, describe, encode
from occam.tensors import MediaTokens, MediumTokens
from tests.states import assert_same_media, make_medium

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    views=st.integers(0, 3),
    levels=st.integers(0, 3),
    axes=st.sampled_from([1, 3]),
    dtype=st.sampled_from(DTYPES),
)
def test_round_trip_keeps_every_bit_and_every_chunk(**shape: Any) -> None:
    medium = make_medium(**shape)
    manifest, parts = encode(medium)
    assert sum(map(len, parts)) == describe(medium).nbytes == manifest.offer.nbytes
    assert manifest.offer.encoded == sum(chunk.encoded for chunk in medium.chunks)
    restored = decode(MediumManifest.from_bytes(manifest.to_bytes()), [bytes(part) for part in parts])
    assert_same_media(restored, medium)


def test_tensors_that_are_views_are_stored_as_what_they_show_and_come_back_as_fresh_ones() -> None:
    [chunk] = make_medium(tokens=[6], views=3, levels=2).chunks
    torn = replace(
        chunk,
        embeddings=torch.stack([chunk.embeddings, chunk.embeddings], dim=2)[:, :, 0],
        planes=tuple(torch.arange(42.0).view(7, 6).T for _ in range(2)),
        grid=torch.tensor([[2, 3]]).expand(3, 2),
        indices=torch.arange(6)[::2],
    )
    assert not torn.embeddings.is_contiguous()
    assert not torn.grid.is_contiguous()
    [restored] = decode(*encode(MediumTokens(chunks=(torn,)))).chunks
    assert_same_media(MediumTokens(chunks=(restored,)), MediumTokens(chunks=(torn,)))
    for field in fields(MediaTokens):
        for tensor in _tensors(getattr(restored, field.name)):
            assert tensor.is_contiguous()
            assert tensor.data_ptr() % 64 == 0


def test_a_medium_larger_than_a_part_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "PART_BYTES", 256)
    medium = make_medium(tokens=[30, 40])
    manifest, parts = encode(medium)
    assert len(parts) > 10
    assert_same_media(decode(manifest, parts), medium)
    with pytest.raises(CorruptState, match="missing"):
        decode(manifest, parts[:-1])


def test_every_flipped_bit_is_detected() -> None:
    manifest, (part,) = encode(make_medium(tokens=[1], views=1, levels=0, width=1))
    raw = manifest.to_bytes()
    for index in range(len(raw)):
        for bit in range(8):
            with pytest.raises(CorruptState):
                MediumManifest.from_bytes(_flipped(raw, index, bit))
    for index in range(len(part)):
        with pytest.raises(CorruptState, match="checksum"):
            decode(manifest, [_flipped(bytes(part), index, index % 8)])


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_not_a_manifest(raw: bytes) -> None:
    for each in (raw, _sealed(raw)):
        with pytest.raises(CorruptState):
            MediumManifest.from_bytes(each)


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another version": lambda m: m | {"version": 2},
    "a version that only equals": lambda m: m | {"version": True},
    "a field too many": lambda m: m | {"pickle": "gASV"},
    "a field too few": lambda m: {name: value for name, value in m.items() if name != "views"},
    "no chunks": lambda m: m | {name: [] for name in CHUNKS} | {"parts": []},
    "more chunks than anybody has": lambda m: m | {name: [0] * (1 << 15 | 1) for name in CHUNKS} | {"parts": []},
    "chunks that are uneven": lambda m: m | {"length": [5]},
    "chunks that are one number": lambda m: m | {"tokens": 5},
    "chunks that are text": lambda m: m | {"tokens": "55"},
    "negative": lambda m: m | {"tokens": [-1, 2]},
    "huge": lambda m: m | {"tokens": [2**62, 2]},
    "more tokens than bytes": lambda m: m | {"tokens": [2**23, 2]},
    "more levels than any model": lambda m: m | {"levels": 2**20},
    "more axes than any model": lambda m: m | {"axes": 2**20},
    "no width, and so no bytes": lambda m: m | {"width": 0, "tokens": [0, 0], "views": [0, 0], "parts": []},
    "few bytes of many tensors": lambda m: m | {name: [0] * 4097 for name in CHUNKS} | {"width": 1},
    "more levels than a decoder adds": lambda m: m | {"levels": 17},
    "more width than any model": lambda m: m | {"width": 2**39},
    "more registers than views can have": lambda m: m | {"register_count": [2**39, 1]},
    "boolean": lambda m: m | {"encoded": [True, 2]},
    "null": lambda m: m | {"width": None},
    "unknown dtype": lambda m: m | {"dtype": "object"},
    "part not a checksum": lambda m: m | {"parts": ["../../etc/passwd"]},
    "a part too many": lambda m: m | {"parts": m["parts"] * 2},
    "no parts": lambda m: m | {"parts": []},
}
CHUNKS = ("tokens", "views", "length", "encoded", "register_count")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_with_a_right_checksum_is_refused(name: str) -> None:
    manifest = encode(make_medium(tokens=[3, 4]))[0]
    values = json.loads(manifest.to_bytes().partition(b"\n")[2])
    assert MediumManifest.from_bytes(_sealed(json.dumps(values).encode())) == manifest
    with pytest.raises(CorruptState):
        MediumManifest.from_bytes(_sealed(json.dumps(HOSTILE[name](values)).encode()))


def test_a_token_of_a_view_or_patch_that_is_not_there_is_refused_in_any_chunk() -> None:
    for name, value in (("view", 2), ("view", -2), ("patch", 6), ("patch", -2)):
        medium = make_medium(tokens=[3, 4])
        medium.chunks[1].view[1] = 0
        getattr(medium.chunks[1], name)[1] = value
        with pytest.raises(CorruptState, match=name):
            decode(*encode(medium))


def test_a_medium_that_the_format_cannot_hold_is_our_own_mistake() -> None:
    one, other = make_medium(tokens=[3, 4]).chunks
    with pytest.raises(ValueError, match=r"1\.embeddings"):
        encode(MediumTokens(chunks=(one, replace(other, embeddings=other.embeddings.half()))))
    with pytest.raises(ValueError, match="embeddings must be one of"):
        encode(MediumTokens(chunks=(replace(one, embeddings=one.embeddings.double()),)))


def _tensors(value: object) -> list[torch.Tensor]:
    return [each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, torch.Tensor)]


def _flipped(data: bytes, index: int, bit: int) -> bytes:
    return data[:index] + bytes([data[index] ^ (1 << bit)]) + data[index + 1 :]


def _sealed(body: bytes) -> bytes:
    return blake2b(body, digest_size=32).hexdigest().encode() + b"\n" + body
