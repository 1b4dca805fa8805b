"""The Flower ClientApp: hands each message to this device and returns what comes back.

The same code serves a deployment and a simulation; only where the device is differs.
Real device: the node configuration names the `socket` of the device's service (`client.door`), which keeps store, model
and ledger. Flower starts a process for every message and runs in it what the server shipped, so this module imports
nothing heavy and knows nothing about the person.
Simulation: the run folder (run configuration `out`, or $HOMERANK_RUN) holds all virtual devices, and `partition-id`
says which one this is.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.door import wire
from shared.errors import HomerankError
from shared.protocol import encode_refusal

if TYPE_CHECKING:
    from client.device import Device
    from client.store import Store
    from shared.catalogue import Catalogue
    from shared.config import Config
    from shared.privacy.ledger import Ledger

log = logging.getLogger("homerank.client")

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """A training round."""
    return Message(_answer(message.content, context), reply_to=message)


@app.query()
def query(message: Message, context: Context) -> Message:
    """A counting or comparing round."""
    return Message(_answer(message.content, context), reply_to=message)


def _answer(content: RecordDict, context: Context) -> RecordDict:
    try:
        if "socket" in context.node_config:
            return _ask_service(Path(str(context.node_config["socket"])), content)
        return open_device(context).answer(content, memory=context.state)
    except HomerankError as error:
        log.warning("refused: %s", error)  # for this device's owner; what it says stays here
        return encode_refusal("failed")
    except Exception as error:  # noqa: BLE001  # Flower would send the text of whatever gets out
        log.warning("failed: %s", type(error).__name__)
        return encode_refusal("failed")


def _ask_service(path: Path, content: RecordDict) -> RecordDict:
    """What the device's service answers; a device whose service is off does not take part."""
    try:
        return wire.ask(path, content)
    except (FileNotFoundError, ConnectionRefusedError):
        log.warning("refused: no service at %s", path)
        return encode_refusal("paused")


def open_device(context: Context) -> Device:
    """The virtual device a simulation's context stands for."""
    folder = str(context.run_config.get("out") or os.environ.get("HOMERANK_RUN", ""))
    return virtual_device(folder, int(context.node_config["partition-id"]))


def virtual_device(folder: str, number: int) -> Device:
    """Virtual device `number` of a simulation's run folder."""
    from client.device import Device
    from client.limits import Limits

    config, catalogue, store, ledger = _virtual_population(folder, os.getpid())
    privacy = config.privacy
    limits = Limits(
        privacy.mode,
        privacy.trust,
        epsilon=privacy.epsilon,
        delta=privacy.delta,
        user_epsilon=privacy.user_epsilon if privacy.mode == "both" else 0.0,
        secure=config.federation.secure_aggregation,
    )
    return Device(number, store=store, ledger=ledger, catalogue=catalogue, limits=limits, seed=config.seed)


@lru_cache(maxsize=1)
def _virtual_population(folder: str, process: int) -> tuple[Config, Catalogue, Store, Ledger]:
    """Opened once per process; SQLite connections do not survive a fork, hence the process number in the key."""
    from client.store import Store
    from shared.artifacts import load_catalogue
    from shared.config import load_config

    path = Path(folder)
    return (
        load_config(path / "config.toml"),
        load_catalogue(path / "items.jsonl"),
        Store(path / "devices.sqlite", durable=False),
        open_virtual_ledger(path),
    )


def open_virtual_ledger(folder: Path) -> Ledger:
    """The ledgers of all virtual devices of a run folder."""
    from shared.privacy.ledger import Ledger

    return Ledger(folder / "ledger.sqlite", durable=False, witness=folder / "ledger.witness")
