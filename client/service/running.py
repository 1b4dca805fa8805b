"""Serving one profile on loopback, and finding the service that does.

::

    HOME/profiles/NAME/token          what requests must carry; 0600
    HOME/profiles/NAME/service.json   where the running service listens; gone when it ends
    HOME/profiles/NAME/service.lock   held by the one process that serves this profile
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI

from client.limits import Limits
from client.profile import Profile
from client.service.shop import OpenEngine
from shared.artifacts import write_atomic
from shared.errors import DeploymentError
from shared.loopback import HOST, bound, read_token

TOKEN, WHERE, LOCK = "token", "service.json", "service.lock"


@dataclass(frozen=True)
class Address:
    """Where a profile's service listens, and the token it wants."""

    port: int
    token: str

    @property
    def url(self) -> str:
        """The address of the API."""
        return f"http://{HOST}:{self.port}"

    @property
    def page(self) -> str:
        """The link that opens the page once and for this browser."""
        return f"{self.url}/?token={self.token}"


def token_of(profile: Profile) -> str:
    """The profile's token, made when missing."""
    return read_token(profile.folder / TOKEN)


def find_service(profile: Profile) -> Address | None:
    """Where this profile is served now, None if it is not."""
    try:
        with _held(profile):
            return None
    except BlockingIOError:
        pass
    try:
        found = json.loads((profile.folder / WHERE).read_text(encoding="utf-8"))
        return Address(int(found["port"]), token_of(profile))
    except (OSError, ValueError, KeyError, TypeError):
        raise DeploymentError(
            f"{profile.folder}: found a service or command that uses this profile but does not answer yet; wait for it"
            " to start, or end it"
        ) from None


@contextmanager
def exclusive(profile: Profile) -> Iterator[None]:
    """Hold a profile for the length of a `with` block. DeploymentError while another process does."""
    try:
        with _held(profile):
            yield
    except BlockingIOError:
        raise DeploymentError(f"{profile.folder}: found another process that uses this profile; end it first") from None


def serve_app(app: FastAPI, profile: Profile, listener: socket.socket, *, ready: Callable[[Address], None]) -> None:
    """Serve until SIGINT or SIGTERM. ready: told the address once the profile can be found there.

    Call it inside `exclusive`. uvicorn's access log stays off: paths and times say what somebody does.
    """
    import uvicorn

    address = Address(int(listener.getsockname()[1]), token_of(profile))
    where = profile.folder / WHERE
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, date_header=False)
    server = uvicorn.Server(config)
    facts = {"port": address.port, "pid": os.getpid()}
    write_atomic(where, json.dumps(facts).encode(), private=True)
    ready(address)
    try:
        server.run(sockets=[listener])
    finally:
        where.unlink(missing_ok=True)


def serve_person(
    profile: Profile,
    *,
    engine: OpenEngine,
    limits: Limits,
    port: int,
    training: bool,
    any_time: bool,
    ready: Callable[[Address], None],
    path: Path | None = None,
) -> None:
    """Serve one profile until SIGINT or SIGTERM: the API and the page, and with `training` the door for rounds.

    path: of the door's socket, `client.door.lock.default_socket` when None.

    any_time: train on battery and while the machine is in use, too. DeploymentError while another process serves it.
    """
    from client.door.gate import ANY_TIME, Policy
    from client.door.server import Door
    from client.service.http import make_app
    from client.service.person import Person
    from client.service.training import DoorTraining, NoTraining

    with ExitStack() as stack:
        stack.enter_context(exclusive(profile))
        listener = stack.enter_context(bound(port))
        person = Person(profile, engine=engine, limits=limits)
        stack.callback(person.close)
        if not person.empty:
            _ = person.shop.ranking  # opened before anybody waits for it
        door: DoorTraining | NoTraining = NoTraining()
        if training:
            policy = ANY_TIME if any_time else Policy()
            opened = Door(profile, limits=limits, policy=policy, path=path, on_adapter=person.delivered)
            door = DoorTraining(stack.enter_context(opened))
        app = make_app(person, token=token_of(profile), training=door)
        serve_app(app, profile, listener, ready=ready)


@contextmanager
def _held(profile: Profile) -> Iterator[None]:
    path: Path = profile.folder / LOCK
    with path.open("a") as file:
        path.chmod(0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
