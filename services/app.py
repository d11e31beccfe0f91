"""All the wiring: the deployments, what each is built of, and how they find each other."""

from collections.abc import Callable
from typing import Any

from ray import serve
from ray.serve import Application

from occam.config import EngineConfig
from occam.engine import Engine
from services.decoder import Decoder, Media
from services.ingress import Ingress
from services.media import LocalMedia
from services.router import ROUTING
from services.settings import METRICS_VARIABLE, Settings, model_name
from services.worker import Worker

APP_NAME = "occam"

# Fractions: the deployments share the cores, and Ray only counts with these.
_INGRESS_CPUS = 0.1
_DECODER_CPUS = 0.2
_WORKER_CPUS = 0.4
_DRAIN_S = 20.0
# The ingress and the decoder wait more than they work, and bound what costs by themselves.
_UNBOUNDED = 1024


def build_app(
    settings: Settings,
    load: Callable[[EngineConfig], Engine] = Engine.load,
    media: Callable[[Settings], Media] = LocalMedia,
) -> Application:
    """The service as a Ray Serve application; `settings` name a directory and Redis servers that are there."""
    decoder = _deployment(settings, Decoder, "decoder", _DECODER_CPUS, _UNBOUNDED).bind(settings, media)
    workers = {
        model_name(model): _deployment(
            settings,
            Worker,
            f"worker-{model_name(model)}",
            _WORKER_CPUS,
            settings.max_ongoing,
            replicas=settings.workers,
            gpus=settings.gpus_per_worker,
            max_queued=settings.max_queued,
            request_router_config=ROUTING,
        ).bind(settings, model, load, decoder)
        for model in settings.models
    }
    ingress = _deployment(settings, serve.ingress()(Ingress), "ingress", _INGRESS_CPUS, _UNBOUNDED)
    return ingress.bind(settings, decoder, workers)


def _deployment(
    settings: Settings,
    cls: type,
    name: str,
    cpus: float,
    max_ongoing: int,
    replicas: int = 1,
    gpus: float = 0.0,
    max_queued: int = -1,
    **options: Any,
) -> serve.Deployment:
    environment = {METRICS_VARIABLE: str(settings.metrics_directory)}
    return serve.deployment(cls).options(
        name=name,
        num_replicas=replicas,
        max_ongoing_requests=max_ongoing,
        max_queued_requests=max_queued,
        graceful_shutdown_timeout_s=_DRAIN_S,
        ray_actor_options={
            "num_cpus": cpus,
            "num_gpus": gpus,
            "runtime_env": {"env_vars": environment},
        },
        **options,
    )
