import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from occam.errors import CorruptState
from occam.int8 import quantize_rows
from occam.kv import layout
from occam.kv.codec import Manifest, decode, describe, encode
from occam.kv.int8 import restore
from tests.states import assert_same, finite, make_state, with_wide

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(0, 9),
    views=st.integers(0, 3),
    levels=st.integers(0, 3),
    planes=st.integers(0, 2),
    layers=st.integers(0, 3),
    head_dim=st.integers(1, 5),
    axes=st.sampled_from([1, 3]),
    dtype=st.sampled_from(DTYPES),
)
def test_round_trip_keeps_every_bit(**shape: Any) -> None:
    state = make_state(**shape)
    manifest, parts = encode(state)
    assert sum(map(len, parts)) == describe(state).nbytes
    assert not state.approximate
    assert_same(decode(Manifest.from_bytes(manifest.to_bytes()), [bytes(part) for part in parts]), state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_values_keep_their_bits(dtype: torch.dtype) -> None:
    state = make_state(tokens=4, width=2, dtype=dtype)
    tiny = torch.finfo(dtype).smallest_normal / 2
    odd = torch.tensor([float("nan"), -0.0, float("inf"), float("-inf"), tiny, -tiny, 0.0, torch.finfo(dtype).max])
    state.hidden.copy_(odd.to(dtype).view(4, 2))
    restored = decode(*encode(state))
    assert_same(restored, state)
    assert restored.hidden.signbit().tolist()[0][1]
    assert restored.hidden[2, 0] != 0


def test_tensors_that_are_views_are_stored_as_what_they_show() -> None:
    state = make_state(tokens=6)
    keys = tuple(torch.zeros(6, 2, 3).copy_(key.transpose(0, 1)).transpose(0, 1) for key in state.keys)
    assert not keys[0].is_contiguous()
    view = type(state)(**{**vars(state), "keys": keys})
    assert_same(decode(*encode(view)), view)


def test_restored_tensors_are_aligned_as_fresh_ones_are() -> None:
    restored = decode(*encode(make_state(tokens=5, dtype=torch.bfloat16)))
    assert all(t.data_ptr() % 64 == 0 for t in (restored.hidden, restored.ids, *restored.keys, *restored.values))


def test_a_state_larger_than_a_part_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "PART_BYTES", 256)
    state = make_state(tokens=50)
    manifest, parts = encode(state)
    assert len(parts) > 10
    assert {len(part) for part in parts[:-1]} == {256}
    assert_same(decode(manifest, parts), state)
    with pytest.raises(CorruptState, match=f"1 of {len(parts)} parts are missing"):
        decode(manifest, parts[:-1])
    for wrong in (
        [*parts, b""],
        [*parts, parts[0]],
        [*parts[:-1], bytes(parts[-1]) + b"x"],
        [parts[0][:-1], *parts[1:]],
    ):
        with pytest.raises(CorruptState, match="sizes"):
            decode(manifest, wrong)
    with pytest.raises(CorruptState, match="checksum"):
        decode(manifest, [parts[1], parts[0], *parts[2:]])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(0, 9),
    planes=st.integers(0, 2),
    layers=st.integers(0, 3),
    dtype=st.sampled_from(DTYPES),
)
def test_over_int8_the_wide_tensors_come_back_quantize_rowsd_and_the_rest_bit_for_bit(**shape: Any) -> None:
    state = finite(make_state(**shape))
    manifest, parts = encode(state, "int8")
    restored = decode(Manifest.from_bytes(manifest.to_bytes()), [bytes(part) for part in parts])
    expected = with_wide(state, lambda tensor: restore(*quantize_rows(tensor), tensor.dtype))
    assert_same(restored, replace(expected, approximate=True))


def test_bytes_over_int8_are_those_of_its_numbers_and_scales() -> None:
    shape = {"tokens": 64, "layers": 2, "heads": 4, "head_dim": 32, "width": 128, "planes": 1, "dtype": torch.bfloat16}
    state = finite(make_state(**shape))  # type: ignore[arg-type]
    exact, int8 = (encode(state, wire)[0].nbytes for wire in ("exact", "int8"))  # type: ignore[arg-type]
    numbers, rows = 64 * (2 * 128 + 2 * 2 * 4 * 32), 64 * (2 + 2 * 2 * 4)
    assert exact - int8 == 2 * numbers - (numbers + 4 * rows)
    assert describe(state, "int8").nbytes == int8


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["hidden", "planes", "keys", "values"])
def test_a_state_that_is_not_finite_goes_exactly(name: str, odd: float) -> None:
    state = finite(make_state())
    tensors = getattr(state, name)
    (tensors if name == "hidden" else tensors[-1])[..., 1, 1] = odd
    manifest, parts = encode(state, "int8")
    assert (manifest.wire, manifest.nbytes) == ("exact", describe(state, "int8").nbytes)
    assert_same(decode(manifest, parts), state)


def test_an_approximate_state_says_so_after_an_exact_wire_too() -> None:
    state = replace(make_state(), approximate=True)
    assert_same(decode(*encode(state)), state)


