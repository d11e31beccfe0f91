import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any

import pytest

from occam.errors import CorruptState, FetchDeclined, FetchGivenUp, StoreUnavailable
from occam.kv.key import KVKey
from occam.kv.store import KVStore, Lookup, MemoryStore, TieredStore, TierEvent
from occam.tensors import MediumTokens, PrefixState
from tests.states import make_key, make_medium, make_state

A, B, C = make_key("a"), make_key("b"), make_key("c")
STATE = make_state()
MEDIUM = make_medium(tokens=[3, 4])
SIZE = STATE.nbytes


class FakeTier(MemoryStore):
    """A tier that fails as told, and that writes only when it is let."""

    def __init__(self, name: str = "redis", max_bytes: int = 100 * SIZE) -> None:
        super().__init__(max_bytes)
        self.name = name
        self.failure: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def get(self, key: KVKey) -> PrefixState | None:
        self._fail()
        return await super().get(key)

    async def put(self, key: KVKey, state: PrefixState) -> bool:
        await self.gate.wait()
        self._fail()
        return await super().put(key, state)

    async def delete(self, key: KVKey) -> None:
        self._fail()
        await super().delete(key)

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


class Tiers:
    """A memory tier, a far tier, and everything that was observed."""

    def __init__(self, **settings: int) -> None:
        self.memory, self.far = MemoryStore(10 * SIZE), FakeTier()
        self.seen: list[TierEvent] = []
        tiers: list[KVStore] = [self.memory, self.far]
        self.store = TieredStore(tiers, self.seen.append, clock=lambda: 0.0, **settings)

    async def get(self, key: KVKey) -> Lookup:
        return await self.store.get(key, fits=lambda state: state.shape == STATE.shape)

    @property
    def results(self) -> list[str]:
        """`tier op result reason` of every event since the last look."""
        seen = [f"{e.tier} {e.op} {e.result} {e.reason}".strip() for e in self.seen]
        self.seen.clear()
        return seen


def run(test: Awaitable[None]) -> None:
    async def within_reason() -> None:
        await asyncio.wait_for(test, 10)

    asyncio.run(within_reason())


def test_memory_lets_the_least_recently_used_go() -> None:
    async def test() -> None:
        store = MemoryStore(2 * SIZE)
        for key in (A, B):
            assert await store.put(key, STATE)
        assert await store.get(A) is STATE
        assert await store.put(C, STATE)
        assert [await store.get(key) is not None for key in (A, B, C)] == [True, False, True]
        assert store.nbytes == 2 * SIZE

    run(test())


def test_memory_counts_its_bytes() -> None:
    async def test() -> None:
        store = MemoryStore(3 * SIZE)
        await store.put(A, STATE)
        await store.put(A, STATE)
        assert store.nbytes == SIZE
        assert not await store.put(B, make_state(tokens=100))
        assert await store.get(A) is STATE
        await store.delete(A)
        await store.delete(A)
        assert store.nbytes == 0
        assert await store.get(A) is None

    run(test())


def test_an_approximate_state_is_corrupt_under_an_exact_key_and_goes_no_higher() -> None:
    async def test() -> None:
        tiers, state = Tiers(), replace(STATE, approximate=True)
        await tiers.far.put(A, state)
        assert (await tiers.get(A)).state is None
        assert tiers.results == ["memory get miss", "redis get failed corrupt"]
        lossy = replace(A, wire="int8")
        assert (await tiers.get(lossy)).state is None, "the keys differ"
        await tiers.far.put(lossy, state)
        for tier in ("redis", "memory"):
            found = await tiers.get(lossy)
            assert (found.state, found.tier) == (state, tier)

    run(test())


def test_a_put_reaches_every_tier_and_waits_for_the_first_alone() -> None:
    async def test() -> None:
        tiers = Tiers()
        tiers.far.gate.clear()
        await tiers.store.put(A, STATE)
        await asyncio.sleep(0)
        assert tiers.results == ["memory put done"]
        assert (await tiers.get(A)).tier == "memory"
        tiers.far.gate.set()
        await tiers.store.drain()
        assert tiers.results == ["memory get hit", "redis put done"]
        assert await tiers.far.get(A) is STATE

    run(test())


def test_a_hit_below_fills_the_tiers_above() -> None:
    async def test() -> None:
        tiers = Tiers()
        await tiers.far.put(A, STATE)
        found = await tiers.get(A)
        assert (found.state, found.tier) == (STATE, "redis")
        assert tiers.seen[1].nbytes == tiers.seen[2].nbytes == SIZE
        assert tiers.results == ["memory get miss", "redis get hit", "memory put done"]
        assert (await tiers.get(A)).tier == "memory"

    run(test())


