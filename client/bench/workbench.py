"""What rows are measured with: an engine over a catalogue, made histories, and stores of many events."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.engine import Engine, Parts
from client.full import FullEngine
from client.journal import Journal
from client.slate import best_items
from client.store import History, Role, Store
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_catalogue, save_adapter
from shared.catalogue import Catalogue
from shared.config import Config, load_config
from shared.datasets import load_data
from shared.errors import ConfigError
from shared.prior import PRIOR
from shared.runtime import Runtime, public_settings
from shared.schema import EventKind, Item

#: Items of the made catalogue, events of a history, and items of a slate.
ITEMS, EVENTS, SLATE = 3_416, 50, 10


@dataclass(frozen=True)
class Setting:
    """Where the engine comes from; see `Workbench`."""

    data: Path | None = None
    run: Path | None = None
    config: Path | None = None
    model: Path | None = None
    requests: int = 200
    seed: int = 0


class Workbench:
    """Everything is made when a row first asks for it.

    With `run` it is that run's catalogue and adapter. Otherwise the catalogue of `data`, or one of 3,416 made-up items,
    under the settings of `config`, or the default ones, and parameters are random: that costs the same time.
    """

    def __init__(self, setting: Setting) -> None:
        if setting.run is not None and (setting.data or setting.config):
            raise ConfigError("found --run beside --data or --config; expected a run, or a catalogue and settings")
        self.setting = setting
        self.requests, self.seed = setting.requests, setting.seed

    @cached_property
    def catalogue(self) -> Catalogue:
        """The items that are ranked."""
        if self.setting.run is not None:
            return load_catalogue(self.setting.run / "items.jsonl")
        if self.setting.data is not None:
            return load_data(self.setting.data).catalogue
        made = (Item(id=f"i{n}", title=f"Thing {n}", text=f"thing {n} of group {n % 40}") for n in range(ITEMS))
        return Catalogue(tuple(made))

    @cached_property
    def engine(self) -> FullEngine:
        """The engine, without any history."""
        nothing = self.history(0, self.generator())
        if self.setting.run is not None:
            return FullEngine.open(self.catalogue, nothing, folder=self.setting.run / "adapter")
        config = Config() if self.setting.config is None else load_config(self.setting.config)
        runtime = Runtime(config, self.catalogue)
        runtime.install(random_state(runtime, seed=self.seed))
        return FullEngine(runtime, nothing)

    def exported(self, kind: Literal["int8", "student"]) -> Engine:
        """The exported model of `--model`, which must be of this catalogue. ConfigError without one."""
        from client.compact.engine import CompactEngine

        if self.setting.model is None:
            raise ConfigError("found no --model; expected the folder that `homerank-client export-model` wrote")
        nothing = self.history(0, self.generator())
        return CompactEngine.open(self.setting.model, self.catalogue, nothing, kind=kind)

    def write_adapter(self, folder: Path, *, seed: int) -> None:
        """An adapter folder for this engine's settings, its parameters random."""
        runtime = self.engine.runtime
        arrays = dict(random_state(runtime, seed=seed).arrays)
        popularity = arrays.pop(POPULARITY)
        manifest = {
            "run": "benchmark",
            "round": seed,
            "backbone": runtime.backbone.digest,
            "catalogue": self.catalogue.fingerprint,
            "settings": public_settings(runtime.config),
        }
        peft = runtime.peft_config()
        state = AdapterState(arrays)
        save_adapter(folder, state, popularity=popularity, peft_config=peft, manifest=manifest, privacy={})

    def generator(self) -> np.random.Generator:
        """The same draws for every row."""
        return np.random.default_rng(self.seed)

    def history(self, events: int, generator: np.random.Generator, *, items: int = 0) -> History:
        """Clicks a minute apart on different items. items: of another catalogue than this one, how many it has."""
        count = items or len(self.catalogue)
        return History(
            items=generator.choice(count, size=events, replace=events > count).astype(np.int64),
            times=60.0 * np.arange(events, dtype=np.float64),
            kinds=np.full(events, int(EventKind.CLICK)),
            roles=np.zeros(events, dtype=np.int64),
            values=np.full(events, np.nan),
        )

    @contextmanager
    def journal(self, events: int) -> Iterator[Journal]:
        """A person's store on the disk with so many events, which is gone afterwards."""
        items = self.generator().integers(0, len(self.catalogue), events).tolist()
        ids = [item.id for item in self.catalogue.items]
        click, role = int(EventKind.CLICK), int(Role.TRAIN)
        with TemporaryDirectory(prefix="homerank-") as folder:
            path = Path(folder) / "events.sqlite"
            store = Store(path, durable=False)
            store.replace((0, seq, ids[item], 60.0 * seq, click, role, None) for seq, item in enumerate(items))
            store.close()
            journal = Journal(path, self.catalogue)
            try:
                yield journal
            finally:
                journal.close()


def random_state(runtime: Runtime, *, seed: int) -> AdapterState:
    """An adapter of the right form."""
    generator = np.random.default_rng(seed)
    start = runtime.start.arrays
    arrays = {name: array + generator.normal(0, 0.02, array.shape) for name, array in start.items()}
    arrays[POPULARITY] = generator.normal(size=len(runtime.catalogue))
    if (layout := runtime.scorer.layout) is not None:
        arrays[PRIOR] = generator.normal(0, 0.1, (layout.features, layout.output))
    return AdapterState({name: array.astype(np.float32) for name, array in arrays.items()})


def slate(parts: Parts, may: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The best items that may be shown, by the sum of the parts."""
    return best_items(sum(parts.values(), start=np.zeros(len(may), dtype=np.float32)), may, SLATE)


def process_memory() -> int:
    """Bytes that this process holds."""
    import psutil  # type: ignore[import-untyped]

    return int(psutil.Process().memory_info().rss)
