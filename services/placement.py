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
    """A sentence that says which replicas find no room on nodes with these resources; None: all do.

    The largest are placed first, each on the first node that has room, those without a GPU on nodes without one first.
    """
    free = [{"CPU": node.get("CPU", 0.0), "GPU": node.get("GPU", 0.0)} for node in nodes]
    without: Counter[Need] = Counter()
    for need in sorted(needs, key=lambda need: (-need.gpus, -need.cpus)):
        for node in free if need.gpus else sorted(free, key=lambda node: node["GPU"]):
            if node["CPU"] + _LEAST >= need.cpus and node["GPU"] + _LEAST >= need.gpus:
                node["CPU"] -= need.cpus
                node["GPU"] -= need.gpus
                break
        else:
            without[need] += 1
    if not without:
        return None
    missing = ", ".join(f"{count} of {need.name}, each {need} of one node" for need, count in without.items())
    there = ", ".join(f"{node.get('CPU', 0):g} cores and {node.get('GPU', 0):g} GPUs" for node in nodes)
    return f"There is no room for replicas ({missing}): the cluster's nodes have {there}."


def _needs(settings: Settings) -> list[Need]:
    workers = [
        Need(name=worker_name(model), cpus=WORKER_CPUS, gpus=settings.gpus_per_worker)
        for model in settings.models
        for _ in range(settings.workers)
    ]
    return [Need(name="ingress", cpus=INGRESS_CPUS), Need(name="decoder", cpus=DECODER_CPUS), *workers]
