"""What is looked at before replicas are started, by `occam serve` and where Ray deploys the service by itself."""

import ipaddress
import logging
import os
from collections.abc import Collection
from contextlib import suppress

from occam.errors import InvalidInput, StoreUnavailable
from services import tracing
from services.catalogue import models
from services.node_folder import NodeFolder
from services.settings import PREFIX, Settings

PROXY_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
PROXY_CALLBACK = "services.middleware.in_front_of_ray"
"""What Ray's HTTP proxies must find in that variable when they are started."""

_ELSEWHERE = {
    "directory": f"each node has its own, which {PREFIX}DIRECTORY names in the environment in which Ray is started",
    "host": "Ray's proxies take it from `http_options`",
    "port": "Ray's proxies take it from `http_options`",
}
_LOG = logging.getLogger(__name__)


def check(settings: Settings) -> None:
    """InvalidInput for traces that nothing here sends, and for models that are of no use."""
    tracing.check(settings)
    for entry in models(list(settings.models)):
        if entry.problem is not None:
            raise InvalidInput(f"{entry.name} is {entry.problem}", "model")


def check_node_directory(settings: Settings) -> None:
    """InvalidInput for a folder of states that cannot be used: it would only cost time, and nobody would know."""
    if settings.kv_node_bytes:
        try:
            NodeFolder(settings.node_directory, settings.kv_node_bytes, settings.kv_ttl_s).check()
        except StoreUnavailable as error:
            raise InvalidInput(f"{PREFIX}KV_NODE_DIRECTORY: {error.message}", "kv_node_directory") from error


def check_arguments(names: Collection[str]) -> None:
    """InvalidInput for settings that arguments of the application would not change."""
    for name in (name for name in _ELSEWHERE if name in names):
        raise InvalidInput(f"{name} cannot be set by arguments of the application: {_ELSEWHERE[name]}.", name)


def check_deployable(settings: Settings) -> None:
    """InvalidInput for what only `occam serve` starts for itself, on the one machine that it runs on."""
    for name in ("kv_url", "state_url"):
        if getattr(settings, name) == "auto":
            raise InvalidInput(
                f"{PREFIX}{name.upper()} must name a Redis server: only `occam serve` starts a private one.", name
            )
    if not settings.directory:
        raise InvalidInput(f"{PREFIX}DIRECTORY must name a folder that every node has.", "directory")
    if os.environ.get(PROXY_VARIABLE) != PROXY_CALLBACK:
        raise InvalidInput(
            f"{PROXY_VARIABLE} must be {PROXY_CALLBACK} in the environment in which Ray is started, on every node."
        )


def warn_if_open(settings: Settings, host: str) -> None:
    """Say so where everybody who reaches `host` may use the service."""
    if not settings.api_keys and not _is_loopback(host):
        _LOG.warning(
            f"Without OCCAM_API_KEYS everybody who reaches {host} may use the service. `occam key TENANT` makes a key."
        )


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
