"""All the wiring: the deployments, what each is built of, and how they find each other."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.serve import Application

from occam.config import EngineConfig
from occam.engine import Engine
from services import logs
from services.autoscaling import autoscaling
from services.decoder import Decoder, Media
from services.ingress import Ingress
from services.kv import in_words, resolve
from services.media import LocalMedia
from services.placement import DECODER_CPUS, INGRESS_CPUS, WORKER_CPUS, lacking, worker_name
from services.preflight import check, check_arguments, check_deployable, check_node_directory, warn_if_open
from services.router import ROUTING
from services.settings import METRICS_VARIABLE, Settings, model_name
from services.worker import Worker

APP_NAME = "occam"

_DRAIN_S = 20.0
# How long a replica that died is not missed; with Ray's 10 s, whoever needs the one decoder waits for that too.
_HEALTH_S = 2.0
# The ingress and the decoder wait more than they work, and bound what costs by themselves.
_UNBOUNDED = 1024

_LOG = logging.getLogger(__name__)


def application(args: dict[str, Any]) -> Application:
    """The service where Ray deploys it: `import_path: services.app:application` for `serve deploy` and KubeRay.

    args: settings by name, which go before those of the environment; InvalidInput where they will not do, and for
    `directory`, `host` and `port`, which are not among them. The environment in which Ray is started on each node must
    name `OCCAM_DIRECTORY`, a folder of that node, and set
    `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=services.middleware.in_front_of_ray`; `OCCAM_KV_URL` and
    `OCCAM_STATE_URL` must name servers that all nodes reach. Host and port are `http_options` there. Logs are JSON on
    the replicas' standard error, which Ray keeps; `occam exporter` on each node serves its metrics.
    """
    check_arguments(args)
    settings = Settings.load(**args)
    check(settings)
    check_deployable(settings)
    check_node_directory(settings)
    if settings.log_format == "auto":
        settings = replace(settings, log_format="json")
    logs.configure(settings, "builder")
    warn_if_open(settings, "the cluster")
    # A command that is given the import path alone builds the service before it looks for a cluster.
    if ray.is_initialized() and (problem := lacking(settings)):
        _LOG.warning(f"{problem} It is waited for.")
    kv_detail = in_words(resolve(settings.kv_url), settings)
    return build_app(replace(settings, kv_detail=kv_detail, state_detail="the Redis that is set"), redeployed=True)


def build_app(
    settings: Settings,
    load: Callable[[EngineConfig], Engine] = Engine.load,
    media: Callable[[Settings], Media] = LocalMedia,
    redeployed: bool = False,
) -> Application:
    """The service as a Ray Serve application; `settings` name a directory and Redis servers that are there.

    redeployed: it is replaced while it is asked, so everything that has begun may take all of its time, and the one
    ingress and the one decoder stay until their successors are there. Else an end is waited for, and is to come soon.
    """
    drain_s = settings.deadline_s if redeployed else _DRAIN_S
    one: dict[str, Any] = {"graceful_shutdown_timeout_s": drain_s, "max_surge_percent": 100 if redeployed else 0}
    decoder = _deployment(settings, Decoder, "decoder", DECODER_CPUS, _UNBOUNDED, **one).bind(settings, media)
    workers = {
        model_name(model): _deployment(
            settings,
            Worker,
            worker_name(model),
            WORKER_CPUS,
            settings.max_ongoing,
            gpus=settings.gpus_per_worker,
            max_queued=settings.max_queued,
            request_router_config=ROUTING,
            **_replicas(settings, drain_s),
        ).bind(settings, model, load, decoder)
        for model in settings.models
    }
    ingress = _deployment(settings, serve.ingress()(Ingress), "ingress", INGRESS_CPUS, _UNBOUNDED, **one)
    return ingress.bind(settings, decoder, workers)


def _replicas(settings: Settings, drain_s: float) -> dict[str, Any]:
    """How many workers a model has; one that is let go first answers what it has taken, which nothing cuts short."""
    if not settings.max_workers:
        return {"num_replicas": settings.workers, "graceful_shutdown_timeout_s": drain_s}
    return {
        "autoscaling_config": autoscaling(settings),
        "graceful_shutdown_timeout_s": max(drain_s, settings.deadline_s),
    }


def _deployment(
    settings: Settings,
    cls: type,
    name: str,
    cpus: float,
    max_ongoing: int,
    gpus: float = 0.0,
    max_queued: int = -1,
    **options: Any,
) -> serve.Deployment:
    actor = {
        "num_cpus": cpus,
        "num_gpus": gpus,
        "runtime_env": {"env_vars": {METRICS_VARIABLE: str(settings.metrics_directory)}},
    }
    return serve.deployment(cls).options(
        name=name,
        max_ongoing_requests=max_ongoing,
        max_queued_requests=max_queued,
        ray_actor_options=actor,
        health_check_period_s=_HEALTH_S,
        **options,
    )
