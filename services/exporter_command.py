"""`occam exporter`: its arguments, and the server that they start."""

import argparse

from occam.errors import InvalidInput
from services.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Make `parser` that of the command."""
    parser.description = (
        "Answer GET /metrics with the numbers of all processes of this node, which count in OCCAM_DIRECTORY, and "
        "GET /healthz. It asks for no key: let nobody but Prometheus reach its port."
    )
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on (0.0.0.0)")  # noqa: S104
    parser.add_argument("--port", type=int, default=9400, help="port to listen on (9400)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    settings = Settings.load()
    if not settings.directory:
        raise InvalidInput("OCCAM_DIRECTORY must name the folder in which this node's service keeps its files.")
    # What it serves with comes in the extra `serve`, and other commands do without.
    from services.exporter import export

    export(options.host, options.port, settings.metrics_directory)
