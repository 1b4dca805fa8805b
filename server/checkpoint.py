"""The server's state between rounds, in one file that is replaced atomically."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from server.optimiser import ServerOptimiser
from shared.adapter import AdapterState
from shared.artifacts import load_arrays, save_arrays, write_atomic
from shared.errors import AdapterError, RunError
from shared.privacy.chain import Head

CHECKPOINT_SCHEMA = 4


@dataclass
class ServerState:
    """Everything the next round depends on.

    round: last committed training round, 0 before the first. popularity: log popularity (N,) once released.
    averaged, averaged_rounds: sum of the adapters of the last rounds when averaging is on.
    outcome: how the experiment ended, empty while it runs. population, members: number and SHA-256 of the devices when
    it began; the plan rests on them. priors: SHA-256 of the file of solved priors, empty before.
    asked: how often each device, by node id, was asked to train.
    clip: current clip of whole updates. noises: past correlated noise, as secret as updates. head: newest entry of the
    server's ledger that this state rests on. row: newest row of metrics.jsonl.
    """

    run: str
    adapter: AdapterState
    optimiser: ServerOptimiser
    round: int = 0
    popularity: NDArray[np.float32] | None = None
    averaged: AdapterState | None = None
    averaged_rounds: int = 0
    outcome: dict[str, Any] = field(default_factory=dict)
    priors: str = ""
    population: int = 0
    members: str = ""
    asked: dict[str, int] = field(default_factory=dict)
    clip: float = 1.0
    noises: list[NDArray[np.float64]] = field(default_factory=list)
    head: Head | None = None
    row: dict[str, Any] = field(default_factory=dict)

    def result(self) -> AdapterState:
        """The adapter, or the mean of the last rounds' adapters when averaging is on."""
        if self.averaged is None:
            return self.adapter
        return self.averaged * (1 / self.averaged_rounds)

    def admit(self, nodes: Sequence[int], *, same: bool) -> bool:
        """Take down who takes part; True the first time. RunError when they must be the `same` as then and are not."""
        members = hashlib.sha256(json.dumps(list(nodes)).encode()).hexdigest()
        if not self.population:
            self.population, self.members = len(nodes), members
            return True
        if same and self.members != members:
            raise RunError(
                "found other devices than when this run began; correlated noise needs the same ones in the same order."
                " Wait until they are connected, or start a new run with privacy.noise_bands = 1"
            )
        return False

    def within_cap(self, cohort: Sequence[int], *, cap: int) -> list[int]:
        """The devices of a cohort that have been asked fewer than `cap` times, whoever was connected before."""
        return [node for node in cohort if self.asked.get(str(node), 0) < cap]

    def record(self, folder: Path, row: Mapping[str, Any]) -> None:
        """Append a row to metrics.jsonl."""
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")

    def restore_row(self, folder: Path) -> None:
        """Make metrics.jsonl end with this state's row: a crash may have left it out, or a part of it."""
        path = folder / "metrics.jsonl"
        kept = whole_rows(path)
        if self.row and self.row not in kept:
            kept.append(self.row)
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def save(self, path: Path) -> None:
        """Write to disk, readable by its owner alone; the previous checkpoint stays until the new one is complete."""
        arrays: dict[str, NDArray[Any]] = {f"adapter/{n}": a for n, a in self.adapter.arrays.items()}
        arrays.update({f"optimiser/{name}": array for name, array in self.optimiser.to_arrays().items()})
        if self.popularity is not None:
            arrays["popularity"] = self.popularity
        if self.averaged is not None:
            arrays.update({f"averaged/{name}": array for name, array in self.averaged.arrays.items()})
        arrays.update({f"noise/{number:05d}": noise for number, noise in enumerate(self.noises)})
        facts = {
            "run": self.run,
            "round": self.round,
            "steps": self.optimiser.steps,
            "averaged_rounds": self.averaged_rounds,
            "outcome": self.outcome,
            "priors": self.priors,
            "population": self.population,
            "members": self.members,
            "asked": self.asked,
            "clip": self.clip,
            "head": asdict(self.head) if self.head else None,
            "row": self.row,
            "schema": CHECKPOINT_SCHEMA,
        }
        save_arrays(path, arrays, metadata={"state": json.dumps(facts)}, private=True)

    @classmethod
    def load(cls, path: Path, *, fresh: ServerState) -> ServerState:
        """Read a checkpoint of the same experiment as `fresh`; RunError when it is damaged or does not fit."""
        try:
            arrays = load_arrays(path)
            with safe_open(str(path), framework="numpy") as handle:
                facts = json.loads(handle.metadata()["state"])
            if facts.get("schema") != CHECKPOINT_SCHEMA:
                raise AdapterError(
                    f"it is of schema {facts.get('schema')!r}, this version reads {CHECKPOINT_SCHEMA}; continue it with"
                    " the version that wrote it"
                )
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
                priors=str(facts["priors"]),
                population=int(facts["population"]),
                members=str(facts["members"]),
                asked=dict(facts["asked"]),
                clip=float(facts["clip"]),
                noises=[arrays[name] for name in sorted(arrays) if name.startswith("noise/")],
                head=Head(**facts["head"]) if facts["head"] else None,
                row=facts["row"],
            )
        except (AdapterError, KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path}: found no usable checkpoint ({error}); start a new run in another folder") from None


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that was cut off by a crash is left out. [] when there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what follows the last line end is empty or a part


def _under(prefix: str, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
