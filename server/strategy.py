"""The experiment, from the first count to the shipped adapter: the server's own loop over Flower's messages."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from server.aggregation import add_up, combine, trained_names
from server.checkpoint import ServerState
from server.cohorts import cohort_size, plan_budget, sample_cohort
from server.exchange import Exchange
from server.optimiser import ServerOptimiser
from server.popularity import log_popularity
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, save_adapter, save_arrays
from shared.catalogue import Catalogue
from shared.config import Config
from shared.errors import RunError
from shared.noise import Noise
from shared.privacy.accounting import NoisePlan
from shared.privacy.statement import privacy_facts
from shared.protocol import Manifest, Shapes
from shared.runtime import Runtime, public_settings, runtime_for

log = logging.getLogger("homerank.server")

#: Rounds in a row that may fall below the quorum before the run gives up.
MAX_FAILED_ROUNDS = 3
#: The result must beat the start by this many standard deviations of the privacy noise in the comparison.
CONFIDENCE = 1.645


class Strategy:
    """Runs one experiment in one folder and can continue it.

    folder: holds config.toml and items.jsonl; receives checkpoint.safetensors, metrics.jsonl, rounds/ and adapter/.
    deliver: send the shipped adapter to every device at the end (a deployment).
    """

    def __init__(self, config: Config, catalogue: Catalogue, *, folder: Path, deliver: bool = False) -> None:
        self.config = config
        self.folder = folder
        self.deliver = deliver
        self.catalogue = catalogue
        self.runtime: Runtime = runtime_for(config, catalogue)
        fresh = ServerState(
            run=f"{catalogue.fingerprint[:12]}-{config.seed}",  # not the folder: same settings, same noise
            adapter=self.runtime.start,
            optimiser=ServerOptimiser.from_config(config.federation),
        )
        path = self._checkpoint
        self.state = ServerState.load(path, fresh=fresh) if path.exists() else fresh

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def run(self, grid: Grid) -> None:
        """Count, train, compare, ship. Each step is on disk before the next begins.

        Raises RunError when there are no devices or too few reply.
        """
        nodes = self._wait_for_devices(grid)
        plan = plan_budget(self.config, len(nodes))
        if self.state.popularity is None:
            self._count_popularity(grid, nodes, plan)
        failed = 0
        while self.state.round < self.config.federation.rounds:
            failed = 0 if self._training_round(grid, nodes, plan) else failed + 1
            if failed == MAX_FAILED_ROUNDS:
                raise RunError(
                    f"{failed} rounds in a row had fewer replies than the quorum; see {self.folder / 'metrics.jsonl'}"
                    " for the reasons. Nothing was released for them"
                )
        if not self.state.outcome:
            self._compare_and_ship(grid, nodes, plan)
        if self.deliver:
            self._deliver(grid, nodes)

    def _wait_for_devices(self, grid: Grid) -> list[int]:
        wanted = self.config.federation.minimum_devices
        deadline = time.monotonic() + self.config.federation.reply_timeout
        while len(nodes := sorted(grid.get_node_ids())) < wanted:
            if time.monotonic() > deadline:
                raise RunError(f"found {len(nodes)} connected devices; expected at least {wanted}")
            time.sleep(0.5)
        return nodes

    def _noise(self, phase: str, plan: NoisePlan | None, *, asked: int) -> Noise:
        privacy = self.config.privacy
        clip = {
            "popularity": math.sqrt(self.config.model.history),
            "train": self.config.training.clip_norm,
            "validate": 1.0,
        }[phase]
        quorum = max(1, math.ceil(self.config.federation.quorum * asked))
        return Noise(privacy.mode, privacy.trust, getattr(plan, phase) if plan else 0.0, clip=clip, quorum=quorum)

    def _count_popularity(self, grid: Grid, nodes: Sequence[int], plan: NoisePlan | None) -> None:
        noise = self._noise("popularity", plan, asked=len(nodes))
        reply: Shapes = {POPULARITY: (len(self.catalogue),)}
        manifest = self._manifest("popularity", AdapterState({}), reply=reply, noise=noise)
        replies = self._exchange(grid, nodes, manifest, AdapterState({}))
        total = add_up(replies)
        if total is None or replies.accepted < noise.quorum:
            raise RunError(f"the popularity count got {replies.accepted} of {len(nodes)} replies: {replies.why()}")
        counts = total.arrays[POPULARITY].astype(np.float64)
        self.state.popularity = log_popularity(counts, noise_std=noise.std_of_sum(replies.accepted))
        self._keep_snapshot()
        self.state.save(self._checkpoint)

    def _training_round(self, grid: Grid, nodes: Sequence[int], plan: NoisePlan | None) -> bool:
        """One round; False when too few replied, and then nothing was released."""
        federation, state, started = self.config.federation, self.state, time.perf_counter()
        number = state.round + 1
        planned = cohort_size(federation, len(nodes))
        cohort = sample_cohort(federation, nodes=nodes, round_number=number, seed=self.config.seed)
        noise = self._noise("train", plan, asked=planned)
        names = trained_names(federation.aggregation, round_number=number, names=list(state.adapter))
        reply = {name: state.adapter.shapes[name] for name in names}
        manifest = self._manifest("train", self._global(), reply=reply, noise=noise, number=number)
        replies = self._exchange(grid, cohort, manifest, self._global())
        update = combine(replies, planned=planned)
        released = update is not None and replies.accepted >= noise.quorum
        if update is not None and released:
            state.adapter = state.optimiser.apply(state.adapter, update, factor=self._schedule(number))
            self._average(number)
        state.round = number
        self._keep_snapshot()  # before the checkpoint, which says that the round is done
        state.save(self._checkpoint)
        self._record(
            phase="train",
            round=number,
            planned=planned,
            asked=len(cohort),
            accepted=replies.accepted,
            refused=dict(replies.refused),
            released=released,
            update_norm=update.norm() if update is not None and released else None,
            seconds=round(time.perf_counter() - started, 3),
        )
        return released

    def _schedule(self, number: int) -> float:
        if not self.config.federation.learning_rate_decay:
            return 1.0
        return max(0.05, 1.0 - (number - 1) / self.config.federation.rounds)

    def _average(self, number: int) -> None:
        federation = self.config.federation
        if federation.average_last and number > federation.rounds * (1 - federation.average_last):
            past = self.state.averaged or self.state.adapter.zeros()
            self.state.averaged = past + self.state.adapter
            self.state.averaged_rounds += 1

    def _result(self) -> AdapterState:
        if self.state.averaged is None:
            return self.state.adapter
        return self.state.averaged * (1 / self.state.averaged_rounds)

    def _compare_and_ship(self, grid: Grid, nodes: Sequence[int], plan: NoisePlan | None) -> None:
        """Ask every device whether the result ranks its held-out event better than the start; keep the better."""
        result = self._result()
        noise = self._noise("validate", plan, asked=len(nodes))
        candidate = self._global(result)
        manifest = self._manifest(
            "validate", candidate, reply={"difference": (1,)}, noise=noise, number=self.state.round
        )
        replies = self._exchange(grid, nodes, manifest, candidate)
        total, count = add_up(replies), replies.accepted
        gain, deviation = -math.inf, 0.0
        if total is not None and count >= noise.quorum:
            gain = 2 * float(total.arrays["difference"][0]) / count
            deviation = 2 * noise.std_of_sum(count) / count
        needed = CONFIDENCE * deviation
        better = needed < gain and needed < 1  # NDCG cannot gain more than 1: such a comparison decides nothing
        self.state.outcome = _verdict(better, gain, deviation, refused=replies.why())
        shipped = result if better else self.runtime.start
        self._ship(shipped, plan, devices=len(nodes))
        self._record(
            phase="validate",
            round=self.state.round,
            asked=len(nodes),
            accepted=count,
            refused=dict(replies.refused),
            **self.state.outcome,
        )
        self.state.adapter = shipped
        self.state.save(self._checkpoint)

    def _ship(self, adapter: AdapterState, plan: NoisePlan | None, *, devices: int) -> None:
        popularity = self.state.popularity
        if popularity is None:
            raise RunError("found no released popularity; the checkpoint is incomplete, start a new run")
        save_arrays(self.folder / "candidate.safetensors", dict(self._global(self._result()).arrays))
        save_adapter(
            self.folder / "adapter",
            adapter,
            popularity=popularity,
            peft_config=self.runtime.peft_config(),
            manifest={
                "run": self.state.run,
                "round": self.state.round,
                "backbone": self.runtime.backbone.digest,
                "catalogue": self.catalogue.fingerprint,
                "settings": public_settings(self.config),
                "outcome": self.state.outcome,
            },
            privacy=privacy_facts(self.config, devices=devices, noise=plan),
        )

    def _deliver(self, grid: Grid, nodes: Sequence[int]) -> None:
        state = self._global()
        noise = Noise("none", self.config.privacy.trust, 0.0, clip=1.0, quorum=1)
        manifest = self._manifest("install", state, reply={}, noise=noise, number=self.state.round)
        replies = self._exchange(grid, nodes, manifest, state)
        add_up(replies)
        self._record(phase="install", asked=len(nodes), accepted=replies.accepted, refused=dict(replies.refused))

    def _exchange(self, grid: Grid, nodes: Sequence[int], manifest: Manifest, state: AdapterState) -> Exchange:
        timeout = self.config.federation.reply_timeout
        return Exchange(grid, nodes, manifest=manifest, state=state, timeout=timeout)

    def _manifest(self, phase: str, state: AdapterState, *, reply: Shapes, noise: Noise, number: int = 0) -> Manifest:
        settings: dict[str, Any] = {**public_settings(self.config), "noise": noise.to_dict()}
        if phase == "train":
            settings["training"] = self.config.to_dict()["training"]
        if phase == "install":
            settings["outcome"] = self.state.outcome
            settings["privacy"] = json.loads((self.folder / "adapter" / "privacy.json").read_text())
        return Manifest(
            run=self.state.run,
            round=number,
            phase=phase,
            backbone=self.runtime.backbone.digest,
            catalogue=self.catalogue.fingerprint,
            shapes=state.shapes,
            reply=reply,
            settings=settings,
        )

    def _global(self, adapter: AdapterState | None = None) -> AdapterState:
        """Adapter and released popularity in one state, as devices install it."""
        arrays = dict((adapter or self.state.adapter).arrays)
        if self.state.popularity is not None:
            arrays[POPULARITY] = self.state.popularity
        return AdapterState(arrays)

    def _keep_snapshot(self) -> None:
        every, rounds = self.config.evaluation.every, self.config.federation.rounds
        if every and (self.state.round % every == 0 or self.state.round == rounds):
            save_arrays(self.folder / "rounds" / f"{self.state.round:05d}.safetensors", self._global().arrays)

    def _record(self, **row: Any) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")


def _verdict(better: bool, gain: float, deviation: float, *, refused: str) -> dict[str, Any]:
    if gain == -math.inf:
        reason = f"too few devices answered the comparison ({refused}); the start is kept"
        return {"shipped": "start", "gain": None, "noise": None, "reason": reason}
    found = f"NDCG@10 on held-out events {gain:+.4f}"
    if deviation:
        found += f" with privacy noise of standard deviation {deviation:.4f}"
    reason = f"{found}: the trained adapter is better" if better else f"{found}: not clearly better, the start is kept"
    return {"shipped": "adapter" if better else "start", "gain": gain, "noise": deviation, "reason": reason}
