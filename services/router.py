"""Which worker a question goes to: the one that holds the state of its media, as long as that is there and not full.

Nothing is remembered and nothing is asked: every process ranks the replicas by hashing each with the media
(rendezvous hashing), so all come to the same order, and a replica that comes or goes moves its own share alone.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from services.messages import Medium

_PASSED_OVER = "+"


def affinity(media: Sequence[Medium], passed_over: int = 0) -> str:
    """What calls about the same frames of the same media share; passed_over: replicas at the head that refused."""
    facts = repr([(medium.digest, medium.indices) for medium in media])
    return f"{sha256(facts.encode()).hexdigest()}{_PASSED_OVER}{passed_over}"


def ranked(key: str, replicas: Iterable[str]) -> list[str]:
    """The replicas by how much they are meant for `key`; those that were passed over come last."""
    media, _, passed_over = key.partition(_PASSED_OVER)
    order = sorted(replicas, key=lambda replica: sha256(f"{media} {replica}".encode()).digest())
    first = min(int(passed_over or 0), len(order))
    return order[first:] + order[:first]


class AffinityRouter(RequestRouter):  # type: ignore[misc]
    """Sends a call to the best replica for its session id (`affinity`) that takes one more; without an id, anywhere."""

    max_queue_len_response_deadline_s = 8.0
    """How long the last of ever longer attempts to ask a replica lasts: with Ray's 1 s, calls never reach workers on a
    machine that is so busy that they take longer to say how busy they are."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups that are tried one after the other; of one group, the replica with the shortest queue."""
        if pending_request is None or not pending_request.metadata.session_id:
            return [candidate_replicas]
        # All full: ask again after a pause. Without this they are asked in a loop that never pauses.
        pending_request.routing_context.should_backoff = True
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[by_id[replica]] for replica in ranked(pending_request.metadata.session_id, by_id)]

    def _fulfill_next_pending_request(self, replica: RunningReplica, request_metadata: Any = None) -> None:
        """Give the replica to the very call it was chosen for.

        Ray looks calls up by the id of the HTTP request that they serve, and never finds the second of two that one
        request makes at a time: it would wait for ever.
        """
        for pending in self._pending_requests_to_fulfill:
            if pending.metadata is request_metadata:
                self._pending_requests_by_id[pending.metadata.internal_request_id] = pending
        super()._fulfill_next_pending_request(replica, request_metadata)


ROUTING = RequestRouterConfig(request_router_class=AffinityRouter)
"""How the workers' deployments are configured."""
