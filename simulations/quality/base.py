"""What every ranker in the quality benchmark is given, and what it must answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.samples import seen_items
from client.store import History, Role
from simulations.evaluation import Case
from simulations.runfolder import RunFolder


@dataclass(frozen=True)
class Training:
    """What a ranker may learn from: each device's training events, oldest first, and nothing later.

    histories: one per device, in device order; may be empty. items: N, the catalogue's size.
    validation: questions to tune on. Test items are in neither.
    """

    histories: tuple[History, ...]
    items: int
    validation: tuple[Case, ...]


class Ranker(Protocol):
    """A trained recommender."""

    def scores(self, cases: Sequence[Case]) -> NDArray[np.float32]:
        """Scores of all items, float32 (B, N), for what follows each case's history; higher is better."""
        ...


def training_of(run: RunFolder, *, validation: Sequence[Case]) -> Training:
    """Collect the training events of a run's devices, as only a simulator can."""
    store = run.store()
    histories = []
    for device in range(run.devices):
        history = store.history(device, run.catalogue)
        histories.append(history[history.roles == Role.TRAIN])
    store.close()
    return Training(tuple(histories), len(run.catalogue), tuple(validation))


def seen_by(case: Case) -> NDArray[np.int64]:
    """Items that no ranking of this case may show."""
    return seen_items(case.history)
