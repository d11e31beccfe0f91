"""Which sources the operator lets in."""

from dataclasses import dataclass
from pathlib import Path

from occam.errors import ForbiddenSource


@dataclass(frozen=True, kw_only=True)
class SourcePolicy:
    """What may be fetched.

    allowed_hosts: if any, the only public hosts; `*.example.org` stands for all names below example.org
    allow_private_hosts: `host:port` pairs, spelled as in the URL, whose addresses need not be public
    file_roots: folders whose files `file://` URLs and plain paths may name
    """

    allowed_hosts: tuple[str, ...] = ()
    allow_private_hosts: tuple[str, ...] = ()
    file_roots: tuple[Path, ...] = ()

    def is_private(self, host: str, port: int) -> bool:
        """True iff `host:port` is one of the private hosts that were opened by name."""
        return f"{host}:{port}" in self.allow_private_hosts

    def check_host(self, host: str, port: int) -> None:
        """Raise ForbiddenSource if the list of hosts leaves `host` out."""
        if not self.allowed_hosts or self.is_private(host, port):
            return
        if not any(host == name or (name[:2] == "*." and host.endswith(name[1:])) for name in self.allowed_hosts):
            raise ForbiddenSource(f"The host {host} is not among the hosts that may be fetched (OCCAM_ALLOWED_HOSTS).")
