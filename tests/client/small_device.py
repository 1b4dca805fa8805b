"""One device on a tiny random backbone, and a server's messages to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict

from client.device import Device
from client.limits import Limits
from client.store import Role, Row, Store
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.catalogue import Catalogue
from shared.config import Config, merge
from shared.noise import Layer, Noise
from shared.privacy.ledger import Ledger
from shared.protocol import Manifest, encode_request
from shared.runtime import Runtime, public_settings, runtime_for
from shared.schema import EventKind, Item

ITEMS = 24
LENGTH = 4
SHELF = Catalogue(tuple(Item(id=f"i{n}", title=f"Thing {n}", text=f"a thing of group {n % 5}") for n in range(ITEMS)))
EVENT = Noise("event", "aggregate", "device", 4, event=Layer(2.0, 2.0)).to_dict()
USER = Noise("user", "aggregate", "server", 4, user=Layer(2.0, 2.0), bound=2.0).to_dict()
BOTH = Noise("both", "aggregate", "server", 4, event=Layer(2.0, 1.0), user=Layer(2.0, 2.0), bound=2.0).to_dict()
OPEN = Noise("none", "aggregate", "device", 4).to_dict()
TRAINING = {
    "local_steps": 1,
    "local_learning_rate": 1.0,
    "window_sample_rate": 1.0,
    "clip_norm": 2.0,
    "update_clip": 2.0,
    "quantile_weight": 0.5,
}
#: A prior that asks for 136 + 128 numbers.
WITH_PRIOR = {"half_lives": [0.5, 3.0], "widths": [10, 6], "output": 8, "folds": 1}
NO_PRIOR: dict[str, Any] = {"half_lives": []}
ANYTHING = Limits("none", "aggregate", epsilon=8.0, delta=1e-5)
CAREFUL = Limits("event", "aggregate", epsilon=8.0, delta=1e-5)


def tiny_config(*, prior: Mapping[str, Any] | None = None, **model: Any) -> Config:
    """Two blocks 32 wide, windows of four events; no prior unless given."""
    settings = {"backbone": "tiny-bert", "history": LENGTH, "output_dim": 16, **model}
    return merge(Config(), {"model": settings, "lora": {"rank": 2, "blocks": 0}, "prior": prior or NO_PRIOR})


def tiny_runtime(*, prior: Mapping[str, Any] | None = None, **model: Any) -> Runtime:
    """The runtime that devices get for `question(model=..., prior=...)`, at its start and with flat popularity."""
    runtime = runtime_for(tiny_config(prior=prior, **model), SHELF)
    runtime.install(AdapterState({**runtime.start.arrays, POPULARITY: np.zeros(ITEMS, dtype=np.float32)}))
    return runtime


def rows(
    items: Sequence[int], *, kinds: Sequence[EventKind] = (), held_out: int = -1, role: Role = Role.TRAIN
) -> list[Row]:
    """One device's events, a minute apart; clicks unless `kinds` says otherwise."""
    kinds = kinds or [EventKind.CLICK] * len(items)
    return [
        (0, seq, f"i{item}", 60.0 * seq, int(kinds[seq]), int(Role.VALIDATE if seq == held_out else role), None)
        for seq, item in enumerate(items)
    ]


@dataclass
class Home:
    """A device with its store and ledger at hand."""

    events: Sequence[Row] = field(default_factory=lambda: rows([*range(9), 9], held_out=9))
    limits: Limits = CAREFUL
    seed: int | None = 5
    adapter_folder: Path | None = None

    def __post_init__(self) -> None:
        self.store = Store(":memory:")
        self.store.replace(self.events)
        self.ledger = Ledger(":memory:")
        self.device = Device(
            0,
            store=self.store,
            ledger=self.ledger,
            catalogue=SHELF,
            limits=self.limits,
            seed=self.seed,
            adapter_folder=self.adapter_folder,
        )

    @property
    def charges(self) -> list[str]:
        """Phases the ledger was charged for."""
        return [release.phase for release in self.ledger.releases(0)]


def global_state(runtime: Runtime, **changed: np.ndarray) -> AdapterState:
    """The start with arrays replaced, and flat popularity unless given."""
    flat = {POPULARITY: np.zeros(ITEMS, dtype=np.float32)}
    names = {name.replace(".", "_"): name for name in runtime.start}
    return AdapterState(
        {**runtime.start.arrays, **flat, **{names.get(name, name): array for name, array in changed.items()}}
    )


def question(
    phase: str,
    *,
    state: AdapterState | None = None,
    model: dict[str, Any] | None = None,
    prior: Mapping[str, Any] | None = None,
    **changes: Any,
) -> tuple[Manifest, RecordDict]:
    """A sound message of a phase; `changes` replace fields of its manifest, dotted for settings (`noise`)."""
    if phase == "prior":
        prior = prior or WITH_PRIOR
    runtime = tiny_runtime(prior=prior, **(model or {}))
    if state is None:
        state = AdapterState({}) if phase in ("popularity", "prior") else global_state(runtime)
    replies: dict[str, dict[str, tuple[int, ...]]] = {
        "popularity": {POPULARITY: (ITEMS,)},
        "prior": runtime.scorer.layout.shapes if runtime.scorer.layout else {},
        "train": dict(runtime.start.shapes),
        "validate": {"difference": (2 if runtime.scorer.layout else 1,)},
        "install": {},
    }
    settings = {**public_settings(runtime.config), "noise": EVENT, "training": TRAINING}
    settings |= {name: changes.pop(name) for name in [*changes] if name in (*settings, "outcome", "privacy")}
    values: dict[str, Any] = {
        "run": "r",
        "round": 3,
        "phase": phase,
        "backbone": runtime.backbone.digest,
        "catalogue": SHELF.fingerprint,
        "shapes": state.shapes,
        "reply": replies[phase],
        "settings": {name: value for name, value in settings.items() if value is not None},
    }
    manifest = Manifest(**{**values, **changes})
    return manifest, encode_request(manifest, state)
