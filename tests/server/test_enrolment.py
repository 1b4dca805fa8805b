"""Letting a device in: the server's app, and the device that talks to it over TLS."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

from client.deployment import DeviceHome, Invitation, create_keys
from client.enrolment import enrol
from server import certificates
from server.certificates import create_certificates
from server.door import Allowance, Doorkeeper, make_door
from server.fleet import canonical_key
from server.registry import Registry
from shared import enrolment as words
from shared.enrolment import REFUSALS, Ticket, fingerprint_of
from shared.errors import DeploymentError
from shared.protocol import SCHEMA_VERSION


class Flower:
    """What Flower would know: keys and node ids."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self.shut_out: set[str] = set()
        self.down = False

    def register(self, key: str) -> str | None:
        if self.down:
            raise DeploymentError("no server answers")
        if key in self.keys:
            return None
        self.keys[key] = str(100 + len(self.keys))
        return self.keys[key]

    def find(self, key: str) -> str:
        return "" if key in self.shut_out else self.keys.get(key, "")


class Door:
    """The app with its registry, and Flower's place taken by a dictionary."""

    def __init__(self, folder: Path, *, per_minute: float = 6000.0) -> None:
        create_certificates(folder)
        self.ca = (folder / "ca.pem").read_text()
        self.registry, self.flower = Registry(folder / "registry.sqlite"), Flower()
        keeper = Doorkeeper(
            self.registry, register=self.flower.register, find=self.flower.find, allow=Allowance(per_minute)
        )
        self.skew = 0.0
        self.app: FastAPI = make_door(keeper, ca=self.ca, clock=lambda: time.time() + self.skew)


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path / "server")


def request_of(secret: bytes, key: str, /, **changes: object) -> dict[str, Any]:
    """A request to enrol."""
    asked = {"schema": words.ENROLMENT_SCHEMA, "messages": SCHEMA_VERSION, "secret": secret.hex(), "public_key": key}
    return asked | changes


def new_key(folder: Path) -> str:
    """A device's public key."""
    return create_keys(DeviceHome.at(folder)).read_text().strip()


# --- the app -------------------------------------------------------------------------------------------------


def test_a_token_lets_one_device_in_and_both_sides_know_it(door: Door, tmp_path: Path) -> None:
    (secret,) = door.registry.issue(1, hours=1)
    key, thief = new_key(tmp_path / "a"), new_key(tmp_path / "b")
    with TestClient(door.app) as http:
        answer = http.post(words.ENROL_PATH, json=request_of(secret, key + " ana@laptop"))
        assert (answer.status_code, answer.json()) == (200, {"node": "100"})
        assert http.post(words.ENROL_PATH, json=request_of(secret, key)).json() == {"node": "100"}
        again = http.post(words.ENROL_PATH, json=request_of(secret, thief))
        assert (again.status_code, again.json()) == (403, {"error": "used"})
    assert [(device.key, device.node) for device in door.registry.devices()] == [(key, "100")]
    assert door.flower.keys == {key: "100"}
    assert canonical_key(key + " ana@laptop") == key


def test_when_flower_does_not_answer_the_same_device_can_ask_again(door: Door, tmp_path: Path) -> None:
    (secret,) = door.registry.issue(1, hours=1)
    key, thief = new_key(tmp_path / "a"), new_key(tmp_path / "b")
    door.flower.down = True
    with TestClient(door.app) as http:
        assert http.post(words.ENROL_PATH, json=request_of(secret, key)).json() == {"error": "unavailable"}
        door.flower.down = False
        assert http.post(words.ENROL_PATH, json=request_of(secret, thief)).json() == {"error": "used"}
        assert http.post(words.ENROL_PATH, json=request_of(secret, key)).json() == {"node": "100"}


def test_a_crash_between_flower_and_registry_is_mended_by_asking_again(door: Door, tmp_path: Path) -> None:
    (secret,) = door.registry.issue(1, hours=1)
    key = new_key(tmp_path / "a")
    door.registry.redeem(secret, key)
    door.flower.register(key)  # and then the power went
    with TestClient(door.app) as http:
        assert http.post(words.ENROL_PATH, json=request_of(secret, key)).json() == {"node": "100"}
    assert door.registry.devices()[0].node == "100"


