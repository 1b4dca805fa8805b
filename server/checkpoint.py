"""The server's state between rounds, in one file that is replaced atomically."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from server.optimiser import ServerOptimiser
from shared.adapter import AdapterState
from shared.artifacts import load_arrays, save_arrays
from shared.errors import AdapterError, RunError


@dataclass
class ServerState:
    """Everything the next round depends on.

    round: last committed training round, 0 before the first. popularity: log popularity (N,) once released.
    averaged, averaged_rounds: sum of the adapters of the last rounds when averaging is on.
    outcome: how the experiment ended, empty while it runs.
    """

    run: str
    adapter: AdapterState
    optimiser: ServerOptimiser
    round: int = 0
    popularity: NDArray[np.float32] | None = None
    averaged: AdapterState | None = None
    averaged_rounds: int = 0
    outcome: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write to disk; the previous checkpoint stays until the new one is complete."""
        arrays: dict[str, NDArray[np.float32]] = {f"adapter/{n}": a for n, a in self.adapter.arrays.items()}
        arrays.update({f"optimiser/{name}": array for name, array in self.optimiser.to_arrays().items()})
        if self.popularity is not None:
            arrays["popularity"] = self.popularity
        if self.averaged is not None:
            arrays.update({f"averaged/{name}": array for name, array in self.averaged.arrays.items()})
        facts = {
            "run": self.run,
            "round": self.round,
            "steps": self.optimiser.steps,
            "averaged_rounds": self.averaged_rounds,
            "outcome": self.outcome,
        }
        save_arrays(path, arrays, metadata={"state": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path, *, fresh: ServerState) -> ServerState:
        """Read a checkpoint of the same experiment as `fresh`; RunError when it is damaged or does not fit."""
        try:
            arrays = load_arrays(path)
            with safe_open(str(path), framework="numpy") as handle:
                facts = json.loads(handle.metadata()["state"])
            adapter, averaged = AdapterState(_under("adapter/", arrays)), _under("averaged/", arrays)
            shapes = fresh.adapter.shapes
            moments = [_under(f"optimiser/{kind}/", arrays) for kind in ("first", "second")]
            right = adapter.shapes == shapes and (not averaged or AdapterState(averaged).shapes == shapes)
            if not right or any(shapes.get(name) != a.shape for table in moments for name, a in table.items()):
                raise AdapterError("its parameters have other names or shapes than this configuration's")
            fresh.optimiser.restore(_under("optimiser/", arrays), facts["steps"])
            return cls(
                run=facts["run"],
                adapter=adapter,
                optimiser=fresh.optimiser,
                round=int(facts["round"]),
                popularity=arrays.get("popularity"),
                averaged=AdapterState(averaged) if averaged else None,
                averaged_rounds=int(facts["averaged_rounds"]),
                outcome=facts["outcome"],
            )
        except (AdapterError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path}: found no usable checkpoint ({error}); start a new run in another folder") from None


def _under(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
