"""Who may talk to the service: whoever can read the token file, which is the person it serves.

The page carries the token in a cookie that scripts cannot read and other sites cannot send. A Host that is not this
machine is refused, so that a name which leads here from outside (DNS rebinding) opens nothing.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path

from fastapi import Request
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "homerank"
HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
#: Paths that need no token: what they say is the same for everybody.
OPEN = frozenset({"/healthz", "/metrics"})
#: Largest body of a request in bytes; an import is a zipped data folder.
MAX_BODY = 4 * 1024**2
MAX_IMPORT = 1024**3

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; require-trusted-types-for 'script';"
        " script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
        " font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_LOCKED = (
    "This page is for the person at this device. Open the link that `homerank-client serve` printed, or run"
    " `homerank-client page` for a new one.\n"
)


def read_token(path: Path) -> str:
    """The token in a file of mode 0600, made when missing: 256 random bits."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return path.read_text(encoding="utf-8").strip()
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        token = secrets.token_urlsafe(32)
        file.write(token + "\n")
    return token


class Gate:
    """ASGI middleware: host, token, size of the body, and the headers that keep a page to itself."""

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [pair for pair in message["headers"] if pair[0].decode().lower() not in _HEADERS]
                extra = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*given, *extra]}
            await send(message)

        answer = self._refusal(scope)
        if answer is not None:
            await answer(scope, receive, with_headers)
            return
        limit = MAX_IMPORT if scope["path"] == "/v1/import" else MAX_BODY
        await self._app(scope, _limited(receive, limit), with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, path = Headers(scope=scope), scope["path"]
        if headers.get("host", "").rsplit(":", 1)[0] not in HOSTS:
            return JSONResponse({"error": "found another Host; expected 127.0.0.1 or localhost"}, 421)
        limit = MAX_IMPORT if path == "/v1/import" else MAX_BODY
        if headers.get("content-length", "0").isdigit() and int(headers.get("content-length", "0")) > limit:
            return JSONResponse({"error": f"found a body of more than {limit} bytes; send less at once"}, 413)
        if path in OPEN:
            return None
        request = Request(scope)
        if path == "/" and "token" in request.query_params:
            if not self._fits(request.query_params["token"]):
                return PlainTextResponse(_LOCKED, 401)
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, self._token.decode(), httponly=True, samesite="strict", max_age=86_400 * 365)
            return answer
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if self._fits(given) or (self._fits(request.cookies.get(COOKIE, "")) and _same_site(headers)):
            return None
        if path == "/":
            return PlainTextResponse(_LOCKED, 401)
        return JSONResponse({"error": "found no valid token; expected `Authorization: Bearer TOKEN`"}, 401)

    def _fits(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token)


def _same_site(headers: Headers) -> bool:
    """Whether a browser says that the request comes from this page; older ones say nothing."""
    origin = headers.get("origin")
    fits = origin is None or origin.split("://", 1)[-1] == headers.get("host")
    return fits and headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")


def _limited(receive: Receive, limit: int) -> Receive:
    """A body that ends after `limit` bytes, whatever length was announced."""
    read = 0

    async def limited() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        return {"type": "http.disconnect"} if read > limit else message

    return limited
