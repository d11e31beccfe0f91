"""Which network addresses a fetch may reach: public unicast ones, however they are spelled or embedded."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from occam.errors import ForbiddenSource, SourceUnavailable

_LOG = logging.getLogger(__name__)

Address = IPv4Address | IPv6Address
Resolver = Callable[[str, int], Awaitable[list[str]]]

# IANA's special-purpose registries, multicast and the reserved block; written out because `is_global` has changed its
# mind between Python releases. The last line is a cloud's metadata service on a public address.
_REFUSED_V4 = [
    IPv4Network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        *("192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",
    )
]
# Of IPv6 only global unicast is open, less the blocks that wrap an IPv4 address (Teredo, 6to4) or document things.
_GLOBAL_V6 = IPv6Network("2000::/3")
_REFUSED_V6 = [IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """True iff `address` is public unicast; IPv4 inside mapped or NAT64 IPv6 is judged by itself."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _REFUSED_V4)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    return address in _GLOBAL_V6 and not any(address in network for network in _REFUSED_V6)


def check_spelling(host: str) -> None:
    """Refuse numeric hosts that only `inet_aton` understands: decimal, octal, hexadecimal and shortened IPv4.

    Raises ForbiddenSource. Source: the WHATWG URL standard's "ends in a number" rule.
    """
    last = host.rstrip(".").rpartition(".")[2].lower()
    digits = last.removeprefix("0x")
    numeric = last.isdigit() or (last.startswith("0x") and all(c in "0123456789abcdef" for c in digits))
    if not numeric:
        return
    try:
        IPv4Address(host)
    except ValueError:
        raise ForbiddenSource("The address spells an IPv4 host in an unusual way, which is not fetched.") from None


async def resolve(host: str, port: int) -> list[str]:
    """Return the numeric addresses of `host`, as the system's resolver gives them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def checked_addresses(host: str, port: int, *, private: bool, resolver: Resolver) -> list[str]:
    """Resolve `host` and return its addresses, all of them public unless `private` is set.

    Raises ForbiddenSource if one of them is not public or there is none: a stranger who could tell these apart would
    learn which names exist inside. SourceUnavailable if there is none where private ones may be.
    """
    check_spelling(host)
    try:
        addresses = await resolver(host, port)
    except OSError as error:
        _LOG.info("a host's name was not resolved: %s", error.strerror)
        addresses = []
    if private and not addresses:
        raise SourceUnavailable(f"The host {host} has no address.")
    # A zone index (fe80::1%eth0) is the mark of a link-local address.
    public = addresses and all("%" not in text and is_public(ip_address(text)) for text in addresses)
    if not (private or public):
        raise ForbiddenSource(
            f"The host {host} is not known on the public network, and {host}:{port} is not in "
            "OCCAM_ALLOW_PRIVATE_HOSTS."
        )
    return addresses
