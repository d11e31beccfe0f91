"""A TCP line to a Redis on a unix socket that carries so many bytes a second towards the client."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

CHUNK = 16 << 10
FAST = 1e12


class SlowLine:
    """The line; `bytes_per_s` may be changed at any time."""

    def __init__(self, socket: Path) -> None:
        self.bytes_per_s = FAST
        self.url = ""
        self._socket = socket

    async def carry(self, client_reader: asyncio.StreamReader, client_writer: asyncio.StreamWriter) -> None:
        """One connection, until either end closes it."""
        reader, writer = await asyncio.open_unix_connection(str(self._socket))
        try:
            with suppress(ConnectionError):
                async with asyncio.TaskGroup() as directions:
                    directions.create_task(self._copy(client_reader, writer, throttled=False))
                    directions.create_task(self._copy(reader, client_writer, throttled=True))
        except* ConnectionError:
            pass
        finally:
            writer.close()
            client_writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, throttled: bool) -> None:
        while data := await reader.read(CHUNK):
            if throttled and self.bytes_per_s < FAST:
                await asyncio.sleep(len(data) / self.bytes_per_s)
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


@asynccontextmanager
async def slow_line(socket: Path) -> AsyncIterator[SlowLine]:
    """A line in front of the Redis on `socket`, on a free port."""
    line = SlowLine(socket)
    server = await asyncio.start_server(line.carry, "127.0.0.1", 0)
    line.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield line
