"""Our own model as a row of the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.personal import fit_weights
from client.ranker import score_catalogue
from shared.adapter import AdapterState
from shared.model import Stage
from shared.runtime import Runtime
from simulations.evaluation import Case


@dataclass(frozen=True)
class Installed:
    """Our model with one adapter and popularity.

    stage: which of its parts count, see `shared.model`. tail: the long-tail control of `client.ranker`.
    personal: with each person's own weights of the parts, learned from the training events in the case's history.
    """

    runtime: Runtime
    state: AdapterState
    stage: Stage = "adapter"
    tail: float = 0.0
    personal: bool = False

    def scores(self, cases: Sequence[Case]) -> NDArray[np.float32]:
        """As `Ranker.scores`; installs its own state first, as rankers share a runtime."""
        self.runtime.install(self.state)
        if not self.personal:
            histories = [case.history for case in cases]
            return score_catalogue(self.runtime, histories, stage=self.stage, tail=self.tail)
        own = [fit_weights(self.runtime, case.history) for case in cases]
        return np.concatenate(
            [
                score_catalogue(self.runtime, [case.history], stage=self.stage, tail=self.tail, weights=weights)
                for case, weights in zip(cases, own, strict=True)
            ]
        )
