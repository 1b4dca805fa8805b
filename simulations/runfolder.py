"""The folder of a run: everything a simulation writes, and what is needed to continue it.

    config.toml  items.jsonl  devices.sqlite  targets.npz        made by `prepare`
    start/                                                       the adapter it starts from, with federation.start_from
    checkpoint.safetensors  metrics.jsonl  rounds/  candidate.safetensors  adapter/   written by the server
    ledger.sqlite  server-ledger.sqlite, each with its .witness  what was spent, by device and on the server
    chaos.json                                                   faults that were injected, with simulation.chaos
    result.json  per_user.npz  report.html                       written after evaluation

Test items are only in targets.npz: no virtual device's store holds one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.store import Attribute, Role, Row, Store, known
from server.checkpoint import whole_rows
from shared.artifacts import load_catalogue, save_catalogue, write_atomic, write_json
from shared.catalogue import Catalogue
from shared.config import Config, load_config, merge, to_toml
from shared.datasets import Interactions, Split, make_split
from shared.datasets.attributes import Attributes
from shared.errors import RunError
from shared.transfer import keep_start
from simulations.sources import attributes_of, source_of


@dataclass(frozen=True)
class RunFolder:
    """An opened run folder.

    users: names by device number. test: item index of each device's test target, -1 for none; int64 (U,).
    """

    path: Path
    config: Config
    catalogue: Catalogue
    users: tuple[str, ...]
    test: NDArray[np.int64]
    facts: dict[str, Any]

    @property
    def devices(self) -> int:
        """Number of virtual devices."""
        return len(self.users)

    def store(self) -> Store:
        """The virtual devices' events."""
        return Store(self.path / "devices.sqlite", durable=False)

    def rows(self) -> list[dict[str, Any]]:
        """What the server recorded, one row per exchange."""
        return whole_rows(self.path / "metrics.jsonl")

    def device_of(self, user: str) -> int:
        """Device number of a user name; RunError with a hint when there is none."""
        try:
            return self.users.index(user)
        except ValueError:
            raise RunError(
                f"found no user {user!r} in this run; it has {self.devices} users, for example {self.users[0]!r}"
            ) from None


def prepare(config: Config, folder: Path) -> RunFolder:
    """Load the data, split it over virtual devices and write the run folder. RunError when it is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not an empty folder; choose another --out, or continue it with --resume {folder}")
    data = source_of(config)
    split = make_split(data, config.data.split)
    folder.mkdir(parents=True, exist_ok=True)
    keep_start(config, folder)
    config = merge(config, {"federation": {"minimum_devices": len(data.users)}})
    save_catalogue(data.catalogue, folder / "items.jsonl")
    store = Store(folder / "devices.sqlite", durable=False)
    store.replace(_rows(data, split))
    if "attributes" in config.model.context:
        store.set_attributes(_attributes(data, attributes_of(config)))
    store.close()
    test = np.where(split.test >= 0, data.item[np.maximum(split.test, 0)], -1).astype(np.int64)
    with (folder / "targets.npz").open("wb") as handle:
        np.savez(handle, test=test)
    facts = {
        "name": data.name,
        "source": config.data.source,
        "split": config.data.split,
        "users": len(data.users),
        "items": len(data.catalogue),
        "events": len(data),
        "evaluated": int((test >= 0).sum()),
    }
    write_json(folder / "data.json", {**facts, "user_names": list(data.users)})
    write_atomic(folder / "config.toml", to_toml(config).encode())  # last: its presence means the folder is whole
    return open_run(folder)


def open_run(folder: Path) -> RunFolder:
    """Open a run folder; RunError when it is not one or is incomplete."""
    if not (folder / "config.toml").is_file():
        raise RunError(f"{folder}: found no config.toml; expected the folder of an earlier run")
    try:
        facts = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        with np.load(folder / "targets.npz", allow_pickle=False) as targets:
            test = targets["test"]
        users = tuple(facts.pop("user_names"))
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{folder}: the run folder is damaged ({error}); start a new run") from None
    return RunFolder(
        path=folder,
        config=load_config(folder / "config.toml"),
        catalogue=load_catalogue(folder / "items.jsonl"),
        users=users,
        test=test,
        facts=facts,
    )


def _rows(data: Interactions, split: Split) -> Iterator[Row]:
    """Every event before a user's test target, with what it may be used for."""
    ids = [item.id for item in data.catalogue.items]
    for user in range(len(data.users)):
        start, end = int(data.offsets[user]), int(data.offsets[user + 1])
        if split.test[user] >= 0:
            end = int(split.test[user])
        for seq, event in enumerate(range(start, end)):
            role = Role.TRAIN if event < split.train_end[user] else Role.HISTORY
            if event == split.valid[user]:
                role = Role.VALIDATE
            time, value = known(data.time[event]), known(data.value[event])
            yield user, seq, ids[data.item[event]], time, int(data.kind[event]), int(role), value


def _attributes(data: Interactions, attributes: Attributes) -> Iterator[Attribute]:
    for name, of in attributes.items():
        for device, user in enumerate(data.users):
            if user in of:
                yield device, name, of[user]
