"""API keys: made here, kept as hashes, compared in constant time. A key itself is nowhere but with its user."""

import re
import secrets
from collections.abc import Sequence
from hashlib import sha256
from hmac import compare_digest

from occam.errors import InvalidInput

PREFIX = "occam-"
"""What every key begins with, so that one that leaked is recognised where it lies."""

_TENANT = r"[A-Za-z0-9._-]{1,64}"
_ENTRY = re.compile(rf"({_TENANT}):([0-9a-f]{{64}})")
_FORM = "tenant:hash, a name of 1 to 64 letters, digits, dots, dashes or underscores and 64 hexadecimal digits"


def fresh_key() -> str:
    """A key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def entry_of(tenant: str, key: str) -> str:
    """What `OCCAM_API_KEYS` holds of a tenant's key; InvalidInput where the name is none."""
    check_tenant(tenant, "tenant")
    # A plain hash will do: there is nothing to guess in 256 random bits, so nothing that a slow one would slow down.
    return f"{tenant}:{sha256(key.encode()).hexdigest()}"


def check_tenant(name: str, param: str) -> None:
    """InvalidInput for a name that no tenant can have."""
    if not re.fullmatch(_TENANT, name):
        raise InvalidInput("A tenant's name has 1 to 64 letters, digits, dots, dashes or underscores.", param)


class Keys:
    """Whose each key is, by `tenant:hash` entries; a tenant may have several, so that one can follow another."""

    def __init__(self, entries: Sequence[str]) -> None:
        """InvalidInput for an entry that is none; what it holds is not repeated, for it may be a key."""
        self._owners: list[tuple[bytes, str]] = []
        for number, entry in enumerate(entries, start=1):
            match = _ENTRY.fullmatch(entry)
            if match is None:
                raise InvalidInput(f"Entry {number} of OCCAM_API_KEYS must have the form {_FORM}.", "api_keys")
            self._owners.append((match[2].encode(), match[1]))
        if len({digest for digest, _ in self._owners}) < len(entries):
            raise InvalidInput("OCCAM_API_KEYS has one key twice; every key has one tenant.", "api_keys")

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._owners)

    def tenant(self, key: bytes) -> str | None:
        """The tenant of a key, None for an unknown one; all are compared, so that the time says nothing of them."""
        digest = sha256(key).hexdigest().encode()
        found = None
        for known, tenant in self._owners:
            if compare_digest(known, digest):
                found = tenant
        return found
