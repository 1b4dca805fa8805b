"""The experiment, from the first count to the shipped adapter: the server's own loop over Flower's messages."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from server.aggregation import mean_of, trained_names
from server.budget import compared, phase_noise, plan_budget, reply_sizes, run_facts, unit_budgets
from server.checkpoint import ServerState
from server.clipping import next_clip
from server.cohorts import cohort_size, sample_cohort, survey_cohort, wait_for_devices
from server.correlated import Correlation
from server.exchange import Exchange
from server.ledger import ServerLedger
from server.messages import Messages
from server.optimiser import ServerOptimiser, schedule
from server.popularity import log_popularity
from server.prior import Priors, groups_of, round_of
from server.release import Released, Releaser
from server.shipping import begun_from, run_name, ship, verdict
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, save_arrays
from shared.catalogue import Catalogue
from shared.config import Config
from shared.errors import RunError
from shared.noise import Noise
from shared.privacy.plan import NoisePlan
from shared.privacy.statement import privacy_facts
from shared.protocol import BELOW_CLIP, Manifest, Shapes
from shared.runtime import Runtime, runtime_for
from shared.transfer import start_state

log = logging.getLogger("homerank.server")

#: Rounds in a row that may fall below the quorum before the run gives up.
MAX_FAILED_ROUNDS = 3
#: Seconds a deployment waits after the first round below the quorum; twice that after the next.
BACK_OFF = 30.0


class Strategy:
    """Runs one experiment in one folder and can continue it.

    folder: holds config.toml, items.jsonl and, if it starts from an adapter, start/; receives checkpoint.safetensors,
    metrics.jsonl, rounds/ and adapter/.
    ledger: the server's, open. deployment: real devices; noise comes from the operating system, and the shipped
    adapter is sent to every device at the end. on_step: told of each step of each exchange.
    """

    def __init__(
        self,
        config: Config,
        catalogue: Catalogue,
        *,
        folder: Path,
        ledger: ServerLedger,
        deployment: bool = False,
        on_step: Callable[[str, Manifest], None] = lambda step, manifest: None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.ledger = ledger
        self.deployment = deployment
        self.catalogue = catalogue
        self._on_step = on_step
        self._release = Releaser(config, ledger, seed=None if deployment else config.seed, on_step=on_step)
        self.runtime: Runtime = runtime_for(config, catalogue)
        self.start = start_state(self.runtime, config, folder)
        self.state = self._first_or_last_state()
        self._messages = Messages(config, self.runtime, state=self.state, folder=folder)
        self.priors = Priors.load(folder, digest=self.state.priors) if self.state.priors else None

    def _first_or_last_state(self) -> ServerState:
        """The checkpoint if there is one; PrivacyError when it knows of charges that the ledger does not."""
        fresh = ServerState(
            run=run_name(self.config, self.catalogue, self.folder, deployment=self.deployment),
            adapter=self.start,
            optimiser=ServerOptimiser.from_config(self.config.federation),
            clip=self.config.privacy.user_clip,
        )
        if not self._checkpoint.exists():
            return fresh
        state = ServerState.load(self._checkpoint, fresh=fresh)
        if state.head is not None:
            self.ledger.require(state.head)
        state.restore_row(self.folder)
        return state

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def run(self, grid: Grid) -> None:
        """Count, train, compare, ship. Each step is on disk before the next begins.

        Raises RunError when there are no devices or too few reply, PrivacyError when the ledger refuses.
        """
        federation = self.config.federation
        nodes = wait_for_devices(grid, federation)
        if self.state.admit(nodes, same=self.config.privacy.noise_bands > 1):
            self.state.save(self._checkpoint)
        plan = self._plan(self.state.population)
        if plan is not None:
            facts = run_facts(self.config, plan, devices=self.state.population, seeded=not self.deployment)
            self.ledger.open_run(self.state.run, facts)
        if self.state.popularity is None:
            self._count_popularity(grid, nodes, plan)
        if self.config.prior.half_lives and self.priors is None:
            self._sum_moments(grid, nodes, plan)
        failed = 0
        while not self.state.outcome and self.state.round < federation.rounds:
            failed = 0 if self._training_round(grid, nodes, plan) else failed + 1
            if failed == MAX_FAILED_ROUNDS and self.state.row["refused"].get("budget"):
                limits = ", ".join(f"epsilon {e:g} per {u}" for u, e in unit_budgets(self.config).items())
                log.warning("training stops: the devices' budgets (%s) are spent; they go on ranking", limits)
                break  # the comparison finds no answers and keeps the start
            if failed == MAX_FAILED_ROUNDS:
                raise RunError(
                    f"{failed} rounds in a row had fewer replies than the quorum; the last refused"
                    f" {self.state.row['refused'] or 'nobody: all connected devices are at their participation cap'}."
                    f" Nothing was released for them. See {self.folder / 'metrics.jsonl'}"
                )
            if failed and self.deployment:
                time.sleep(BACK_OFF * 2 ** (failed - 1))
        if not self.state.outcome:
            self._compare(grid, nodes, plan)
        self._ship()
        if self.deployment:
            self._deliver(grid, nodes)

    def _plan(self, devices: int) -> NoisePlan | None:
        layout = self.runtime.scorer.layout
        dimensions = reply_sizes(self.config, self.state.adapter, items=len(self.catalogue), layout=layout)
        return plan_budget(self.config, devices, simulation=not self.deployment, dimensions=dimensions)

    def _count_popularity(self, grid: Grid, nodes: Sequence[int], plan: NoisePlan | None) -> None:
        nodes = survey_cohort(self.config.federation, nodes=nodes, phase="popularity", seed=self.config.seed)
        noise = phase_noise(self.config, plan, phase="popularity", asked=len(nodes))
        reply: Shapes = {POPULARITY: (len(self.catalogue),)}
        manifest = self._messages.manifest("popularity", AdapterState({}), reply=reply, noise=noise)
        found = self._release(grid, nodes, manifest=manifest, state=AdapterState({}), noise=noise)
        if found.total is None:
            raise RunError(f"the popularity count got {found.answers} of {len(nodes)} replies: {found.why}")
        counts = found.total.arrays[POPULARITY].astype(np.float64)
        self.state.popularity = log_popularity(counts, noise_std=noise.std_of_sum(found.answers))
        self._keep_snapshot()
        self._commit(manifest, found)

    def _sum_moments(self, grid: Grid, nodes: Sequence[int], plan: NoisePlan | None) -> None:
        """Ask each device once for its moments, group by group, and solve the priors."""
        layout = self.runtime.scorer.layout
        if layout is None:
            raise RunError("found no layout of the prior; expected prior.half_lives with widths")
        nodes = survey_cohort(self.config.federation, nodes=nodes, phase="prior", seed=self.config.seed)
        empty = AdapterState({})
        sums, stds, answers, refused = [], [], 0, Counter[str]()
        for group, members in enumerate(groups_of(self.config, nodes)):
            noise = phase_noise(self.config, plan, phase="prior", asked=len(members))
            manifest = self._messages.manifest("prior", empty, reply=layout.shapes, noise=noise, number=group)
            found = self._release(grid, members, manifest=manifest, state=empty, noise=noise)
            if found.total is None:
                raise RunError(f"the prior got {found.answers} of {len(members)} replies: {found.why}")
            sums.append(found.total)
            stds.append(noise.std_of_sum(found.answers))
            answers += found.answers
            refused.update(found.refused)
        self.priors = Priors.solve(sums, ridge=self.config.prior.ridge, noise_stds=stds)
        self.state.priors = self.priors.save(self.folder)
        counts = {"asked": len(nodes), "accepted": answers, "refused": dict(refused), "groups": len(sums)}
        self._commit(manifest, found, round=0, **counts)

    def _training_round(self, grid: Grid, nodes: Sequence[int], plan: NoisePlan | None) -> bool:
        """One round; False when too few replied, and then nothing was released."""
        federation, state, started = self.config.federation, self.state, time.perf_counter()
        number = state.round + 1
        group, turn, nodes = round_of(number, nodes=nodes, groups=self.priors.groups if self.priors else 1)
        matrix = self.priors.for_group(group) if self.priors else None
        planned = cohort_size(federation, len(nodes))
        cohort = sample_cohort(federation, nodes=nodes, round_number=turn, seed=self.config.seed)
        if plan is not None and not (plan.user_steps and plan.event is None):  # the statement rests on the cap
            cohort = state.within_cap(cohort, cap=plan.participations)
        noise = phase_noise(self.config, plan, phase="train", asked=planned, update_clip=state.clip)
        names = trained_names(self.config.federation.aggregation, round_number=number, names=list(state.adapter))
        reply: Shapes = {name: state.adapter.shapes[name] for name in names}
        if self.config.privacy.clip_quantile:
            reply[BELOW_CLIP] = (1,)
        sent = self._messages.together(prior=matrix)
        manifest = self._messages.manifest("train", sent, reply=reply, noise=noise, number=number)
        correlation = self._correlation(noise)
        found = self._release(grid, cohort, manifest=manifest, state=sent, noise=noise, correlation=correlation)
        state.noises = correlation.past if correlation else []
        update = None if found.total is None else mean_of(found.total, planned=planned)
        if update is not None and found.total is not None:
            if BELOW_CLIP in reply:
                answered = mean_of(found.total, planned=found.answers)  # who is missing has no say
                state.clip = next_clip(self.config, clip=state.clip, update=answered)
            factor, mine = schedule(federation, number), update.select(names)
            state.adapter = state.optimiser.apply(state.adapter, mine, factor=factor, start=self.start)
            self._average(number)
        state.asked |= {str(node): state.asked.get(str(node), 0) + 1 for node in cohort}
        state.round = number
        self._keep_snapshot()  # before the checkpoint, which says that the round is done
        self._commit(
            manifest,
            found,
            planned=planned,
            asked=len(cohort),
            update_norm=None if update is None else update.norm(),
            clip=noise.bound if noise.user else None,
            seconds=round(time.perf_counter() - started, 3),
        )
        return update is not None

    def _correlation(self, noise: Noise) -> Correlation | None:
        bands = self.config.privacy.noise_bands
        return Correlation(bands, self.state.noises) if bands > 1 and noise.by == "server" else None

    def _average(self, number: int) -> None:
        federation = self.config.federation
        if federation.average_last and number > federation.rounds * (1 - federation.average_last):
            past = self.state.averaged or self.state.adapter.zeros()
            self.state.averaged = past + self.state.adapter
            self.state.averaged_rounds += 1

    def _compare(self, grid: Grid, nodes: Sequence[int], plan: NoisePlan | None) -> None:
        """Ask every device how much better than the start the result ranks its held-out event; keep the best.

        With a prior there are two candidates: the prior alone, and with what was trained on top of it.
        """
        nodes = survey_cohort(self.config.federation, nodes=nodes, phase="validate", seed=self.config.seed)
        noise = phase_noise(self.config, plan, phase="validate", asked=len(nodes))
        stages = compared(self.config)
        candidate = self._messages.candidate(self.priors)
        reply: Shapes = {"difference": (len(stages),)}
        manifest = self._messages.manifest("validate", candidate, reply=reply, noise=noise, number=self.state.round)
        found = self._release(grid, nodes, manifest=manifest, state=candidate, noise=noise)
        gains, deviation = {}, 0.0
        if found.total is not None:
            measured = 2 * found.total.arrays["difference"].astype(float) / found.answers
            gains = dict(zip(stages, measured.tolist(), strict=True))
            deviation = 2 * noise.std_of_sum(found.answers) / found.answers
        self.state.outcome = verdict(gains, deviation, refused=found.why)
        self.state.head = found.head or self.state.head
        self._commit(manifest, found, **self.state.outcome)

    def _ship(self) -> None:
        """Write the adapter folder, from the checkpoint alone: after a crash the same is written again."""
        save_arrays(self.folder / "candidate.safetensors", dict(self._messages.candidate(self.priors).arrays))
        earlier = begun_from(self.folder, self.ledger)
        privacy = privacy_facts(self.ledger.entries(), run=self.state.run, started_from=earlier)
        ship(
            self.folder / "adapter",
            self._messages.shipped(self.priors),
            state=self.state,
            runtime=self.runtime,
            privacy=privacy,
        )

    def _deliver(self, grid: Grid, nodes: Sequence[int]) -> None:
        state = self._messages.delivered(self.priors)
        noise = Noise("none", self.config.privacy.trust, "device", quorum=1)
        manifest = self._messages.manifest("install", state, reply={}, noise=noise, number=self.state.round)
        exchange = Exchange(grid, nodes, manifest=manifest, state=state, timeout=self.config.federation.reply_timeout)
        answers = sum(1 for _ in exchange)
        row = {"phase": "install", "asked": len(nodes), "accepted": answers, "refused": dict(exchange.refused)}
        self.state.record(self.folder, row)

    def _keep_snapshot(self) -> None:
        """For a simulation's quality curve. Not in a deployment: a round is released when its checkpoint is written."""
        every, rounds = self.config.evaluation.every, self.config.federation.rounds
        if every and not self.deployment and (self.state.round % every == 0 or self.state.round == rounds):
            save_arrays(
                self.folder / "rounds" / f"{self.state.round:05d}.safetensors", self._messages.together().arrays
            )

    def _commit(self, manifest: Manifest, found: Released, **facts: Any) -> None:
        """Write the checkpoint, which makes the step final, and then its row of metrics.jsonl."""
        self.state.head = found.head or self.state.head
        row = {
            "phase": manifest.phase,
            "round": manifest.round,
            "accepted": found.answers,
            "refused": found.refused,
            "released": found.total is not None,
            **facts,
        }
        self.state.row = row
        self.state.save(self._checkpoint)
        self._on_step("saved", manifest)
        self.state.record(self.folder, row)
        self._on_step("recorded", manifest)