def test_a_state_that_its_reader_cannot_use_is_a_corrupt_miss_and_goes_no_higher() -> None:
    async def test() -> None:
        tiers = Tiers()
        await tiers.far.put(A, make_state(layers=3))
        found = await tiers.get(A)
        assert (found.state, found.tier) == (None, None)
        assert tiers.results == ["memory get miss", "redis get failed corrupt"]

    run(test())


@pytest.mark.parametrize(
    ("failure", "reason"), [(StoreUnavailable("away"), "unavailable"), (CorruptState("bits"), "corrupt")]
)
def test_a_failing_tier_costs_a_miss_and_is_counted(failure: Exception, reason: str) -> None:
    async def test() -> None:
        tiers = Tiers()
        tiers.far.failure = failure
        found = await tiers.get(A)
        assert (found.state, found.tier) == (None, None)
        await tiers.store.put(A, STATE)
        await tiers.store.drain()
        assert tiers.results == [
            "memory get miss",
            f"redis get failed {reason}",
            "memory put done",
            f"redis put failed {reason}",
        ]
        assert (await tiers.get(A)).tier == "memory"

    run(test())


@pytest.mark.parametrize(
    ("declined", "result"), [(FetchDeclined("slow"), "declined"), (FetchGivenUp("late"), "given_up")]
)
def test_a_tier_that_is_not_worth_its_time_is_a_miss_and_no_failure(declined: Exception, result: str) -> None:
    async def test() -> None:
        tiers = Tiers()
        tiers.far.failure = declined
        found = await tiers.get(A)
        assert (found.state, found.tier, found.left_alone) == (None, None, ("redis",))
        tiers.far.failure = None
        await tiers.store.put(A, STATE, found.left_alone)
        await tiers.store.drain()
        assert tiers.results == ["memory get miss", f"redis get {result}", "memory put done"]
        assert (await tiers.get(B)).left_alone == ()

    run(test())


def test_a_hit_below_is_not_copied_into_a_tier_that_was_too_slow_to_be_read() -> None:
    async def test() -> None:
        node, far = FakeTier("node"), FakeTier()
        node.failure = FetchDeclined("slow")
        await far.put(A, STATE)
        seen: list[TierEvent] = []
        store = TieredStore([MemoryStore(10 * SIZE), node, far], seen.append)
        found = await store.get(A, fits=lambda _: True)
        await store.drain()
        assert (found.tier, found.left_alone) == ("redis", ())
        assert [(each.tier, each.op) for each in seen] == [
            ("memory", "get"),
            ("node", "get"),
            ("redis", "get"),
            ("memory", "put"),
        ]

    run(test())


def test_a_mistake_of_ours_is_not_a_miss() -> None:
    async def test() -> None:
        tiers = Tiers()
        tiers.far.failure = ZeroDivisionError()
        with pytest.raises(ZeroDivisionError):
            await tiers.get(A)

    run(test())


def test_a_state_too_large_for_a_tier_is_refused_there_alone() -> None:
    async def test() -> None:
        tiers = Tiers()
        large = make_state(tokens=100)
        await tiers.store.put(A, large)
        await tiers.store.drain()
        assert tiers.results == ["memory put refused", "redis put done"]
        assert (await tiers.get(A)).tier == "redis"

    run(test())


def test_a_slow_tier_holds_no_more_than_the_backlog() -> None:
    async def test() -> None:
        tiers = Tiers(max_backlog_bytes=2 * SIZE)
        tiers.far.gate.clear()
        for key, state in ((A, STATE), (A, STATE), (B, make_state(1)), (C, make_state(2))):
            await tiers.store.put(key, state)
        assert tiers.results == ["memory put done"] * 4 + ["redis put failed backlog"]
        tiers.far.gate.set()
        await tiers.store.drain()
        assert tiers.results == ["redis put done"] * 2
        await tiers.store.put(C, STATE)
        await tiers.store.aclose()
        assert tiers.results == ["memory put done", "redis put done"]

    run(test())


def test_a_state_on_its_way_to_two_tiers_is_held_once() -> None:
    async def test() -> None:
        seen: list[TierEvent] = []
        slow = [FakeTier("node"), FakeTier("redis")]
        store = TieredStore([MemoryStore(SIZE), *slow], seen.append, max_backlog_bytes=SIZE)
        for tier in slow:
            tier.gate.clear()
        await store.put(A, STATE)
        for tier in slow:
            tier.gate.set()
        await store.drain()
        assert [(event.tier, event.result) for event in seen] == [
            (tier, "done") for tier in ("memory", "node", "redis")
        ]

    run(test())


@pytest.mark.parametrize("begun", [False, True])
def test_a_write_on_its_way_does_not_bring_back_what_was_deleted(begun: bool) -> None:
    async def test() -> None:
        tiers = Tiers()
        tiers.far.gate.clear()
        await tiers.store.put(A, STATE)
        if begun:
            await asyncio.sleep(0)
        await tiers.store.delete(A)
        tiers.far.gate.set()
        await tiers.store.drain()
        assert (await tiers.get(A)).state is None

    run(test())