def test_a_key_that_flower_shut_out_stays_out(door: Door, tmp_path: Path) -> None:
    (secret,) = door.registry.issue(1, hours=1)
    key = new_key(tmp_path / "a")
    door.flower.register(key)
    door.flower.shut_out.add(key)
    with TestClient(door.app) as http:
        assert http.post(words.ENROL_PATH, json=request_of(secret, key)).json() == {"error": "revoked"}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"schema": 2}, "schema"),
        ({"messages": SCHEMA_VERSION + 1}, "schema"),
        ({"secret": "zz"}, "bad-request"),
        ({"secret": "00"}, "bad-request"),
        ({"secret": 7}, "bad-request"),
        ({"public_key": "ssh-ed25519 AAAA"}, "bad-request"),
        ({"public_key": None}, "bad-request"),
        ({"secret": "00" * 20}, "unknown"),
    ],
)
def test_what_is_wrong_with_a_request_is_one_word(
    door: Door, tmp_path: Path, changes: dict[str, object], code: str
) -> None:
    (secret,) = door.registry.issue(1, hours=1)
    body = request_of(secret, new_key(tmp_path / "a"), **changes)
    with TestClient(door.app) as http:
        answer = http.post(words.ENROL_PATH, json=body)
    assert (answer.status_code, answer.json()) == (REFUSALS[code], {"error": code})
    assert door.registry.devices() == []
    assert door.registry.open_tokens() == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"7", b"{}", b"\xff", b"{" * 3000, b"x" * 5000, b" " * 10_000_000])
def test_bodies_that_are_no_request_are_refused(door: Door, body: bytes) -> None:
    with TestClient(door.app) as http:
        answer = http.post(words.ENROL_PATH, content=body)
    assert (answer.status_code, answer.json()) == (400, {"error": "bad-request"})


def test_more_requests_than_allowed_are_turned_away_unread(tmp_path: Path) -> None:
    door = Door(tmp_path / "server", per_minute=12)
    with TestClient(door.app) as http:
        codes = [http.post(words.ENROL_PATH, content=b"{}").status_code for _ in range(4)]
    assert codes == [400, 400, 429, 429]


def test_an_allowance_comes_back_with_time() -> None:
    now = [0.0]
    allowance = Allowance(60, clock=lambda: now[0])
    assert sum(allowance.take() for _ in range(20)) == 10
    now[0] = 3.0
    assert sum(allowance.take() for _ in range(20)) == 3
    now[0] = 1000.0
    assert sum(allowance.take() for _ in range(20)) == 10


def test_nothing_else_is_there(door: Door) -> None:
    with TestClient(door.app) as http:
        for path in ("/", "/docs", "/openapi.json", "/redoc", "/v1", "/v1/devices"):
            assert http.get(path).status_code == 404
        assert http.get(words.ENROL_PATH).status_code == 405
        assert http.get(words.CA_PATH).text == door.ca


# --- the device ----------------------------------------------------------------------------------------------


