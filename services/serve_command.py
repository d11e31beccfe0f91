"""`occam serve`: its arguments, and the settings that come of them, the environment and a file."""

import argparse
import os
from typing import Any

from services.settings import FILE_VARIABLE, PREFIX, Given, Settings

_PRECEDENCE = (
    "Every setting is a variable OCCAM_NAME or a line `name: value` of a yaml file. The command line goes before the "
    "environment, and that before the file."
)
# Their values may hold a password.
_UNSAID = ("url", "keys", "endpoint")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Make `parser` that of the command."""
    parser.description = f"Run the service until SIGTERM or SIGINT. {_PRECEDENCE}"
    parser.add_argument("--config", metavar="FILE", help="yaml file of settings (OCCAM_CONFIG)")
    parser.add_argument("--host", help="address to listen on (OCCAM_HOST, 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (OCCAM_PORT, 8000)")
    parser.add_argument("--model", action="append", help="model to serve, may be repeated (OCCAM_MODELS)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    environ = dict(os.environ) | ({FILE_VARIABLE: options.config} if options.config else {})
    said: dict[str, Any] = {"host": options.host, "port": options.port, "models": options.model}
    settings = Settings.load(environ, **said)
    # Ray takes seconds to import, and only this command needs it.
    from services.launch import run

    run(settings, [_shown(name, given) for name, given in Settings.given(environ, **said).items()])


def _shown(name: str, given: Given) -> str:
    """A setting that is live, and where it was set."""
    value = ", ".join(given.value) if isinstance(given.value, tuple) else given.value
    where = f"{PREFIX}{name.upper()}" if given.where == "environment" else given.where
    return f"{name} {'is set' if name.endswith(_UNSAID) else value} ({where})"
