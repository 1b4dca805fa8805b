"""Faults thrown into a simulation at random, and an account of every one of them.

`FaultyDevices` wraps the ClientApp and spoils replies, `FaultyNetwork` wraps the Grid and loses or repeats them,
`FaultyServer` ends the server at a step of a round or fills its disk, and `run_chaotic` starts it again from its files.
What meets which fault is a hash of the seed and of phase, round and device, so a round that is asked again after a
crash meets the same faults, and a run with crashes ends bit for bit like one without.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from server.checkpoint import whole_rows
from server.ledger import ServerLedger
from server.strategy import Strategy
from shared import artifacts
from shared.artifacts import load_catalogue, write_json
from shared.config import load_config
from shared.errors import HomerankError
from shared.protocol import Manifest
from simulations.engines import ClientFunction, InlineGrid
from simulations.faults import FAULTS

log = logging.getLogger("homerank.simulations")

#: Server faults per step and message fault: a round has six steps and many messages. At chaos 0.2, 200 rounds see
#: about 15 of them.
STEP_SHARE = 1 / 16

#: Where the server can be killed, as `Strategy.on_step` names it, and what can happen to its disk.
SERVER_FAULTS = ("asked", "charged", "released", "disk-full", "saved", "recorded")
#: A refusal that a device gave for reasons of its own, in the account; the code follows.
OWN = "own refusal: "


class CrashError(BaseException):
    """The server process dies here, as after kill -9; nothing that catches Exception sees it."""


@dataclass
class Chaos:
    """Which fault meets what, and the account of those that did.

    messages, steps: probability of a fault in each message to a device, and of one at each step of the server.
    met: fault by node in each (phase, round). server: injected server faults. The account covers one attempt of each
    round: the others met the same faults.
    """

    seed: int
    messages: float
    steps: float
    met: dict[tuple[str, int], dict[int, str]] = field(default_factory=dict)
    server: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of_rate(cls, seed: int, rate: float) -> Chaos:
        """Faults of every kind at `--chaos RATE`."""
        return cls(seed, messages=rate, steps=rate * STEP_SHARE)

    def strikes(self, *what: object, rate: float) -> int:
        """A number above 0 with probability `rate`, always the same for the same arguments; else 0."""
        digest = hashlib.sha256(json.dumps([self.seed, *what]).encode()).digest()
        chance, choice = (int.from_bytes(part, "big") for part in (digest[:8], digest[8:16]))
        return choice + 1 if chance < rate * 2**64 else 0

    def fault_of(self, message: Message) -> str:
        """The fault that this message is to meet; "" for none."""
        phase, number, node = _address(message)
        choice = self.strikes(phase, number, node, rate=self.messages)
        return list(FAULTS)[choice % len(FAULTS)] if choice else ""

    def note(self, message: Message, fault: str) -> None:
        """Write a fault that has happened to a message into the account."""
        phase, number, node = _address(message)
        row = (phase, 0 if phase == "prior" else number)  # one row for all of its groups
        self.met.setdefault(row, {})[node] = fault

    def account(self, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """What was injected into the recorded rounds, what the server counted, and what does not match. JSON values.

        rows: of metrics.jsonl. unexplained: by round and code, [faults with that code, refusals counted].
        """
        recorded = {(row["phase"], row["round"]): Counter(row["refused"]) for row in rows}
        faults = {asked: Counter(self.met.get(asked, {}).values()) for asked in recorded}
        injected = sum(faults.values(), Counter[str]())
        unexplained = {
            f"{phase} {number}": {code: [expected[code], refused[code]] for code in expected | refused}
            for (phase, number), refused in recorded.items()
            if (expected := _expected(faults[phase, number])) != refused
        }
        return {
            "rates": {"messages": self.messages, "steps": self.steps},
            "devices": {fault: {"met": injected[fault], "counted_as": _code(fault)} for fault in sorted(injected)},
            "server": dict(sorted(self.server.items())),
            "refused": dict(sorted(sum(recorded.values(), Counter[str]()).items())),
            "unexplained": unexplained,
        }


class FaultyDevices:
    """A ClientApp whose devices fail and whose replies are spoiled."""

    def __init__(self, app: ClientFunction, *, chaos: Chaos) -> None:
        self._app = app
        self._chaos = chaos

    def __call__(self, message: Message, context: Context) -> Message:
        fault = self._chaos.fault_of(message)
        if fault == "exception":
            self._chaos.note(message, fault)
            raise RuntimeError("the device fails")
        reply = self._app(message, context)
        if not _is_answer(reply):
            self._chaos.note(message, OWN + str(reply.content["config"]["refusal"]))
        elif fault:
            FAULTS[fault].spoil(reply.content)
            self._chaos.note(message, fault)
        return reply


class FaultyNetwork(Grid):
    """A Grid that loses some messages and delivers some replies twice."""

    def __init__(self, grid: Grid, *, chaos: Chaos) -> None:
        self._grid = grid
        self._chaos = chaos

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            fault = self._chaos.fault_of(message)
            replies = [] if fault == "drop-out" else list(self._grid.send_and_receive([message], timeout=timeout))
            if fault in ("drop-out", "straggler"):
                self._chaos.note(message, fault)
                continue
            yield from replies
            if fault == "duplicate" and all(map(_is_answer, replies)):
                yield from replies


class FaultyServer:
    """Ends the server at some steps, each step of each round at most once."""

    def __init__(self, chaos: Chaos) -> None:
        self._chaos = chaos
        self._done: set[tuple[str, str, int]] = set()
        self._last: Manifest | None = None

    def on_step(self, step: str, manifest: Manifest) -> None:
        """For `Strategy`; raises CrashError where the server is to die."""
        self._last = manifest
        if self._strikes(step, manifest):
            raise CrashError

    @contextmanager
    def on_full_disk(self, folder: Path) -> Iterator[None]:
        """Inside, some writes of the checkpoint fail for want of space."""
        real = artifacts.write_atomic

        def write(path: Path, data: bytes, *, private: bool = False) -> None:
            checkpoint = path == folder / "checkpoint.safetensors"
            if checkpoint and self._last is not None and self._strikes("disk-full", self._last):
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            real(path, data, private=private)

        artifacts.write_atomic = write
        try:
            yield
        finally:
            artifacts.write_atomic = real

    def _strikes(self, step: str, manifest: Manifest) -> bool:
        where = (step, manifest.phase, manifest.round)
        if where in self._done or not self._chaos.strikes("server", *where, rate=self._chaos.steps):
            return False
        self._done.add(where)
        self._chaos.server[step] += 1
        return True


def run_chaotic(folder: Path, *, devices: int, chaos: Chaos) -> dict[str, Any]:
    """Run or continue a run folder's experiment to its end under faults; the account, also in chaos.json.

    The server is started again from its files after every fault that ends it. Raises whatever the server raises
    for another reason, for example RunError when too few devices answer; the account is written all the same.
    """
    from client.app import app as client_app

    path = folder / "chaos.json"
    _recall(chaos, path)
    inline = InlineGrid(FaultyDevices(client_app, chaos=chaos), devices=devices, run_config={"out": str(folder)})
    grid, server = FaultyNetwork(inline, chaos=chaos), FaultyServer(chaos)
    try:
        with server.on_full_disk(folder):
            while not _serve(folder, grid, server=server, chaos=chaos):
                log.warning("the server died; it is started again from its files")
    finally:
        account = chaos.account(whole_rows(folder / "metrics.jsonl"))
        met = [[*asked, node, fault] for asked, nodes in chaos.met.items() for node, fault in nodes.items()]
        write_json(path, {**account, "met": met})
    return account


def _serve(folder: Path, grid: Grid, *, server: FaultyServer, chaos: Chaos) -> bool:
    """One life of the server, from its files; False when an injected fault ended it."""
    survived = chaos.server.total()
    config, catalogue = load_config(folder / "config.toml"), load_catalogue(folder / "items.jsonl")
    place = folder / "server-ledger.sqlite"
    ledger = ServerLedger(place, durable=False, witness=place.with_suffix(".witness"))
    try:
        Strategy(config, catalogue, folder=folder, ledger=ledger, on_step=server.on_step).run(grid)
    except (CrashError, OSError, HomerankError):
        if chaos.server.total() == survived:
            raise
        return False
    finally:
        ledger.close()
    return True


def _recall(chaos: Chaos, path: Path) -> None:
    """Go on with the account of an interrupted run."""
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        chaos.server.update(known["server"])
        for phase, number, node, fault in known["met"]:
            chaos.met.setdefault((phase, number), {})[node] = fault


def _address(message: Message) -> tuple[str, int, int]:
    manifest = _manifest(str(message.content["config"]["manifest"]))
    return manifest.phase, manifest.round, message.metadata.dst_node_id


@lru_cache(maxsize=4)
def _manifest(text: str) -> Manifest:
    return Manifest.from_json(text)


def _is_answer(reply: Message) -> bool:
    return reply.has_content() and "arrays" in reply.content


def _code(fault: str) -> str:
    return fault.removeprefix(OWN) if fault.startswith(OWN) else FAULTS[fault].counted_as


def _expected(faults: Mapping[str, int]) -> Counter[str]:
    """Refusals by code that a round's faults should come to."""
    codes = Counter[str]()
    for fault, count in faults.items():
        codes[_code(fault)] += count
    del codes[""]
    return codes
