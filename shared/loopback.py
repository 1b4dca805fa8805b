"""What a program serves on its own machine: a socket on loopback, a token in a private file, and a gate before it all.

A page carries the token in a cookie that scripts cannot read and other sites cannot send. A Host that is not this
machine is refused, so that a name which leads here from outside (DNS rebinding) opens nothing.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import DeploymentError

HOST = "127.0.0.1"
HOSTS = frozenset({HOST, "localhost", "[::1]"})
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_YEAR = 86_400 * 365


@dataclass(frozen=True)
class Rules:
    """What a gate lets through. cookie: its name; browsers share cookies between ports, so programs need their own.

    open: paths that need no token, since what they say is the same for everybody. limit: most bytes of a body, by path.
    policy: the pages' Content-Security-Policy. locked: what somebody without a token is told.
    """

    cookie: str
    open: frozenset[str]
    limit: Callable[[str], int]
    policy: str
    locked: str


class Gate:
    """ASGI middleware: host, token, size of the body, and the headers that keep a page to itself."""

    def __init__(self, app: ASGIApp, *, token: str, rules: Rules) -> None:
        self._app, self._token, self._rules = app, token.encode(), rules
        self._headers = {"content-security-policy": rules.policy, **_HEADERS}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [pair for pair in message["headers"] if pair[0].decode().lower() not in self._headers]
                extra = [(name.encode(), value.encode()) for name, value in self._headers.items()]
                message = {**message, "headers": [*given, *extra]}
            await send(message)

        answer = self._refusal(scope)
        if answer is not None:
            await answer(scope, receive, with_headers)
            return
        await self._app(scope, _limited(receive, self._rules.limit(scope["path"])), with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers, path, rules = Headers(scope=scope), scope["path"], self._rules
        if headers.get("host", "").rsplit(":", 1)[0] not in HOSTS:
            return JSONResponse({"error": "found another Host; expected 127.0.0.1 or localhost"}, 421)
        limit = rules.limit(path)
        if headers.get("content-length", "0").isdigit() and int(headers.get("content-length", "0")) > limit:
            return JSONResponse({"error": f"found a body of more than {limit} bytes; send less at once"}, 413)
        if path in rules.open:
            return None
        request = Request(scope)
        if path == "/" and "token" in request.query_params:
            if not self._fits(request.query_params["token"]):
                return PlainTextResponse(rules.locked, 401)
            answer = RedirectResponse("/", 303)
            answer.set_cookie(rules.cookie, self._token.decode(), httponly=True, samesite="strict", max_age=_YEAR)
            return answer
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if self._fits(given) or (self._fits(request.cookies.get(rules.cookie, "")) and _same_site(headers)):
            return None
        if path == "/":
            return PlainTextResponse(rules.locked, 401)
        return JSONResponse({"error": "found no valid token; expected `Authorization: Bearer TOKEN`"}, 401)

    def _fits(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token)


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


@contextmanager
def bound(port: int) -> Iterator[socket.socket]:
    """A socket that listens on loopback; port 0 takes a free one. DeploymentError when the port is taken."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, port))
            listener.listen(128)  # who is told of the address now may connect now; it waits until it is served
        except OSError as error:
            raise DeploymentError(f"port {port}: {error.strerror}; choose another with --port, or 0 for any") from None
        yield listener


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
