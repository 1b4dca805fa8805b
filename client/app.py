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

from client.device import Device, Limits
from client.store import Store
from shared.artifacts import load_catalogue
from shared.catalogue import Catalogue
from shared.config import Config, load_config
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
    except Exception as error:  # noqa: BLE001  # Flower would send the text of whatever gets out
        log.warning("failed: %s", type(error).__name__)
        return encode_refusal("failed")
    return device.answer(content)


def open_device(context: Context) -> Device:
    """The device a context stands for."""
    if "store" in context.node_config:
        return _real_device(context)
    folder = str(context.run_config.get("out") or os.environ.get("HOMERANK_RUN", ""))
    return virtual_device(folder, int(context.node_config["partition-id"]))


def virtual_device(folder: str, number: int) -> Device:
    """Virtual device `number` of a simulation's run folder."""
    config, catalogue, store, ledger = _virtual_population(folder, os.getpid())
    limits = Limits(
        config.privacy.mode, config.privacy.trust, epsilon=config.privacy.epsilon, delta=config.privacy.delta
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
        Ledger(path / "ledger.sqlite", durable=False),
    )


def _real_device(context: Context) -> Device:
    settings = context.node_config
    limits = Limits(
        mode=str(settings.get("mode", "event")),
        trust=str(settings.get("trust", "aggregate")),
        epsilon=float(settings.get("epsilon", 8.0)),
        delta=float(settings.get("delta", 1e-5)),
    )
    return Device(
        0,
        store=Store(str(settings["store"])),
        ledger=Ledger(str(settings["ledger"])),
        catalogue=load_catalogue(Path(str(settings["catalogue"]))),
        limits=limits,
        adapter_folder=Path(str(settings["adapter"])) if "adapter" in settings else None,
    )
