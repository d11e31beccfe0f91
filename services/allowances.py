"""What each tenant may use: the quotas of the settings, as data."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from occam.errors import InvalidInput
from services.keys import check_tenant

_FORM = "tenant:requests:seconds, requests a minute and seconds of video a day, 0 for as many as come"
_NUMBERS = re.compile(r"(\d{1,9}):(\d{1,9}(?:\.\d{1,3})?)")


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What one tenant may use; 0: as much as comes. requests: a minute; video_seconds: newly decoded, a day."""

    requests: int = 0
    video_seconds: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("QUOTA_REQUESTS", self.requests), ("QUOTA_VIDEO_SECONDS", self.video_seconds)):
            if not (value >= 0 and math.isfinite(value)):
                raise InvalidInput(f"OCCAM_{name} must be 0 or above, got {value}.", name.lower())


def allowances(entries: Sequence[str]) -> dict[str, Allowance]:
    """Quotas of single tenants, by `tenant:requests:seconds` entries; InvalidInput for what is none."""
    found: dict[str, Allowance] = {}
    for entry in entries:
        tenant, _, numbers = entry.partition(":")
        match = _NUMBERS.fullmatch(numbers)
        if match is None:
            raise InvalidInput(f"OCCAM_TENANT_QUOTAS must be of the form {_FORM}; got {entry!r}.", "tenant_quotas")
        check_tenant(tenant, "tenant_quotas")
        if tenant in found:
            raise InvalidInput(f"OCCAM_TENANT_QUOTAS names {tenant} twice.", "tenant_quotas")
        found[tenant] = Allowance(requests=int(match[1]), video_seconds=float(match[2]))
    return found
