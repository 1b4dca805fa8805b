"""A deployment folder as a private run with real faults leaves it, in one process and seconds."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from flwr.app import Message
from flwr.supercore.state.schema.linkstate_models import LinkStateBase, Node
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from server.certificates import create_certificates
from server.journal import JOURNAL, Journal, watcher
from server.publishing import publish
from shared.protocol import Manifest
from tests.server.small_server import Network, open_ledger, server, start_run

ROUNDS = 12


def drop_some(asked: Manifest, node: int, replies: list[Message]) -> list[Message]:
    """Every fifth training reply is lost on the way; the server finds it late."""
    lost = asked.phase == "train" and (asked.round + node) % 5 == 0
    return [] if lost else replies


def watched_run(folder: Path, data: Path, *, rounds: int = ROUNDS, stop_after: int = 0) -> Path:
    """DIR with a run, its ledger and its journal. stop_after: end as a crash would, after that round."""
    run = start_run(folder / "run", data, f"federation.rounds={rounds}")
    ledger = open_ledger(run)
    watching = watcher(Journal(folder / JOURNAL), folder=run.path, ledger=ledger, rounds=rounds)

    class Stopped(Exception):
        """The power went out."""

    def on_step(step: str, manifest: Manifest) -> None:
        watching(step, manifest)
        if stop_after and (step, manifest.phase, manifest.round) == ("recorded", "train", stop_after):
            raise Stopped

    try:
        server(run, ledger=ledger, on_step=on_step).run(Network(run, on_replies=drop_some))
    except Stopped:
        return folder
    finally:
        ledger.close()
    return folder


def deployed(folder: Path) -> Path:
    """The same as real devices would have left it: no virtual devices, the ledger where a deployment keeps it."""
    for file in (folder / "run").glob("devices.sqlite*"):
        file.unlink()
    for file in (folder / "run").glob("server-ledger.*"):
        shutil.move(file, folder / file.name.replace("server-ledger", "ledger"))
    create_certificates(folder)
    write_nodes(folder / "superlink.sqlite", online=5, silent=2, unregistered=1)
    return folder


def released(folder: Path, *, names: tuple[str, ...] = ("first", "with more rounds")) -> Path:
    """Publish the run's adapter, each time a little different."""
    for name in names:
        manifest = folder / "run" / "adapter" / "homerank.json"
        manifest.write_text(manifest.read_text() + " ")
        publish(folder, folder / "run", name=name)
    return folder


def write_nodes(path: Path, *, online: int, silent: int, unregistered: int) -> None:
    """Flower's own table of nodes, made by Flower's own code."""
    engine = create_engine(f"sqlite:///{path}")
    LinkStateBase.metadata.create_all(engine)
    now, number = time.time(), 0
    with Session(engine) as session:
        kinds = [("online", now + 60)] * online + [("online", now - 5)] * silent
        for status, until in [*kinds, *[("unregistered", now - 500)] * unregistered]:
            number += 1
            session.add(Node(node_id=number, status=status, online_until=until))
        session.commit()
    engine.dispose()
