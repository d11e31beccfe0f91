"""The launcher's end of the logs: lines from all processes of the node on one stream, one after the other."""

import logging
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from services import logs
from services.private_folder import private_folder
from services.settings import Settings


@contextmanager
def collected(settings: Settings, out: TextIO) -> Iterator[Settings]:
    """Lines of this process and of those that get the given settings come out on `out`.

    The format that `auto` comes to is settled here: text for somebody who watches, JSON for whatever else reads.
    """
    if settings.log_format == "auto":
        settings = replace(settings, log_format="text" if out.isatty() else "json")
    handler = logging.StreamHandler(out)
    logs.install(handler, settings, "launcher")
    with private_folder() as folder, _Collector(path := str(Path(folder, "log")), handler) as collector:
        thread = threading.Thread(target=collector.serve_forever, name="logs", daemon=True)
        thread.start()
        try:
            yield replace(settings, log_socket=path)
        finally:
            collector.shutdown()
            logs.uninstall()


class _Collector(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    # Lines that have been sent are still written, but nobody waits for processes that have not ended.
    block_on_close = False

    def __init__(self, path: str, handler: "logging.StreamHandler[TextIO]") -> None:
        super().__init__(path, _Lines)
        self.handler = handler


class _Lines(socketserver.StreamRequestHandler):
    server: _Collector

    def handle(self) -> None:
        handler = self.server.handler
        for line in self.rfile:
            with handler.lock or threading.Lock():
                handler.stream.write(line.decode())
                handler.flush()
