"""The Flower ClientApp: hands each message to this process's device and returns what comes back.

The same code serves a deployment and a simulation; only where the device comes from differs.
Real device: `store`, `ledger` and `catalogue` paths and the device's own limits arrive as node configuration, which
the device's owner sets. Simulation: the run folder (run configuration `out`, or $HOMERANK_RUN) holds all virtual
devices, and `partition-id` says which one this is.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.device import Device
from client.limits import Limits
from client.store import Store
from shared.artifacts import load_catalogue
from shared.catalogue import Catalogue
from shared.config import Config, load_config
from shared.errors import HomerankError
from shared.privacy.ledger import Ledger
from shared.protocol import encode_refusal

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
        device = open_device(context)
    except HomerankError as error:
        log.warning("refused: %s", error)  # for this device's owner; what it says stays here
        return encode_refusal("failed")
    except Exception as error:  # noqa: BLE001  # Flower would send the text of whatever gets out
        log.warning("failed: %s", type(error).__name__)
        return encode_refusal("failed")
    return device.answer(content, memory=context.state)


def open_device(context: Context) -> Device:
    """The device a context stands for."""
    if "store" in context.node_config:
        return _real_device(context)
    folder = str(context.run_config.get("out") or os.environ.get("HOMERANK_RUN", ""))
    return virtual_device(folder, int(context.node_config["partition-id"]))


def virtual_device(folder: str, number: int) -> Device:
    """Virtual device `number` of a simulation's run folder."""
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
    path = Path(folder)
    return (
        load_config(path / "config.toml"),
        load_catalogue(path / "items.jsonl"),
        Store(path / "devices.sqlite", durable=False),
        open_virtual_ledger(path),
    )


def open_virtual_ledger(folder: Path) -> Ledger:
    """The ledgers of all virtual devices of a run folder."""
    return Ledger(folder / "ledger.sqlite", durable=False, witness=folder / "ledger.witness")


def _real_device(context: Context) -> Device:
    settings = context.node_config
    limits = Limits(
        mode=str(settings.get("mode", "event")),
        trust=str(settings.get("trust", "aggregate")),
        epsilon=float(settings.get("epsilon", 8.0)),
        delta=float(settings.get("delta", 1e-5)),
        user_epsilon=float(settings.get("user_epsilon", 0.0)),
        secure=bool(settings.get("secure", False)),
    )
    store = Path(str(settings["store"]))
    return Device(
        0,
        store=Store(store),
        ledger=Ledger(str(settings["ledger"]), witness=store.with_suffix(".witness")),
        catalogue=load_catalogue(Path(str(settings["catalogue"]))),
        limits=limits,
        adapter_folder=Path(str(settings["adapter"])) if "adapter" in settings else None,
    )
