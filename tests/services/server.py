"""A service of `world` behind a real socket, for clients that are not of this event loop."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from tests.services.world import world


@contextmanager
def served(directory: Path, redis_url: str, **options: Any) -> Iterator[str]:
    """The base URL of the service while it runs on a thread."""
    ready, servers = threading.Event(), []
    listener = socket.create_server(("127.0.0.1", 0))

    async def main() -> None:
        async with world(directory, redis_url, **options) as service:
            api = service.http._transport.app  # type: ignore[attr-defined]
            server = uvicorn.Server(uvicorn.Config(api, log_level="critical", lifespan="off", ws="none"))
            servers.append(server)
            ready.set()
            await server.serve(sockets=[listener])

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        servers[0].should_exit = True
        thread.join(30)
        listener.close()
