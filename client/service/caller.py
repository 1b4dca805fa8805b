"""How a command reaches the service: the one that runs, or else the same application in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from client.profile import Profile
from client.service.running import exclusive, find_service, token_of
from client.service.shop import OpenEngine
from shared.errors import DeploymentError, RunError
from shared.loopback import HOST

#: Seconds; an import may encode a catalogue.
TIMEOUT = 3600.0


class Caller:
    """Asks the service. `call` raises RunError with the service's own words for anything but success."""

    def __init__(self, send: Any) -> None:
        self._send = send

    def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        params: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> Any:
        """The answer: JSON, or bytes where it is a file. key: the request's name, so that it counts once."""
        headers = {"idempotency-key": key} if key else None
        answer: httpx.Response = self._send(method, path, json=json, content=content, params=params, headers=headers)
        if answer.headers.get("content-type", "").startswith("application/json"):
            found = answer.json()
            if answer.is_success:
                return found
            raise RunError(str(found.get("error", found)))
        if answer.is_success:
            return answer.content
        raise RunError(f"the service answered {answer.status_code}; expected 200. See homerank-client doctor")


@contextmanager
def reached(profile: Profile, *, engine: OpenEngine) -> Iterator[Caller]:
    """A caller for the length of a `with` block. engine: for this process, when no service runs."""
    address = find_service(profile)
    if address is not None:
        headers = {"authorization": f"Bearer {address.token}"}
        with httpx.Client(base_url=address.url, headers=headers, timeout=TIMEOUT, trust_env=False) as client:
            yield Caller(lambda *args, **given: _over_http(client, *args, **given))
        return
    from client.service.http import make_app
    from client.service.person import Person

    with exclusive(profile):
        person = Person(profile, engine=engine)
        app = make_app(person, token=token_of(profile))
        try:
            yield Caller(lambda *args, **given: asyncio.run(_in_process(app, token_of(profile), *args, **given)))
        finally:
            person.close()


def _over_http(client: httpx.Client, *args: Any, **given: Any) -> httpx.Response:
    try:
        return client.request(*args, **given)
    except httpx.HTTPError as error:
        raise DeploymentError(f"the service does not answer ({type(error).__name__}); start it again") from None


async def _in_process(app: Any, token: str, *args: Any, **given: Any) -> httpx.Response:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}", headers=headers) as client:
        return await client.request(*args, **given)
