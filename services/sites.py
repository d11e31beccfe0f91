"""Which requests a page of another site may have made a browser send: all that a service without keys must refuse."""

import ipaddress
import re
import socket
from collections.abc import Iterable

from starlette.types import Scope

from services.errors import CrossSite

_PROBED = frozenset({"/healthz", "/readyz", "/startupz", "/metrics"})
"""Paths that monitoring reaches under whatever name it has, and that say nothing of anybody's."""
_READING = ("GET", "HEAD", "OPTIONS")
_CROSS_SITE = (b"sec-fetch-site", b"cross-site")
_LOCAL = (".localhost", ".local", ".internal", ".svc", ".lan", ".home.arpa")
"""Ends of names that nobody can register in public, among them those of Kubernetes' services and of containers."""
_HOST = re.compile(r"(\[[\da-f:.]+\]|[\w.-]+)(:\d*)?", re.ASCII)
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_FOREIGN_PAGE = "A page of another site sent the request, and without OCCAM_API_KEYS none of those is taken."


class OwnSite:
    """Tells requests to this service's own addresses, and from its own page, from those of other sites.

    A browser writes `Host`, `Origin` and `Sec-Fetch-Site` itself; no page can change them. Whoever owns a public name
    can have it mean this machine while a page of theirs is open (DNS rebinding), and browsers then take that page for
    ours: so only names that no stranger can own are taken. `Sec-Fetch-Site` comes with `https` and `localhost` alone,
    and `Origin` with all that changes something, but for forms of old browsers.
    """

    def __init__(self, host: str) -> None:
        """host: that the service listens on; a name that stands there, and that of the machine, are its own."""
        self._names = {host.lower(), socket.gethostname().lower()}

    def refusal(self, scope: Scope) -> CrossSite | None:
        """Why a request is not taken, if it is not. One without `Host` comes from no browser."""
        hosts, origins = _values(scope, b"host"), _values(scope, b"origin")
        if scope["path"] not in _PROBED:
            for host in hosts:
                if not self._is_own(host):
                    return CrossSite(
                        f"The host {host[:80]!r} may be anybody's name, and without OCCAM_API_KEYS only IP addresses, "
                        "localhost and names of the local network are answered. Use one of those, or set keys."
                    )
        if scope["method"] in _READING:
            return None
        foreign = _CROSS_SITE in scope["headers"] or any(not _is_of(origin, hosts) for origin in origins)
        return CrossSite(_FOREIGN_PAGE) if foreign else None

    def _is_own(self, host: str) -> bool:
        if not (match := _HOST.fullmatch(host)):
            return False
        name = match[1].removesuffix(".")
        return name in self._names or "." not in name or name.endswith(_LOCAL) or _is_address(name)


def _values(scope: Scope, header: bytes) -> list[str]:
    return [value.decode("latin-1").lower() for name, value in scope["headers"] if name == header]


def _is_of(origin: str, hosts: Iterable[str]) -> bool:
    """Whether a page of this origin is one of these hosts' own; `null`, which a page can make its own, is nobody's."""
    scheme, _, place = origin.partition("://")
    return place in {host.removesuffix(_DEFAULT_PORTS.get(scheme, "")) for host in hosts}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
