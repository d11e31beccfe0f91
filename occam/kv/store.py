"""Where prefix states are kept: the protocol of a tier, the tier in memory, and the tiers as one.

A cache costs time when it is away, slow or corrupt, and nothing else: `TieredStore._attempt` is the one place where
such a failure becomes a miss, and so does a fetch that is not worth its time; it tells the observer of each.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

from occam.errors import CorruptState, FetchDeclined, FetchGivenUp, StoreUnavailable
from occam.kv.key import KVKey
from occam.tensors import MediumTokens, PrefixState

T = TypeVar("T")
Kept = TypeVar("Kept", PrefixState, MediumTokens)
Result = Literal["hit", "miss", "declined", "given_up", "done", "refused", "failed"]
Reason = Literal["", "unavailable", "corrupt", "backlog"]
LEFT_ALONE = ("declined", "given_up")
"""Results of a get that say of a tier that it is too slow to read from, and so to write to."""


class Store(Protocol[Kept]):
    """One tier, of states or of embeddings. An outage is StoreUnavailable, an entry that is not sound CorruptState.

    A `get` that is not worth its time is FetchDeclined, or FetchGivenUp once it had begun.
    """

    @property
    def name(self) -> str:
        """The tier's name in answers and metrics."""

    async def get(self, key: KVKey) -> Kept | None:
        """The value of `key`, bit for bit what was put, or approximate by the key's wire; or None."""

    async def put(self, key: KVKey, value: Kept, /) -> bool:
        """Keep `value`; False where it is larger than this tier takes."""

    async def has(self, key: KVKey) -> bool:
        """Whether there is a value of `key`; what it is worth is not looked at."""

    async def delete(self, key: KVKey) -> None:
        """Forget `key`; one that is not there is fine."""

    async def aclose(self) -> None:
        """Let go of what the tier holds in this process."""


KVStore = Store[PrefixState]


