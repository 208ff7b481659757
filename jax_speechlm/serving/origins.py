"""Refuses requests that a foreign web page makes a visitor's browser send."""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from jax_speechlm.serving.forms import ApiError

_PORTS = {"http": ":80", "https": ":443"}


class SameOrigin:
    """Middleware that answers 403 to a foreign `Origin`, and to a foreign `Host` where a request came by loopback.

    A page of any site can post a form to a service on its visitor's machine; the browser then names the page's site in
    `Origin`. By DNS rebinding a site can also give its own name the address 127.0.0.1, and then `Host` names it.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str] = ()):
        """Wraps an application; `names` are further host names (or host:port) to accept."""
        self.app, self.names = app, {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        await (error.response() if error else self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        name = _name(host)
        is_local = name == "localhost" or _is_loopback(name) or not self.names.isdisjoint((host, name))
        if host and not is_local and _is_loopback((scope.get("server") or ("",))[0]):
            return ApiError(403, f"Host {host[:80]!r} is not this machine; allow it with --names", code="foreign_host")
        for origin in headers.getlist("origin"):
            if not self._is_own(origin.lower(), host):
                return ApiError(
                    403, f"Origin {origin[:80]!r} is another site; allow it with --names", code="foreign_origin"
                )
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            scheme, netloc, *rest = urlsplit(origin)
        except ValueError:
            return False
        if scheme not in _PORTS or any(rest):
            return False
        same = netloc.removesuffix(_PORTS[scheme]) == host.removesuffix(_PORTS[scheme]) != ""
        return same or not self.names.isdisjoint((netloc, _name(netloc)))


def _name(netloc: str) -> str:
    """Returns a host's name or address without its port."""
    name, colon, port = netloc.rpartition(":")
    if not colon or not port.isdecimal():
        name = netloc
    return name.removeprefix("[").removesuffix("]").removesuffix(".")


def _is_loopback(name: str) -> bool:
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
