"""The ranking as a function, and Ray's router over replicas of this process."""

import asyncio
import statistics
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from services.messages import Medium
from services.router import AffinityRouter, affinity, ranked

KEYS = [f"key{number}" for number in range(2000)]
REPLICAS = [f"replica{number}" for number in range(5)]


def medium(digest: str, *indices: int) -> Medium:
    return Medium(
        kind="video",
        url="",
        digest=digest,
        duration_s=1.0,
        width=8,
        height=8,
        frames=8,
        seconds=1.0,
        walked_s=1.0,
        indices=indices,
        decoder="d 1",
    )


def test_the_same_frames_of_the_same_media_share_a_key_and_others_do_not() -> None:
    clip = medium("a", 0, 4)
    assert affinity((clip,)) == affinity((medium("a", 0, 4),))
    others = [(medium("a", 0, 5),), (medium("b", 0, 4),), (clip, clip), ()]
    assert len({affinity(media) for media in [(clip,), *others]}) == 5


def test_everybody_ranks_alike_whatever_order_the_replicas_are_in() -> None:
    for key in KEYS[:50]:
        order = ranked(key, REPLICAS)
        assert sorted(order) == sorted(REPLICAS)
        assert ranked(key, reversed(REPLICAS)) == order


def test_each_replica_gets_its_share() -> None:
    firsts = Counter(ranked(key, REPLICAS)[0] for key in KEYS)
    fair = len(KEYS) / len(REPLICAS)
    assert all(0.8 * fair < firsts[replica] < 1.2 * fair for replica in REPLICAS)


@pytest.mark.parametrize("gone", REPLICAS)
def test_a_replica_that_leaves_or_joins_moves_its_own_share_alone(gone: str) -> None:
    left = [replica for replica in REPLICAS if replica != gone]
    for key in KEYS:
        before, after = ranked(key, REPLICAS), ranked(key, left)
        assert after == [replica for replica in before if replica != gone]


def test_those_that_were_passed_over_come_last() -> None:
    media = (medium("a", 0, 4),)
    order = ranked(affinity(media), REPLICAS)
    assert ranked(affinity(media, passed_over=1), REPLICAS) == [*order[1:], order[0]]
    assert ranked(affinity(media, passed_over=1), order[:1]) == order[:1]
    assert ranked(affinity(media, passed_over=2), order[:1]) == order[:1]


class Replica:
    """As much of a running replica as a router asks for: a queue, and a bound on it."""

    def __init__(self, name: str, deployment: DeploymentID, full: bool = False) -> None:
        self.replica_id = ReplicaID(unique_id=name, deployment_id=deployment)
        self.max_ongoing_requests = 2
        self.full = full
        self.asked = 0

    async def get_queue_len(self, *, deadline_s: float) -> int:
        self.asked += 1
        return self.max_ongoing_requests if self.full else 0


class Routing:
    """A router over fake replicas."""

    def __init__(self, *full: bool) -> None:
        self.deployment = DeploymentID(name="worker", app_name="occam")
        self.router = AffinityRouter(deployment_id=self.deployment, handle_source=DeploymentHandleSource.REPLICA)
        self.replicas = [Replica(name, self.deployment) for name in REPLICAS[:3]]
        self.router.update_replicas(self.replicas)

    def choose(self, key: str, request: str) -> "asyncio.Task[Any]":
        metadata = RequestMetadata(
            request_id=request, internal_request_id=request, call_method="answer", session_id=key
        )
        pending = PendingRequest(args=[], kwargs={}, metadata=metadata)
        return asyncio.create_task(self.router._choose_replica_for_request(pending))

    def by_rank(self, key: str) -> list[Replica]:
        by_name = {replica.replica_id.unique_id: replica for replica in self.replicas}
        return [by_name[name] for name in ranked(key, by_name)]


def test_calls_go_to_the_first_replica_that_takes_them() -> None:
    async def main() -> None:
        routing = Routing()
        first, second, third = routing.by_rank("key")
        assert await routing.choose("key", "1") is first
        first.full = True
        assert await routing.choose("key", "2") is second
        first.full = False
        assert await routing.choose("key", "3") is first
        routing.router.on_replica_actor_died(first.replica_id)
        assert await routing.choose("key", "4") is second
        routing.router.update_replicas([third])
        assert await routing.choose("key", "5") is third

    asyncio.run(main())


def test_calls_of_one_request_at_a_time_all_get_their_own_replica() -> None:
    async def main() -> None:
        routing = Routing()
        chosen = await asyncio.gather(*(routing.choose(key, "the same") for key in KEYS[:40]))
        assert chosen == [routing.by_rank(key)[0] for key in KEYS[:40]]

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_call_waits_while_all_are_full_without_asking_them_all_the_time() -> None:
    async def main() -> None:
        routing = Routing()
        for replica in routing.replicas:
            replica.full = True
        waiting = routing.choose("key", "1")
        await asyncio.sleep(1.0)
        assert not waiting.done()
        assert statistics.fmean(replica.asked for replica in routing.replicas) < 50
        routing.replicas[1].full = False
        assert await waiting is routing.replicas[1]

    asyncio.run(main())


def test_calls_without_a_key_go_anywhere() -> None:
    async def main() -> None:
        routing = Routing()
        chosen = {(await routing.choose("", str(number))).replica_id.unique_id for number in range(3)}
        assert chosen <= set(REPLICAS)
        context = SimpleNamespace(metadata=SimpleNamespace(session_id=""))
        assert await routing.router.choose_replicas(routing.replicas, context) == [routing.replicas]

    asyncio.run(main())
