"""`occam serve`: start what the service needs, run it, and on SIGTERM let it finish what it has begun."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig

from occam.config import EngineConfig
from occam.engine import Engine
from occam.errors import InvalidInput
from services import metric_files
from services.app import APP_NAME, build_app
from services.decoder import Media
from services.kv import in_words, resolve
from services.log_collector import collected
from services.media import LocalMedia
from services.placement import lacking
from services.preflight import PROXY_CALLBACK, PROXY_VARIABLE, check, check_node_directory, warn_if_open
from services.private_folder import private_folder
from services.private_redis import PrivateRedis
from services.settings import Settings

_STATE_BYTES = 256 << 20
_LOG = logging.getLogger(__name__)


def run(settings: Settings, given: Sequence[str]) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return; InvalidInput before anything is started.

    given: what is set other than by default, in words
    """
    check(settings)
    stop = threading.Event()
    with collected(settings, sys.stdout) as logged:
        _LOG.info(f"Settings: {', '.join([*given, 'all others as by default'])}.")
        with running(logged, stop=stop) as live:
            _LOG.info(f"Cache: {live.kv_detail}. Sessions and videos: {live.state_detail}.")
            warn_if_open(live, live.host)
            _LOG.info(f"Occam answers on http://{settings.host}:{settings.port} (API: /docs)")
            stop.wait()
            _LOG.info("Finishing the requests that have begun.")


@contextmanager
def running(
    settings: Settings,
    load: Callable[[EngineConfig], Engine] = Engine.load,
    media: Callable[[Settings], Media] = LocalMedia,
    stop: threading.Event | None = None,
) -> Iterator[Settings]:
    """The service, from when it is ready until it has drained; gives the settings with what `auto` came to.

    stop: set by the first SIGTERM or SIGINT; without it signals are left alone
    """
    _check_port(settings)
    with _live(settings) as live:
        metric_files.prepare(live.metrics_directory)
        check_node_directory(live)
        with _cluster():
            _check_nodes(settings)
            _check_room(settings)
            if stop is not None:
                for number in (signal.SIGTERM, signal.SIGINT):
                    # After Ray's start, which takes SIGTERM for itself.
                    signal.signal(number, lambda *_: stop.set())
            rays = LoggingConfig(log_level="WARNING", encoding="JSON" if live.log_format == "json" else "TEXT")
            serve.start(http_options=HTTPOptions(host=live.host, port=live.port), logging_config=rays)
            try:
                serve.run(build_app(live, load, media), name=APP_NAME, logging_config=rays)
                yield live
            finally:
                # Deleting drains, as `serve.shutdown()` does not; the rest ends with the cluster.
                serve.delete(APP_NAME)


@contextmanager
def _live(settings: Settings) -> Iterator[Settings]:
    """The settings with every `auto` replaced by what this process started for it."""
    with ExitStack() as stack:
        kv = resolve(settings.kv_url)
        stack.callback(kv.close)
        state_url, state_detail = settings.state_url, "the Redis that is set"
        if state_url == "auto":
            state = PrivateRedis.start(_STATE_BYTES, policy="noeviction")
            stack.callback(state.close)
            state_url, state_detail = state.url, "a private Redis on this machine, lost when the service stops"
        directory = settings.directory or stack.enter_context(private_folder())
        yield replace(
            settings,
            kv_url=kv.url,
            kv_detail=in_words(kv, settings),
            state_url=state_url,
            state_detail=state_detail,
            directory=directory,
        )


@contextmanager
def _cluster() -> Iterator[None]:
    """The Ray cluster that `RAY_ADDRESS` names, or one of our own on this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(PROXY_VARIABLE, PROXY_CALLBACK)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    # It says at every start that the cluster is guarded by a token, which is as it should be.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    options: dict[str, object] = {"log_to_driver": False, "logging_level": "WARNING"}
    if "RAY_ADDRESS" not in os.environ:
        # `local`: never one that somebody else left running. At least four cores, however few the machine has:
        # deployments count as fractions of a core.
        options |= {"address": "local", "num_cpus": max(4, os.cpu_count() or 1), "include_dashboard": False}
    ray.init(**options)
    try:
        yield
    finally:
        ray.shutdown()


def _check_nodes(settings: Settings) -> None:
    """A private server is on this machine, and workers on another could not reach it."""
    if "auto" in (settings.kv_url, settings.state_url) and len(ray.nodes()) > 1:
        raise InvalidInput("On a cluster of several nodes OCCAM_KV_URL and OCCAM_STATE_URL must name Redis servers.")


def _check_room(settings: Settings) -> None:
    """What does not fit would be waited for without a word; a cluster that somebody else runs may still grow."""
    if (problem := lacking(settings)) is None:
        return
    if "RAY_ADDRESS" not in os.environ:
        raise InvalidInput(problem)
    _LOG.warning(f"{problem} It is waited for.")


def _check_port(settings: Settings) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise InvalidInput(
                f"Port {settings.port} of {settings.host} cannot be used: {error.strerror}.", "port"
            ) from error
