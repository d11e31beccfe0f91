"""What a tier takes, learned before the first request: a state of random numbers is written, read and forgotten."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Thread
from uuid import uuid4

import torch

from occam.errors import CorruptState, StoreUnavailable
from occam.kv.key import KVKey
from occam.kv.store import KVStore
from occam.tensors import PrefixState

TTL_S = 10.0
"""Seconds after which a probe that could not be forgotten is gone from a tier whose entries each have their own end."""
_TOKENS, _WIDTH = 1024, 128  # a megabyte
_READS = 3
_MOST_S = 1.0  # altogether


def probe(tiers: Sequence[Callable[[], KVStore]]) -> None:
    """Read from each tier a few times, so that its choice knows the line; at most a second, and an outage is nothing.

    tiers: each opens one that no other loop uses, with the choice that shall learn
    """
    # Its own thread has its own loop, and may be left behind: a disk that hangs lets nobody go.
    thread = Thread(target=asyncio.run, args=(_probe_all(tiers),), name="probe", daemon=True)
    thread.start()
    thread.join(2 * _MOST_S)


async def _probe_all(tiers: Sequence[Callable[[], KVStore]]) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_MOST_S):
            for opened in tiers:
                tier = opened()
                try:
                    with suppress(StoreUnavailable, CorruptState):
                        await _probe(tier)
                finally:
                    await tier.aclose()


async def _probe(tier: KVStore) -> None:
    key, state = KVKey(media=(), facts={"probe": uuid4().hex}), _state()
    await tier.put(key, state)
    try:
        for _ in range(_READS):
            await tier.get(key)
    finally:
        await tier.delete(key)


def _state() -> PrefixState:
    """Text alone, one layer, of numbers that no server or disk makes smaller."""
    random = torch.Generator()
    text, no_views = torch.full((_TOKENS,), -1), torch.zeros(0, dtype=torch.int64)
    keys, values = torch.rand(2, 1, _TOKENS, _WIDTH, generator=random)
    return PrefixState(
        ids=text,
        positions=text[None],
        view=text,
        patch=text,
        keys=(keys,),
        values=(values,),
        hidden=torch.zeros(_TOKENS, 1),
        planes=(),
        register_sum=torch.zeros(1, 1),
        register_count=0,
        view_medium=no_views,
        view_pts=no_views.double(),
        view_index=no_views,
        view_grid=no_views.reshape(0, 2),
        next_position=_TOKENS,
        encoded=0,
        turns=0,
    )
