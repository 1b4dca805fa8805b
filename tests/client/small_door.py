"""A profile behind its door, and what a hostile process can say to its socket."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

from flwr.app import ConfigRecord, RecordDict

from client.door import wire
from client.door.worker import Answerer
from client.limits import Limits
from client.profile import Profile
from client.store import Row, Store
from shared.artifacts import save_catalogue
from shared.privacy.accounting import Release
from shared.protocol import REFUSALS, Manifest, address_of
from tests.client.small_device import SHELF, rows


def person(home: Path, name: str = "ana", events: Sequence[Row] | None = None) -> Profile:
    """A profile with ten events unless told otherwise, the last one held out."""
    profile = Profile.open(home, name)
    save_catalogue(SHELF, profile.catalogue)
    store = Store(profile.events)
    store.replace(rows([*range(9), 9], held_out=9) if events is None else events)
    store.close()
    return profile


def charges(profile: Profile) -> list[Release]:
    """What the profile's ledger holds."""
    ledger = profile.open_ledger()
    try:
        return ledger.releases(0)
    finally:
        ledger.close()


class InProcess:
    """A `Worker` without a process of its own."""

    def __init__(self, profile: Profile, limits: Limits) -> None:
        self._answerer = Answerer(profile, limits)
        self.alive, self.pid, self.idle_since = True, 0, monotonic()

    def answer(self, content: RecordDict, memory: RecordDict, *, deadline: float) -> tuple[RecordDict, RecordDict]:
        memory = wire.unpack(wire.pack(memory))
        return self._answerer.answer(wire.unpack(wire.pack(content)), memory), memory

    def kill(self) -> None:
        self.alive = False

    def close(self) -> None:
        self.kill()


def say(path: Path, data: bytes, *, announce: int | None = None, timeout: float = 60.0) -> bytes:
    """Everything the door sends back for some bytes; announce: their length as claimed, when it is not theirs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(timeout)
        channel.connect(str(path))
        channel.sendall(struct.pack(">I", len(data) if announce is None else announce) + data)
        channel.shutdown(socket.SHUT_WR)
        found = b""
        with suppress(ConnectionResetError):  # what the door has not read is lost, what it said is not
            while part := channel.recv(65536):
                found += part
    return found


def refused(reply: RecordDict, manifest: Manifest | None = None) -> str | None:
    """The code of a reply that is a refusal and nothing else; None for any other reply."""
    if "refusal" not in reply["config"]:
        return None
    assert set(reply) == {"config"}
    values = dict(reply["config"])
    code = values.pop("refusal")
    assert code in REFUSALS
    assert values in ({}, address_of(manifest) if manifest else {})
    return str(code)


def only_reply(data: bytes) -> RecordDict:
    """The one message in what the door sent, with nothing before or after it."""
    (length,) = struct.unpack(">I", data[:4])
    assert len(data) == 4 + length
    return wire.unpack(data[4:])


NOT_A_QUESTION = {
    "no records": RecordDict(),
    "a manifest that is none": RecordDict({"config": ConfigRecord({"manifest": "{"})}),
    "a refusal": RecordDict({"config": ConfigRecord({"refusal": "budget"})}),
    "a request for rows": RecordDict({"config": ConfigRecord({"query": "SELECT * FROM events"})}),
}
