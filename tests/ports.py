"""Ports of this machine for servers that tests start."""

import socket
from contextlib import ExitStack


def free_port() -> int:
    """One that nobody listens on right now."""
    [port] = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """So many, none twice."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(probe.getsockname()[1]) for probe in probes]