def test_a_manifest_that_names_another_wire_than_its_parts_went_over_is_refused() -> None:
    state = finite(make_state())
    for wire, other in (("exact", "int8"), ("int8", "exact")):
        manifest, parts = encode(state, wire)  # type: ignore[arg-type]
        with pytest.raises(CorruptState, match="sizes"):
            decode(replace(manifest, wire=other), parts)  # type: ignore[arg-type]


def test_encoding_is_deterministic() -> None:
    assert encode(make_state(3))[0] == encode(make_state(3))[0]
    assert encode(make_state(3))[0] != encode(make_state(4))[0]


def test_every_flipped_bit_is_detected() -> None:
    manifest, (part,) = encode(make_state(tokens=1, views=1, layers=1, heads=1, head_dim=1, width=1))
    raw = manifest.to_bytes()
    for index in range(len(raw)):
        for bit in range(8):
            with pytest.raises(CorruptState):
                Manifest.from_bytes(_flipped(raw, index, bit))
    for index in range(len(part)):
        for bit in range(8):
            with pytest.raises(CorruptState, match="checksum"):
                decode(manifest, [_flipped(bytes(part), index, bit)])


@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_not_a_manifest(raw: bytes) -> None:
    with pytest.raises(CorruptState):
        Manifest.from_bytes(raw)
    with pytest.raises(CorruptState):
        Manifest.from_bytes(_sealed(raw))


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "not an object": lambda m: [m],
    "another version": lambda m: m | {"version": 1},
    "a version that only equals": lambda m: m | {"version": True},
    "a field too many": lambda m: m | {"pickle": "gASV"},
    "a field too few": lambda m: {name: value for name, value in m.items() if name != "views"},
    "negative": lambda m: m | {"tokens": -1},
    "huge": lambda m: m | {"tokens": 2**62},
    "more tokens than bytes": lambda m: m | {"tokens": 2**39},
    "more layers than any model": lambda m: m | {"layers": 10**9, "tokens": 0},
    "more positions than any model": lambda m: m | {"next_position": 2**24 + 1},
    "more turns than anybody has": lambda m: m | {"turns": 2**39},
    "more registers than views can have": lambda m: m | {"register_count": 2**39},
    "float": lambda m: m | {"tokens": 5.0},
    "boolean": lambda m: m | {"tokens": True},
    "text": lambda m: m | {"tokens": "5"},
    "null": lambda m: m | {"width": None},
    "unknown dtype": lambda m: m | {"dtype": "object"},
    "unhashable dtype": lambda m: m | {"dtype": ["float32"]},
    "unknown wire": lambda m: m | {"wire": "int4"},
    "no wire": lambda m: m | {"wire": None},
    "unhashable wire": lambda m: m | {"wire": ["exact"]},
    "a number for approximate": lambda m: m | {"approximate": 0},
    "part not a checksum": lambda m: m | {"parts": ["../../etc/passwd"]},
    "parts not a list": lambda m: m | {"parts": "a" * 64},
    "part not text": lambda m: m | {"parts": [1]},
    "a part too many": lambda m: m | {"parts": m["parts"] * 2},
    "no parts": lambda m: m | {"parts": []},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_manifest_with_a_right_checksum_is_refused(name: str) -> None:
    values = json.loads(encode(make_state())[0].to_bytes().partition(b"\n")[2])
    assert Manifest.from_bytes(_sealed(json.dumps(values).encode())) == encode(make_state())[0]
    with pytest.raises(CorruptState):
        Manifest.from_bytes(_sealed(json.dumps(HOSTILE[name](values)).encode()))


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"version": ' + b"9" * 5000 + b"}", b" " * (2 << 20)], ids=["deep", "digits", "long"]
)
def test_json_that_wears_a_parser_out_is_refused(body: bytes) -> None:
    with pytest.raises(CorruptState):
        Manifest.from_bytes(_sealed(body))


def test_a_token_of_a_view_or_patch_that_is_not_there_is_refused() -> None:
    for name, value in (("view", 2), ("view", -2), ("patch", 6), ("patch", -2)):
        state = make_state()
        state.view[1] = 0
        getattr(state, name)[1] = value
        with pytest.raises(CorruptState, match=name):
            decode(*encode(state))


def test_a_view_without_patches_or_with_too_many_is_refused() -> None:
    for rows in (0, -1, 2**40):
        state = make_state()
        grid = torch.tensor([[2, 3], [rows, 3]])
        with pytest.raises(CorruptState, match="grid"):
            decode(*encode(type(state)(**{**vars(state), "view_grid": grid})))


def test_a_state_that_the_format_cannot_hold_is_our_own_mistake() -> None:
    state = make_state()
    with pytest.raises(ValueError, match=r"keys\.1"):
        encode(type(state)(**{**vars(state), "keys": (state.keys[0], state.keys[1].half())}))
    with pytest.raises(ValueError, match="hidden must be one of"):
        encode(type(state)(**{**vars(state), "hidden": state.hidden.double()}))


def _flipped(data: bytes, index: int, bit: int) -> bytes:
    return data[:index] + bytes([data[index] ^ (1 << bit)]) + data[index + 1 :]


def _sealed(body: bytes) -> bytes:
    return blake2b(body, digest_size=32).hexdigest().encode() + b"\n" + body
