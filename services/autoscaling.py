"""How many workers a model has: as many as its queued visual tokens need, and no fewer before it is calm."""

import math
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from services.settings import Settings

QUEUED = "queued_visual_tokens"
"""What a worker reports, by this name: visual tokens that it has admitted and not encoded."""

# While another worker loads, three times as much as it is started for still finds room in those that are there.
_TARGET = 0.25  # of what one admits
_CALM = 0.5  # of the target: one goes where those that stay would have no more
_MEAN_S = 30.0  # that queued tokens are averaged over
_UP_S, _DOWN_S = 10.0, 300.0  # that it must be so without a break: an answer waits for one, a model takes long to load


def wanted(queued: float, workers: int, target: float, least: int, most: int) -> int:
    """Workers for `queued` tokens, `target` each, where there are `workers`; from `least` to `most`."""
    needed = math.ceil(queued / target)
    if needed < workers:
        needed = min(workers, math.ceil(queued / (_CALM * target)))
    return max(least, min(most, needed))


class QueuedTokens:
    """Ray's autoscaling policy by `wanted`."""

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The workers that are wanted; Ray waits and keeps the state."""
        queued = (context.aggregated_metrics or {}).get(QUEUED, {})
        return wanted(
            sum(queued.values()),
            context.target_num_replicas,
            self._target,
            context.capacity_adjusted_min_replicas,
            context.capacity_adjusted_max_replicas,
        ), {}


def autoscaling(settings: Settings) -> AutoscalingConfig:
    """Between `workers` and `max_workers`."""
    target = settings.target_queued_tokens or _TARGET * settings.max_queued_tokens
    return AutoscalingConfig(
        min_replicas=settings.workers,
        max_replicas=settings.max_workers,
        look_back_period_s=_MEAN_S,
        upscale_delay_s=_UP_S,
        downscale_delay_s=_DOWN_S,
        policy=AutoscalingPolicy(policy_function=QueuedTokens, policy_kwargs={"target": target}),
    )
