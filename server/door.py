"""The enrolment app: lets a device in that has a token. It listens on loopback, behind the proxy.

What it answers is public: the CA certificate, the time, the version, and for a request to enrol the device's node id
or one code of `shared.enrolment.REFUSALS`. It logs neither keys nor tokens nor addresses.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse

from server.certificates import HOST
from server.deployment import Deployment
from server.fleet import Fleet, canonical_key
from server.registry import Registry
from server.settings import read_settings
from shared.enrolment import (
    CA_PATH,
    ENROL_PATH,
    ENROLMENT_SCHEMA,
    LARGEST_BODY,
    REFUSALS,
    SECRET_BYTES,
    TIME_PATH,
    VERSION_PATH,
    EnrolmentRefused,
)
from shared.errors import DeploymentError
from shared.protocol import SCHEMA_VERSION
from shared.version import version

log = logging.getLogger("homerank.server")


class Allowance:
    """At most so many calls a minute, with some at once; the rest are turned away. clock: seconds, monotonic."""

    def __init__(self, per_minute: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._clock = per_minute / 60, clock
        self._most = max(1.0, per_minute / 6)
        self._left, self._at = self._most, clock()

    def take(self) -> bool:
        """Whether one more may be served now."""
        now = self._clock()
        self._left = min(self._most, self._left + self._rate * (now - self._at))
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Doorkeeper:
    """Redeems tokens, one at a time: registry first, then Flower, so that a crash in between is mended by asking again.

    register: gives a key to Flower, returns its node id, None when it is there already. find: the node id of a key
    that is there, "" when there is none; both raise DeploymentError when Flower does not answer.
    """

    def __init__(
        self, registry: Registry, *, register: Callable[[str], str | None], find: Callable[[str], str], allow: Allowance
    ) -> None:
        self._registry, self._register, self._find, self._allow = registry, register, find, allow
        self._lock = threading.Lock()

    def enrol(self, body: bytes) -> str:
        """The node id of the device that asked. Raises EnrolmentRefused."""
        with self._lock:
            if not self._allow.take():
                raise EnrolmentRefused("too-many")
            secret, key = _read_request(body)
            device = self._registry.redeem(secret, key)
            if device.node:
                return device.node
            try:
                node = self._register(key) or self._find(key)
            except DeploymentError as error:
                log.warning("a device could not be registered: %s", error)
                raise EnrolmentRefused("unavailable") from None
            if not node:
                raise EnrolmentRefused("revoked")
            self._registry.registered(device.number, node)
            log.info("device %d enrolled as node %s", device.number, node)
            return node


def _read_request(body: bytes) -> tuple[bytes, str]:
    """Secret and key of a request to enrol. EnrolmentRefused `bad-request` or `schema`."""
    try:
        asked = json.loads(body)
        schema, messages = asked["schema"], asked["messages"]
        if (schema, messages) != (ENROLMENT_SCHEMA, SCHEMA_VERSION):
            raise EnrolmentRefused("schema")
        secret, key = bytes.fromhex(asked["secret"]), canonical_key(asked["public_key"])
    except (ValueError, KeyError, TypeError, AttributeError, DeploymentError) as error:
        raise error if isinstance(error, EnrolmentRefused) else EnrolmentRefused("bad-request") from None
    if len(secret) != SECRET_BYTES:
        raise EnrolmentRefused("bad-request")
    return secret, key


def make_door(doorkeeper: Doorkeeper, *, ca: str, clock: Callable[[], float] = time.time) -> FastAPI:
    """The app. ca: the certificate that devices are to trust, PEM. clock: seconds UTC."""
    app = FastAPI(title="homerank enrolment", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(EnrolmentRefused)
    def refused(request: Request, error: EnrolmentRefused) -> JSONResponse:
        return JSONResponse({"error": error.code}, REFUSALS[error.code])

    @app.exception_handler(HTTPException)
    def http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": "bad-request"}, error.status_code)

    @app.get(CA_PATH)
    def authority() -> PlainTextResponse:
        """The certificate whose SHA-256 is in every token."""
        return PlainTextResponse(ca)

    @app.get(TIME_PATH)
    def now() -> dict[str, float]:
        """Seconds UTC."""
        return {"time": clock()}

    @app.get(VERSION_PATH)
    def versions() -> dict[str, str | int]:
        """What this server speaks."""
        return {"version": version(), "schema": ENROLMENT_SCHEMA, "messages": SCHEMA_VERSION}

    @app.post(ENROL_PATH)
    async def enrol(request: Request) -> dict[str, str]:
        """Redeem a token: {schema, messages, secret (hex), public_key (OpenSSH)}."""
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_BODY:
                raise EnrolmentRefused("bad-request")
        return {"node": await run_in_threadpool(doorkeeper.enrol, body)}

    return app


def serve(folder: Path) -> None:
    """Serve the enrolment app of a deployment until SIGTERM. Its SuperLink need not run yet."""
    import uvicorn

    deployment = Deployment.at(folder)
    fleet, registry = Fleet(deployment), Registry(deployment.registry)

    def find(key: str) -> str:
        return next((n.node for n in fleet.nodes() if n.key == key and n.status != "unregistered"), "")

    allow = Allowance(10 * read_settings(deployment.folder).enrolments)
    doorkeeper = Doorkeeper(registry, register=fleet.register, find=find, allow=allow)
    app = make_door(doorkeeper, ca=deployment.ca.read_text())
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request
    uvicorn.run(
        app,
        host=HOST,
        port=deployment.door,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=64,
        timeout_keep_alive=5,
    )


if __name__ == "__main__":
    os.umask(0o077)
    serve(Path(sys.argv[1]))