class MemoryStore:
    """The tier in this process: least recently used states leave first. For one event loop, not for threads."""

    name = "memory"

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._states: OrderedDict[str, PrefixState] = OrderedDict()
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all states kept, at most `max_bytes`."""
        return self._nbytes

    async def get(self, key: KVKey) -> PrefixState | None:
        """The state of `key` itself, not a copy: states are immutable."""
        state = self._states.get(key.digest)
        if state is not None:
            self._states.move_to_end(key.digest)
        return state

    async def put(self, key: KVKey, state: PrefixState) -> bool:
        """Keep `state` and let the least recently used go; False where it alone passes `max_bytes`."""
        await self.delete(key)
        if state.nbytes > self._max_bytes:
            return False
        self._states[key.digest] = state
        self._nbytes += state.nbytes
        while self._nbytes > self._max_bytes:
            self._nbytes -= self._states.popitem(last=False)[1].nbytes
        return True

    async def has(self, key: KVKey) -> bool:
        """Whether the state of `key` is here; that is no use of it."""
        return key.digest in self._states

    async def delete(self, key: KVKey) -> None:
        """Forget `key`."""
        state = self._states.pop(key.digest, None)
        if state is not None:
            self._nbytes -= state.nbytes

    async def aclose(self) -> None:
        """Forget everything."""
        self._states.clear()
        self._nbytes = 0


@dataclass(frozen=True, kw_only=True)
class TierEvent:
    """One get or put of one tier, for whoever keeps the ledger.

    result: of a get `hit`, `miss`, `declined` (computing is quicker), `given_up` (after it had begun) or `failed`;
    of a put `done`, `refused` (larger than the tier takes) or `failed`
    reason: why it failed: `unavailable`, `corrupt`, or `backlog` (too many bytes waited to be written); else empty
    nbytes: bytes of the state moved; 0 unless a `hit` or a put that is `done`
    """

    tier: str
    op: Literal["get", "put"]
    result: Result
    reason: Reason = ""
    seconds: float = 0.0
    nbytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """What the tiers knew: the state and the tier that had it, or None twice; and the tiers that were left alone."""

    state: PrefixState | None
    tier: str | None
    left_alone: tuple[str, ...] = ()


class TieredStore:
    """Tiers as one, nearest first: a get asks them in turn, and a hit is copied into those above.

    The first tier is written before `put` returns, the others in the background, and so are the embeddings, which lie
    beside the states in a store of their own; what was too slow to read from is not written. `observe` is called once
    for every get and put of a tier. For one event loop.
    """

    def __init__(
        self,
        tiers: Sequence[KVStore],
        observe: Callable[[TierEvent], None],
        max_backlog_bytes: int = 512 << 20,
        clock: Callable[[], float] = time.monotonic,
        embeddings: Store[MediumTokens] | None = None,
    ) -> None:
        self._tiers = tuple(tiers)
        self._embeddings = embeddings
        self._observe = observe
        self._max_backlog_bytes = max_backlog_bytes
        self._clock = clock
        self._writes: dict[tuple[str, str], asyncio.Task[tuple[bool | None, Result]]] = {}
        self._held: dict[tuple[str, str], Any] = {}

    async def get(self, key: KVKey, fits: Callable[[PrefixState], bool]) -> Lookup:
        """The state of `key` from the nearest tier that has it; a tier that fails is one that does not.

        fits: whether its reader can use a state; one that it cannot is corrupt, however right its checksums are
        """
        left_alone: list[str] = []
        for depth, tier in enumerate(self._tiers):
            state, result = await self._attempt(tier, "get", partial(_get_fitting, tier, key, fits))
            if state is not None:
                await self._write(key, state, self._tiers[:depth], left_alone)
                return Lookup(state=state, tier=tier.name)
            if result in LEFT_ALONE:
                left_alone.append(tier.name)
        return Lookup(state=None, tier=None, left_alone=tuple(left_alone))

    async def put(self, key: KVKey, state: PrefixState, left_alone: Collection[str] = ()) -> None:
        """Keep `state` in every tier that takes it; a tier that fails goes without.

        left_alone: by the lookup before, tiers that are too slow to read from and so to write to; they have it, mostly
        """
        await self._write(key, state, self._tiers, left_alone)

    async def has(self, key: KVKey) -> bool:
        """Whether a tier has the state of `key`; one that cannot say has not."""
        for tier in self._tiers:
            with suppress(StoreUnavailable):
                if await tier.has(key):
                    return True
        return False

    async def get_embeddings(
        self, key: KVKey, fits: Callable[[MediumTokens], bool]
    ) -> tuple[MediumTokens | None, bool]:
        """A medium's embeddings or None, and whether they are worth being put where there are none."""
        if self._embeddings is None:
            return None, False
        medium, result = await self._attempt(
            self._embeddings, "get", partial(_get_fitting, self._embeddings, key, fits)
        )
        return medium, result not in ("hit", *LEFT_ALONE)

    def put_embeddings(self, key: KVKey, medium: MediumTokens) -> None:
        """Keep a medium's embeddings where there is a store for them."""
        if self._embeddings is not None:
            self._write_soon(self._embeddings, key, medium)

    async def delete(self, key: KVKey, embeddings: Collection[KVKey] = ()) -> None:
        """Forget a state and its media's embeddings, writes on their way included; StoreUnavailable where one is left.

        Every tier is asked, whichever cannot.
        """
        entries: list[tuple[Store[Any], KVKey]] = [(tier, key) for tier in self._tiers]
        if self._embeddings is not None:
            entries += [(self._embeddings, each) for each in embeddings]
        slots = [(tier.name, each.digest) for tier, each in entries]
        writes = [self._writes[slot] for slot in slots if slot in self._writes]
        for task in writes:
            task.cancel()
        await asyncio.gather(*writes, return_exceptions=True)
        failure = None
        for tier, each in entries:
            try:
                await tier.delete(each)
            except StoreUnavailable as error:
                failure = error
        if failure is not None:
            raise failure

    async def drain(self) -> None:
        """Wait until every write in the background has ended."""
        await asyncio.gather(*self._writes.values())

    async def aclose(self) -> None:
        """Finish the writes, then close every tier."""
        await self.drain()
        for tier in (*self._tiers, self._embeddings):
            if tier is not None:
                await tier.aclose()

    async def _write(
        self, key: KVKey, state: PrefixState, tiers: Sequence[KVStore], left_alone: Collection[str]
    ) -> None:
        wanted = [tier for tier in tiers if tier.name not in left_alone]
        for tier in wanted[:1]:
            await self._attempt(tier, "put", partial(tier.put, key, state), state.nbytes)
        for tier in wanted[1:]:
            self._write_soon(tier, key, state)

    def _write_soon(self, tier: Store[Kept], key: KVKey, value: Kept) -> None:
        """Write in the background, at most `max_backlog_bytes` at a time: a slow tier must not hold states alive."""
        slot = (tier.name, key.digest)
        if slot in self._writes:
            return
        # The same tensors for every tier that a state is written to.
        held = {id(each): each.nbytes for each in (*self._held.values(), value)}
        if sum(held.values()) > self._max_backlog_bytes:
            self._observe(TierEvent(tier=tier.name, op="put", result="failed", reason="backlog"))
            return

        def ended(_: asyncio.Task[tuple[bool | None, Result]]) -> None:
            del self._writes[slot], self._held[slot]

        self._held[slot] = value
        self._writes[slot] = asyncio.create_task(
            self._attempt(tier, "put", partial(tier.put, key, value), value.nbytes)
        )
        self._writes[slot].add_done_callback(ended)

    async def _attempt(
        self, tier: Store[Kept], op: Literal["get", "put"], call: Callable[[], Awaitable[T]], nbytes: int = 0
    ) -> tuple[T | None, Result]:
        """What `call` gives, or None, and its result: the one place where a failure becomes a miss."""
        started_s, outcome = self._clock(), None
        result: Result
        reason: Reason = ""
        try:
            outcome = await call()
        except StoreUnavailable:
            result, reason = "failed", "unavailable"
        except CorruptState:
            result, reason = "failed", "corrupt"
        except FetchGivenUp:
            result = "given_up"
        except FetchDeclined:
            result = "declined"
        else:
            result = _result(op, outcome)
        if isinstance(outcome, PrefixState | MediumTokens):
            nbytes = outcome.nbytes
        moved = nbytes if result in ("hit", "done") else 0
        seconds = self._clock() - started_s
        self._observe(TierEvent(tier=tier.name, op=op, result=result, reason=reason, seconds=seconds, nbytes=moved))
        return outcome, result


async def _get_fitting(tier: Store[Kept], key: KVKey, fits: Callable[[Kept], bool]) -> Kept | None:
    value = await tier.get(key)
    if value is not None and not fits(value):
        raise CorruptState("The entry is none that its reader could have written.")
    if isinstance(value, PrefixState) and value.approximate and key.wire == "exact":
        raise CorruptState("The state is approximate and its key is not.")
    return value


def _result(op: Literal["get", "put"], outcome: object) -> Result:
    if op == "get":
        return "miss" if outcome is None else "hit"
    return "done" if outcome else "refused"
