"""A server and six devices in one process, small enough to break in every way there is."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from flwr.app import Context, Message

from client.app import app as client_app
from client.app import open_virtual_ledger
from server.cohorts import sample_cohort
from server.ledger import ServerLedger
from server.strategy import Strategy
from shared.adapter import AdapterState
from shared.artifacts import load_arrays
from shared.protocol import Manifest
from simulations.engines import InlineGrid
from simulations.runfolder import RunFolder, prepare
from tests.simulations.tiny_runs import tiny_config

USERS = 6
SMALL = ("federation.cohort=4", "federation.rounds=3", "federation.quorum=0.5", "evaluation.every=0")
PRIVATE = ("privacy.mode=both", "model.blocks=1")
#: What such a run releases when nothing goes wrong, as phase and round.
EVERYTHING = [("popularity", 0), ("train", 1), ("train", 2), ("train", 3), ("validate", 3)]

OnStep = Callable[[str, Manifest], None]
#: The question before the device sees it, and the replies (none, one or more) before the server does.
OnQuestion = Callable[[Manifest, int, Message], None]
OnReplies = Callable[[Manifest, int, list[Message]], list[Message]]


def start_run(folder: Path, data: Path, *settings: str) -> RunFolder:
    return prepare(tiny_config(data, *SMALL, *PRIVATE, *settings), folder)


def open_ledger(run: RunFolder) -> ServerLedger:
    place = run.path / "server-ledger.sqlite"
    return ServerLedger(place, durable=False, witness=place.with_suffix(".witness"))


def server(run: RunFolder, *, on_step: OnStep = lambda step, manifest: None, **options: Any) -> Strategy:
    """A server from the files of a run folder, as after a start of its process."""
    options.setdefault("ledger", open_ledger(run))
    return Strategy(run.config, run.catalogue, folder=run.path, on_step=on_step, **options)


class Network(InlineGrid):
    """Devices in process, with something between them and the server."""

    def __init__(
        self,
        run: RunFolder,
        *,
        app: Callable[[Message, Context], Message] = client_app,
        on_question: OnQuestion = lambda asked, node, question: None,
        on_replies: OnReplies = lambda asked, node, replies: replies,
    ) -> None:
        super().__init__(app, devices=run.devices, run_config={"out": str(run.path)})
        self._on_question = on_question
        self._on_replies = on_replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            asked, node = Manifest.from_json(str(message.content["config"]["manifest"])), message.metadata.dst_node_id
            sent = Message(message.content.copy(), dst_node_id=node, message_type=message.metadata.message_type)
            self._on_question(asked, node, sent)
            yield from self._on_replies(asked, node, [self._deliver(sent)])


def first_asked(run: RunFolder, number: int = 1) -> int:
    """The first node of a training cohort."""
    nodes = range(1, run.devices + 1)
    return sample_cohort(run.config.federation, nodes=nodes, round_number=number, seed=run.config.seed)[0]


def rows(run: RunFolder, phase: str = "train") -> list[dict[str, Any]]:
    return [row for row in run.rows() if row["phase"] == phase]


def result(run: RunFolder) -> AdapterState:
    """The trained adapter with popularity, shipped or not."""
    return AdapterState(load_arrays(run.path / "candidate.safetensors"))


def charges(run: RunFolder) -> list[tuple[str, int]]:
    """Phase and round of everything that the server's ledger was charged for."""
    return [(e["phase"], e["round"]) for e in open_ledger(run).entries() if e["kind"] == "release"]


def books(run: RunFolder) -> tuple[object, ...]:
    """The server's ledger and every device's."""
    ledger = open_virtual_ledger(run.path)
    return open_ledger(run).entries(), [ledger.releases(device) for device in range(run.devices)]


def same_end(run: RunFolder, other: RunFolder) -> bool:
    """The same adapter bit for bit, and the same in every ledger."""
    return result(run) == result(other) and books(run) == books(other)


def whole_run(folder: Path, data: Path, *settings: str, **how: Any) -> RunFolder:
    """A run to its end; `how` goes to the Network."""
    run = start_run(folder, data, *settings)
    server(run).run(Network(run, **how))
    return run


def kill_at(run: RunFolder, step: str) -> int:
    """Run an experiment in a process of its own that kills itself at a step of round 2; the signal that ended it.

    The process is a fork, which saves it the seconds of loading everything again.
    """
    child = os.fork()
    if child == 0:
        signal.alarm(60)

        def die(reached: str, manifest: Manifest) -> None:
            if (reached, manifest.phase, manifest.round) == (step, "train", 2):
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            server(run, on_step=die).run(Network(run))
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])
