"""The numbers of one Ray node over HTTP, for a container beside Ray's that shares its folder."""

import signal
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType

from occam.errors import InvalidInput
from services import metric_files

_PLAIN = "text/plain; charset=utf-8"


def export(host: str, port: int, directory: Path) -> None:
    """Serve until SIGTERM; InvalidInput where the port cannot be had."""
    try:
        server = Exporter(host, port, directory)
    except (OSError, OverflowError) as error:
        raise InvalidInput(f"Port {port} of {host} cannot be used: {error}.", "port") from error
    # As the first process of a container it would otherwise not hear of it.
    signal.signal(signal.SIGTERM, _exit)
    with server:
        server.serve_forever()


def _exit(_: int, __: FrameType | None) -> None:
    sys.exit(0)


class Exporter(ThreadingHTTPServer):
    """Answers for the folder of one node; it empties nothing, so it may be started anew at any time."""

    daemon_threads = True

    def __init__(self, host: str, port: int, directory: Path) -> None:
        super().__init__((host, port), partial(_Handler, directory))


class _Handler(BaseHTTPRequestHandler):
    timeout = 10.0  # seconds that a client may take to say what it wants

    def __init__(self, directory: Path, *args: object) -> None:
        self._directory = directory
        super().__init__(*args)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """`/metrics` and `/healthz`."""
        path = self.path.partition("?")[0]
        if path == "/healthz":
            self._answer(200, b"ok\n", _PLAIN)
        elif path == "/metrics":
            self._metrics()
        else:
            self._answer(404, b"There is /metrics and /healthz.\n", _PLAIN)

    def _metrics(self) -> None:
        try:
            text = metric_files.render(self._directory)
        except OSError as error:
            print(f"occam exporter: {self._directory} cannot be read: {error.strerror}.", file=sys.stderr, flush=True)
            self._answer(500, b"The folder of this node's numbers cannot be read.\n", _PLAIN)
        else:
            self._answer(200, text, metric_files.CONTENT_TYPE)

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """What the header `Server` says."""
        return "occam"

    def log_message(self, *_: object) -> None:
        """A scrape is no event."""
