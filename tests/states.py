"""Prefix states and embeddings of random bits, and what it means that two of them are the same."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from occam.kv.key import KVKey, MediumKey
from occam.tensors import MediaTokens, MediumTokens, PrefixState

BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def make_state(
    seed: int = 0,
    *,
    tokens: int = 5,
    views: int = 2,
    levels: int = 1,
    planes: int = 1,
    layers: int = 2,
    heads: int = 2,
    head_dim: int = 3,
    width: int = 7,
    axes: int = 1,
    dtype: torch.dtype = torch.float32,
) -> PrefixState:
    """A state whose floats are any bit patterns at all: NaNs with payloads, infinities, subnormals, -0.0."""
    bits, below = _drawn(seed)
    view = below(views, tokens)
    return PrefixState(
        ids=bits(torch.int64, tokens),
        positions=bits(torch.int64, axes, tokens),
        view=view,
        patch=torch.where(view < 0, -1, below(6, tokens)),
        keys=tuple(bits(dtype, heads, tokens, head_dim) for _ in range(layers)),
        values=tuple(bits(dtype, heads, tokens, head_dim) for _ in range(layers)),
        hidden=bits(dtype, tokens, width),
        planes=tuple(bits(dtype, tokens, width) for _ in range(planes)),
        register_sum=bits(torch.float32, 1 + levels, width),
        register_count=views,
        view_medium=bits(torch.int64, views),
        view_pts=bits(torch.float64, views),
        view_index=bits(torch.int64, views),
        view_grid=torch.tensor([[2, 3]]).expand(views, 2),
        next_position=tokens + 9,
        encoded=6 * views,
        turns=1,
    )


def make_medium(
    seed: int = 0,
    *,
    tokens: Sequence[int] = (5,),
    views: int = 2,
    levels: int = 1,
    width: int = 7,
    axes: int = 1,
    dtype: torch.dtype = torch.float32,
) -> MediumTokens:
    """A medium of so many tokens a chunk, its floats any bit patterns at all."""
    bits, below = _drawn(seed)

    def chunk(count: int) -> MediaTokens:
        view = below(views, count)
        return MediaTokens(
            ids=bits(torch.int64, count),
            embeddings=bits(dtype, count, width),
            positions=bits(torch.int64, axes, count),
            view=view,
            patch=torch.where(view < 0, -1, below(6, count)),
            planes=tuple(bits(dtype, count, width) for _ in range(levels)),
            length=count + 3,
            encoded=6 * views,
            pts_seconds=bits(torch.float64, views),
            indices=bits(torch.int64, views),
            grid=torch.tensor([[2, 3]]).expand(views, 2),
            register_sum=bits(torch.float32, 1 + levels, width),
            register_count=views,
        )

    return MediumTokens(chunks=tuple(chunk(count) for count in tokens))


def assert_same_media(a: MediumTokens, b: MediumTokens) -> None:
    """As many chunks, every field equal, tensors bit for bit."""
    for one, other in zip(a.chunks, b.chunks, strict=True):
        _assert_same_fields(one, other)


def finite(state: PrefixState) -> PrefixState:
    """The same, with another finite number of any size in place of NaNs and infinities, and a row of zeros."""

    def tame(tensor: Tensor) -> Tensor:
        tensor = torch.nan_to_num(tensor, nan=-0.75, posinf=2.5)
        tensor[..., :1, :] = 0
        return tensor

    return with_wide(state, tame)


def with_wide(state: PrefixState, change: Callable[[Tensor], Tensor]) -> PrefixState:
    """The state with its keys, values, hidden and planes changed."""
    return replace(
        state,
        hidden=change(state.hidden),
        keys=tuple(map(change, state.keys)),
        values=tuple(map(change, state.values)),
        planes=tuple(map(change, state.planes)),
    )


def assert_same(a: PrefixState, b: PrefixState) -> None:
    """Every field equal, tensors bit for bit."""
    _assert_same_fields(a, b)


def _assert_same_fields(a: PrefixState | MediaTokens, b: PrefixState | MediaTokens) -> None:
    for field in fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        for one, other in zip(_list(left), _list(right), strict=True):
            assert _bits(one) == _bits(other), field.name


def make_key(name: str = "video") -> KVKey:
    """A key that differs from another exactly if the names do."""
    medium = MediumKey(kind="video", digest=name, frame_indices=(0, 5), decode_backend="decord 0.6.0")
    return KVKey(media=(medium,), facts={"cut": 2})


def _drawn(seed: int) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Random bits of a dtype, and indices from -1."""
    generator = torch.Generator().manual_seed(seed)

    def bits(dtype: torch.dtype, *shape: int) -> Tensor:
        raw = torch.randint(-(2**63), 2**63 - 1, shape, generator=generator)
        return raw.to(BITS[dtype.itemsize]).view(dtype)

    def below(limit: int, *shape: int) -> Tensor:
        return torch.randint(-1, max(limit, 0), shape, generator=generator)

    return bits, below


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, tuple) else [value]


def _bits(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return value.dtype, tuple(value.shape), value.contiguous().view(-1).view(torch.uint8).tolist()
