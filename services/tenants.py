"""Who a request comes from. Ids belong to a tenant: to everybody else they are unknown."""

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, cast

from fastapi import Depends, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.types import ASGIApp, Receive, Scope, Send

from services import problems
from services.errors import InvalidKey
from services.keys import Keys
from services.logs import note
from services.quotas import Quotas
from services.sites import OwnSite
from services.strict_json import StrictRoute

PUBLIC = "public"
"""The one tenant of a service without keys."""

_OPEN = frozenset({"/", "/docs", "/openapi.json", "/healthz", "/readyz", "/startupz"})
_OPEN_BELOW = ("/static/", "/docs/")
"""Paths that need no key, for nothing of any tenant's is there."""

_TENANT = "occam_tenant"
_AUTHORIZATION = b"authorization"
_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_IN_THE_DOCUMENT = HTTPBearer(auto_error=False, description="A key of `OCCAM_API_KEYS`, where the service has any.")


class Doorkeeper:
    """ASGI middleware that lets in whoever has a key; without keys everybody but pages of other sites, as one tenant.

    The header ends here: nothing behind can log it, or pass it on.
    """

    def __init__(self, app: ASGIApp, keys: Keys, site: OwnSite) -> None:
        self._app = app
        self._keys = keys
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its tenant and without its key, or answer with 401 or 403."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == _AUTHORIZATION]
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != _AUTHORIZATION]
        tenant = self._tenant(given) if self._keys else PUBLIC
        if tenant is None and not _is_open(scope["path"]):
            refusal = problems.response(Request(scope), _refusal(given), _CHALLENGE)
            await refusal(scope, receive, send)
            return
        if not self._keys and (foreign := self._site.refusal(scope)):
            await problems.response(Request(scope), foreign)(scope, receive, send)
            return
        if tenant is not None:
            scope.setdefault("state", {})[_TENANT] = tenant
            note(tenant=tenant)
        await self._app(scope, receive, send)

    def _tenant(self, given: list[bytes]) -> str | None:
        """The tenant of the one key that is given; two headers are none, since others may read the other one."""
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        return self._keys.tenant(key.strip()) if scheme.lower() == b"bearer" else None


def _is_open(path: str) -> bool:
    return path in _OPEN or path.startswith(_OPEN_BELOW)


def _refusal(given: list[bytes]) -> InvalidKey:
    if not given:
        return InvalidKey("The request has no API key. Send it in a header `Authorization: Bearer KEY`.")
    return InvalidKey("The API key is not known here. Send one in one header `Authorization: Bearer KEY`.")


async def tenant_of(
    request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_IN_THE_DOCUMENT)] = None
) -> str:
    """The tenant whose key the request came with."""
    return cast(str, getattr(request.state, _TENANT))


Caller = Annotated[str, Depends(tenant_of)]
"""The tenant, as a parameter of a route."""


class CountedRoute(StrictRoute):
    """A route that counts each POST against the quota of its tenant, before any of its body is read; QuotaExceeded."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, behind the count where the route takes POSTs: these are what costs."""
        handler = super().get_route_handler()
        if "POST" not in (self.methods or ()):
            return handler

        async def counted(request: Request) -> Response:
            quotas: Quotas = request.app.state.quotas
            await quotas.take_request(await tenant_of(request))
            return await handler(request)

        return counted