@contextmanager
def served(app: FastAPI, folder: Path) -> Iterator[int]:
    """The app over TLS with the server certificate of `folder`; yields the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app, ssl_certfile=folder / "server.pem", ssl_keyfile=str(folder / "server.key"), log_config=None
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield int(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join()


def ticket(door: Door, port: int, *, hours: float = 1.0, ca: str = "") -> Ticket:
    """A new token of this server."""
    (secret,) = door.registry.issue(1, hours=hours)
    return Ticket(f"127.0.0.1:{port}", fingerprint_of(ca or door.ca), secret)


def test_a_device_that_has_a_token_ends_with_an_invitation(door: Door, tmp_path: Path) -> None:
    home = DeviceHome.at(tmp_path / "device")
    with served(door.app, tmp_path / "server") as port:
        given = ticket(door, port)
        found = enrol(f"https://127.0.0.1:{port}", given.token(), home)
        assert enrol(f"127.0.0.1:{port}", given.token(), home) == found
    assert found == Invitation(f"127.0.0.1:{port}", door.ca)
    assert Invitation.read(home.folder / "invitation.json") == found
    assert [device.key for device in door.registry.devices()] == [home.public_key.read_text().strip()]
    assert home.private_key.stat().st_mode & 0o777 == 0o600
    for path in home.folder.rglob("*"):
        assert given.secret not in path.read_bytes()
        assert given.secret.hex().encode() not in path.read_bytes()


def test_somebody_in_between_is_found_out_before_anything_is_said(door: Door, tmp_path: Path) -> None:
    other = Door(tmp_path / "other")
    with served(other.app, tmp_path / "other") as port:
        given = ticket(door, port)
        with pytest.raises(DeploymentError, match="Somebody may stand in between"):
            enrol(given.address, given.token(), DeviceHome.at(tmp_path / "device"))
    assert not (tmp_path / "device" / "invitation.json").exists()


def test_somebody_in_between_who_hands_out_the_right_certificate_learns_nothing(door: Door, tmp_path: Path) -> None:
    other = Door(tmp_path / "other")
    heard: list[bytes] = []
    forged = make_door(_Listener(heard), ca=door.ca)  # type: ignore[arg-type]
    with served(forged, tmp_path / "other") as port:
        given = ticket(door, port)
        with pytest.raises(DeploymentError, match="is not valid"):
            enrol(given.address, given.token(), DeviceHome.at(tmp_path / "device"))
    assert heard == []
    assert other.registry.devices() == []


class _Listener:
    """Keeps what a device would give away."""

    def __init__(self, heard: list[bytes]) -> None:
        self._heard = heard

    def enrol(self, body: bytes) -> str:
        self._heard.append(body)
        return "1"


@pytest.mark.parametrize(
    ("skew", "said"),
    [(-20.0, "20 s ahead of"), (400.0, "400 s behind"), (-4.0, None), (200.0, None)],
)
def test_a_wrong_clock_is_named(door: Door, tmp_path: Path, skew: float, said: str | None) -> None:
    door.skew = skew
    with served(door.app, tmp_path / "server") as port:
        given = ticket(door, port)
        if said is None:
            enrol(given.address, given.token(), DeviceHome.at(tmp_path / "device"))
            return
        with pytest.raises(DeploymentError, match=f"clock is {said} the server's"):
            enrol(given.address, given.token(), DeviceHome.at(tmp_path / "device"))
    assert door.registry.open_tokens() == 1


def test_a_clock_so_wrong_that_the_certificate_seems_expired_is_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "_SERVER_DAYS", 30 / 86400)  # from a minute ago
        door = Door(tmp_path / "server")
    door.skew = -3 * 86400.0  # the device lives three days ahead
    with served(door.app, tmp_path / "server") as port:
        given = ticket(door, port)
        with pytest.raises(DeploymentError, match=r"clock is 2592\d\d s ahead of the server's"):
            enrol(given.address, given.token(), DeviceHome.at(tmp_path / "device"))
        door.skew = 0.0
        with pytest.raises(DeploymentError, match=r"certificate of .* is not valid: certificate has expired"):
            enrol(given.address, given.token(), DeviceHome.at(tmp_path / "device"))


def test_another_schema_is_said_with_who_should_update(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(door.app, tmp_path / "server") as port:
        given = ticket(door, port)
        for mine, older in ((SCHEMA_VERSION - 1, "update this device"), (SCHEMA_VERSION + 1, "update the server")):
            monkeypatch.setattr("client.enrolment.SCHEMA_VERSION", mine)
            with pytest.raises(DeploymentError, match=older):
                enrol(given.address, given.token(), DeviceHome.at(tmp_path / "device"))
    assert door.registry.open_tokens() == 1


def test_expired_used_and_known_are_said_in_words(door: Door, tmp_path: Path) -> None:
    first, second = DeviceHome.at(tmp_path / "a"), DeviceHome.at(tmp_path / "b")
    with served(door.app, tmp_path / "server") as port:
        old, good, spare = ticket(door, port, hours=-1), ticket(door, port), ticket(door, port)
        for given, home, said in (
            (old, first, "has expired"),
            (good, first, None),
            (good, second, "used by another device"),
            (spare, first, "registered already"),
        ):
            if said is None:
                enrol(given.address, given.token(), home)
                continue
            with pytest.raises(DeploymentError, match=said):
                enrol(given.address, given.token(), home)


def test_another_server_than_the_tokens_and_one_that_is_not_there(door: Door, tmp_path: Path) -> None:
    given = ticket(door, 9)
    with pytest.raises(DeploymentError, match=r"found the server example\.org:9 and a token for 127\.0\.0\.1:9"):
        enrol("https://example.org:9", given.token(), DeviceHome.at(tmp_path / "device"))
    assert not (tmp_path / "device").exists()
    with pytest.raises(DeploymentError, match=r"no homerank server answers at 127\.0\.0\.1:9"):
        enrol(given.address, given.token(), DeviceHome.at(tmp_path / "device"))


def test_what_answers_and_is_no_homerank_server(door: Door, tmp_path: Path) -> None:
    with served(FastAPI(), tmp_path / "server") as port:
        given = ticket(door, port)
        with pytest.raises(DeploymentError, match="answered 404 and no certificate"):
            enrol(given.address, given.token(), DeviceHome.at(tmp_path / "device"))
