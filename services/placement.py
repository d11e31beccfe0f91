"""What replicas take of a cluster's nodes, and whether they find it there, before Ray waits for it without a word."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from services.settings import Settings, model_name

# Fractions: the deployments share the cores, and Ray only counts with these.
INGRESS_CPUS = 0.1
DECODER_CPUS = 0.2
WORKER_CPUS = 0.4

_LEAST = 1e-6  # of a core or GPU: fractions that add up to one are a little more or less than one


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one replica takes of a node, as Ray counts it."""

    name: str
    cpus: float
    gpus: float = 0.0

    def __str__(self) -> str:
        return " and ".join([f"{self.cpus:g} of a core", *([f"{self.gpus:g} of its GPUs"] if self.gpus else [])])


def worker_name(model: str) -> str:
    """The deployment that serves a model."""
    return f"worker-{model_name(model)}"


def lacking(settings: Settings) -> str | None:
    """See `shortage`, on the nodes that there are now: all that must be there, and as few workers as there may be."""
    return shortage(_needs(settings), [node["Resources"] for node in ray.nodes() if node["Alive"]])


def shortage(needs: Sequence[Need], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """A sentence that says which replicas find no room on nodes with these resources; None: there is room for all.

    The largest are placed first, each on the first node that has room; Ray itself may place them worse.
    """
    free = [_Free(node) for node in nodes]
    without: Counter[Need] = Counter()
    for need in sorted(needs, key=lambda need: (-need.gpus, -need.cpus)):
        # Those without a GPU leave the cores beside GPUs to others.
        if not any(node.take(need) for node in (free if need.gpus else sorted(free, key=lambda node: len(node.gpus)))):
            without[need] += 1
    if not without:
        return None
    missing = ", ".join(f"{count} of {need.name}, each {need} of one node" for need, count in without.items())
    there = ", ".join(f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in nodes)
    return f"There is no room for replicas ({missing}): the cluster's nodes have {there}."


class _Free:
    """What is left of a node: of its cores, and of each GPU."""

    def __init__(self, resources: Mapping[str, float]) -> None:
        self.cpus = resources.get("CPU", 0.0)
        self.gpus = [1.0] * int(resources.get("GPU", 0.0))

    def take(self, need: Need) -> bool:
        """Take what is needed, if it is there: a fraction is one of a single GPU, a whole number of unshared ones."""
        share = min(need.gpus, 1.0)
        count = round(need.gpus / share) if share else 0
        fitting = [index for index, left in enumerate(self.gpus) if left + _LEAST >= share][:count]
        if self.cpus + _LEAST < need.cpus or len(fitting) < count:
            return False
        self.cpus -= need.cpus
        for index in fitting:
            self.gpus[index] -= share
        return True


def _needs(settings: Settings) -> list[Need]:
    workers = [
        Need(name=worker_name(model), cpus=WORKER_CPUS, gpus=settings.gpus_per_worker)
        for model in settings.models
        for _ in range(settings.workers)
    ]
    return [Need(name="ingress", cpus=INGRESS_CPUS), Need(name="decoder", cpus=DECODER_CPUS), *workers]
