"""The service in one process over fakes, as in `world`, behind a real socket: for clients that bring their own HTTP."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from tests.services.world import World, world


@dataclass(frozen=True)
class Served:
    """Where the service listens, and its inside, which lives on an event loop of another thread."""

    url: str
    world: World
    loop: asyncio.AbstractEventLoop


@contextmanager
def served(directory: Path, redis_url: str, **options: Any) -> Iterator[Served]:
    """The service on a free port of this machine, for as long as the context lasts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        ready, stop, live = threading.Event(), asyncio.Event(), []

        async def main() -> None:
            async with world(directory, redis_url, **options) as service:
                # A client that waits for the reply of a server that is going away waits for two seconds at most.
                config = uvicorn.Config(service.api, log_level="critical", lifespan="off", timeout_graceful_shutdown=2)
                server = uvicorn.Server(config)
                serving = asyncio.create_task(server.serve([listener]))
                live.append(
                    Served(f"http://127.0.0.1:{listener.getsockname()[1]}", service, asyncio.get_running_loop())
                )
                ready.set()
                await stop.wait()
                server.should_exit = True
                await serving

        def run() -> None:
            try:
                asyncio.run(main())
            finally:
                ready.set()

        thread = threading.Thread(target=run)
        thread.start()
        ready.wait()
        assert live, "the service did not start"
        try:
            yield live[0]
        finally:
            live[0].loop.call_soon_threadsafe(stop.set)
            thread.join()