def test_a_delete_that_a_tier_missed_says_so_and_does_the_others() -> None:
    async def test() -> None:
        tiers = Tiers()
        await tiers.store.put(A, STATE)
        await tiers.store.drain()
        tiers.far.failure = StoreUnavailable("away")
        with pytest.raises(StoreUnavailable):
            await tiers.store.delete(A)
        assert await tiers.memory.get(A) is None

    run(test())


class WithEmbeddings(Tiers):
    """The same with embeddings beside the states."""

    def __init__(self, **settings: int) -> None:
        super().__init__(**settings)
        self.embeddings: Any = FakeTier("embeddings")
        tiers: list[KVStore] = [self.memory, self.far]
        self.store = TieredStore(tiers, self.seen.append, clock=lambda: 0.0, embeddings=self.embeddings, **settings)

    async def get_embeddings(self, key: KVKey) -> tuple[MediumTokens | None, bool]:
        return await self.store.get_embeddings(key, fits=lambda medium: len(medium.chunks) == 2)


def test_embeddings_are_kept_beside_the_states_and_written_in_the_background() -> None:
    async def test() -> None:
        tiers = WithEmbeddings()
        tiers.embeddings.gate.clear()
        assert await tiers.get_embeddings(A) == (None, True)
        tiers.store.put_embeddings(A, MEDIUM)
        await asyncio.sleep(0)
        assert tiers.results == ["embeddings get miss"]
        tiers.embeddings.gate.set()
        await tiers.store.drain()
        assert tiers.seen[-1].nbytes == MEDIUM.nbytes
        assert await tiers.get_embeddings(A) == (MEDIUM, False)
        assert tiers.seen[-1].nbytes == MEDIUM.nbytes
        assert tiers.results == ["embeddings put done", "embeddings get hit"]
        assert (await tiers.get(A)).state is None

    run(test())


def test_without_a_store_there_are_no_embeddings_and_none_are_wanted() -> None:
    async def test() -> None:
        tiers = Tiers()
        assert await tiers.store.get_embeddings(A, fits=lambda _: True) == (None, False)
        tiers.store.put_embeddings(A, MEDIUM)
        await tiers.store.aclose()
        assert tiers.results == []

    run(test())


@pytest.mark.parametrize(
    ("failure", "result", "wanted"),
    [
        (StoreUnavailable("away"), "failed unavailable", True),
        (CorruptState("bits"), "failed corrupt", True),
        (FetchDeclined("slow"), "declined", False),
        (FetchGivenUp("late"), "given_up", False),
    ],
)
def test_embeddings_that_do_not_come_cost_a_miss_and_are_written_where_that_is_of_use(
    failure: Exception, result: str, wanted: bool
) -> None:
    async def test() -> None:
        tiers = WithEmbeddings()
        tiers.embeddings.failure = failure
        assert await tiers.get_embeddings(A) == (None, wanted)
        assert tiers.results == [f"embeddings get {result}"]

    run(test())


def test_embeddings_that_their_reader_cannot_use_are_corrupt() -> None:
    async def test() -> None:
        tiers = WithEmbeddings()
        await tiers.embeddings.put(A, make_medium())
        assert await tiers.get_embeddings(A) == (None, True)
        assert tiers.results == ["embeddings get failed corrupt"]

    run(test())


def test_embeddings_and_states_share_the_backlog() -> None:
    async def test() -> None:
        tiers = WithEmbeddings(max_backlog_bytes=SIZE + MEDIUM.nbytes)
        for tier in (tiers.far, tiers.embeddings):
            tier.gate.clear()
        await tiers.store.put(A, STATE)
        for key, medium in ((A, MEDIUM), (A, MEDIUM), (B, make_medium(1, tokens=[3, 4]))):
            tiers.store.put_embeddings(key, medium)
        assert tiers.results == ["memory put done", "embeddings put failed backlog"]
        for tier in (tiers.far, tiers.embeddings):
            tier.gate.set()
        await tiers.store.drain()
        assert tiers.results == ["redis put done", "embeddings put done"]

    run(test())


@pytest.mark.parametrize("begun", [False, True])
def test_a_delete_takes_the_embeddings_along_and_their_writes(begun: bool) -> None:
    async def test() -> None:
        tiers = WithEmbeddings()
        await tiers.embeddings.put(B, MEDIUM)
        tiers.embeddings.gate.clear()
        tiers.store.put_embeddings(C, MEDIUM)
        if begun:
            await asyncio.sleep(0)
        await tiers.store.delete(A, [B, C])
        tiers.embeddings.gate.set()
        await tiers.store.drain()
        for key in (B, C):
            assert (await tiers.get_embeddings(key))[0] is None
        tiers.embeddings.failure = StoreUnavailable("away")
        with pytest.raises(StoreUnavailable):
            await tiers.store.delete(A, [B])

    run(test())
