"""Who may ask: the machine itself, no web page from elsewhere, and only who has the key."""

import hmac
import ipaddress
import json
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response

OPEN_PATHS = ("/", "/health")  # they tell nothing, and need no key


def error_response(
    path: str, status: int, message: str, code: str | None = None, headers: dict | None = None
) -> Response:
    """An error in the form of the protocol that a path belongs to."""
    return Response(
        json.dumps(error_body(path, status, message, code)),
        status,
        media_type="application/json",
        headers=headers,
    )


def error_body(path: str, status: int, message: str, code: str | None = None) -> dict:
    if not path.startswith("/v1/"):
        return {"error": message}
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


class Access:
    """ASGI middleware that lets requests through, or answers them with an error.

    * A browser sends the page's ``Origin``: it must be this server's own. So no web page that the
      user happens to visit can drive the model.
    * ``Host`` must be an address or a known name: a page elsewhere cannot make the browser take its
      own name for this machine ("DNS rebinding").
    * With an ``api_key``, requests carry ``Authorization: Bearer KEY``.
    * A body has at most ``max_bytes``.
    """

    def __init__(self, app, *, names: Collection[str], api_key: str | None, max_bytes: int):
        self.app = app
        self.names = {"localhost", *(name.lower() for name in names)}
        self.api_key, self.max_bytes = api_key, max_bytes

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http":
            refusal = self.refusal(scope["path"], Headers(scope=scope))
            if refusal is not None:
                return await refusal(scope, receive, send)
            receive = self._limited(receive)
        await self.app(scope, receive, send)

    def refusal(self, path: str, headers: Headers) -> Response | None:
        """The answer to a request that is not let through."""
        host = headers.get("host", "")
        if not self.is_known(host):
            return error_response(
                path, 403, f"this server does not answer to the name {host!r:.100}; see --host-name"
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return error_response(path, 403, "requests from other web pages are refused")
        if self.api_key and path not in OPEN_PATHS:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.api_key.encode()):
                answer = {"WWW-Authenticate": "Bearer"}
                message = "the API key is missing or wrong: send Authorization: Bearer KEY"
                return error_response(path, 401, message, "invalid_api_key", answer)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.max_bytes:
            return error_response(path, 413, self._too_long())
        return None

    def is_known(self, host: str) -> bool:
        """Whether the value of a Host header is an address, or a name of this server."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:  # a bracket that is never closed
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.names
        return True

    def _too_long(self) -> str:
        return f"the request has more than {self.max_bytes} bytes: make it shorter"

    def _limited(self, receive):
        """``receive`` that counts what arrives, for bodies that do not say how long they are."""
        seen = 0

        async def counting():
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise BodyTooLong(self._too_long())
            return message

        return counting


class BodyTooLong(Exception):
    """A body without a length, or a wrong one, that goes on and on."""
