"""What the server sends: parameters, popularity and prior in one state, and the manifest that says what it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from server.budget import quantile_weight
from server.checkpoint import ServerState
from server.prior import Priors
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.config import Config
from shared.noise import Noise
from shared.prior import PRIOR
from shared.protocol import Manifest, Shapes
from shared.runtime import Runtime, public_settings


class Messages:
    """Puts together the messages of one experiment. state: the server's, which changes as rounds go by."""

    def __init__(self, config: Config, runtime: Runtime, *, state: ServerState, folder: Path) -> None:
        self._config = config
        self._runtime = runtime
        self._state = state
        self._folder = folder

    def manifest(self, phase: str, state: AdapterState, *, reply: Shapes, noise: Noise, number: int = 0) -> Manifest:
        """The manifest of a message that carries `state` and asks for `reply`."""
        settings: dict[str, Any] = {**public_settings(self._config), "noise": noise.to_dict()}
        if phase == "train":
            settings["training"] = {
                **self._config.to_dict()["training"],
                "update_clip": self._state.clip,
                "quantile_weight": quantile_weight(self._config, self._state.clip),
            }
        if phase == "install":
            settings["outcome"] = self._state.outcome
            settings["privacy"] = json.loads((self._folder / "adapter" / "privacy.json").read_text(encoding="utf-8"))
        return Manifest(
            run=self._state.run,
            round=number,
            phase=phase,
            backbone=self._runtime.backbone.digest,
            catalogue=self._runtime.catalogue.fingerprint,
            shapes=state.shapes,
            reply=reply,
            settings=settings,
        )

    def together(
        self, adapter: AdapterState | None = None, *, prior: NDArray[np.float32] | None = None
    ) -> AdapterState:
        """Parameters (the current ones unless given), released popularity and a prior, as devices install them."""
        arrays = dict((adapter or self._state.adapter).arrays)
        if self._state.popularity is not None:
            arrays[POPULARITY] = self._state.popularity
        if prior is not None:
            arrays[PRIOR] = prior
        return AdapterState(arrays)

    def candidate(self, priors: Priors | None) -> AdapterState:
        """The result of training with everything that goes with it."""
        return self.together(self._state.result(), prior=priors.whole if priors else None)

    def shipped(self, priors: Priors | None) -> AdapterState:
        """What ranks from now on, without the popularity: the stage that won the comparison."""
        stage = self._state.outcome["shipped"]
        if stage == "start":
            return self._runtime.start
        parameters = self._state.result() if stage == "adapter" else self._runtime.start
        return AdapterState({**parameters.arrays, **({PRIOR: priors.whole} if priors else {})})

    def delivered(self, priors: Priors | None) -> AdapterState:
        """What every device is sent in the end."""
        return self.together(self.shipped(priors))
