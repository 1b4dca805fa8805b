"""What a run would cost in privacy, noise and bytes, worked out before anything runs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from server.budget import demand, phase_noise, plan_budget, reply_sizes, unit_budgets
from server.cohorts import cohort_size
from shared.adapter import AdapterState
from shared.backbone import open_backbone
from shared.config import Config
from shared.errors import ConfigError
from shared.model import build_scorer, read_parameters
from shared.noise import MODES
from shared.privacy.accounting import accountant_of
from shared.privacy.plan import PHASES, NoisePlan, price_layer
from simulations.sources import source_of

#: Bytes of one packed entry; integers modulo 2^32 under secure aggregation are as long.
ENTRY = 4


def plan_run(
    config: Config, *, users: int | None = None, items: int | None = None, multiplier: float | None = None
) -> dict[str, Any]:
    """Epsilon, noise and bytes of a run.

    users, items: size of the population and of the catalogue; both are read from the data source unless given.
    multiplier: the training noise z to price, in place of the budget's. Raises ConfigError for a multiplier without
    privacy, or for two units at once.
    """
    if users is None or items is None:
        data = source_of(config)
        users, items = users or len(data.users), items or len(data.catalogue)
    backbone = open_backbone(config.model.backbone)
    scorer = build_scorer(
        backbone, model=config.model, lora=config.lora, seed=config.seed, items=items, prior=config.prior
    )
    adapter = AdapterState(read_parameters(scorer))
    dimensions = reply_sizes(config, adapter, items=items, layout=scorer.layout)
    matrix = scorer.layout.features * scorer.layout.output if scorer.layout else 0
    plan = plan_budget(config, users, dimensions=dimensions)
    if multiplier is not None:
        plan = _priced(config, plan, users=users, multiplier=multiplier, dimensions=dimensions)
    return {
        "mode": config.privacy.mode,
        "trust": config.privacy.trust,
        "secure_aggregation": config.federation.secure_aggregation,
        "delta": config.privacy.delta,
        "devices": users,
        "cohort": cohort_size(config.federation, users),
        "rounds": config.federation.rounds,
        "participation_cap": plan.participations if plan else None,
        "entries": {"adapter": adapter.size, "trained_per_round": dimensions["train"], "items": items},
        "layers": {
            unit: _layer(config, plan, unit, users=users, dimensions=dimensions) for unit in MODES[config.privacy.mode]
        }
        if plan
        else {},
        "bytes_per_device_per_round": {
            "down": ENTRY * (adapter.size + items + matrix),
            "up": ENTRY * dimensions["train"],
        },
    }


def _priced(
    config: Config, plan: NoisePlan | None, *, users: int, multiplier: float, dimensions: Mapping[str, int]
) -> NoisePlan:
    units = MODES[config.privacy.mode]
    if plan is None or len(units) != 1:
        raise ConfigError(
            f"--noise-multiplier prices the training noise of one unit; found privacy.mode = {config.privacy.mode!r}."
            " Use --privacy event or user"
        )
    wanted = demand(config, units[0], devices=users, simulation=True, dimensions=dimensions, steps=plan.steps)
    layer = price_layer(wanted, train_multiplier=multiplier, delta=config.privacy.delta)
    return dataclasses.replace(plan, event=layer) if units[0] == "event" else dataclasses.replace(plan, user=layer)


def _layer(config: Config, plan: NoisePlan, unit: str, *, users: int, dimensions: Mapping[str, int]) -> dict[str, Any]:
    layer = getattr(plan, unit)
    planned = cohort_size(config.federation, users)
    noise = phase_noise(config, plan, phase="train", asked=planned)
    clip = getattr(noise, unit).clip
    # Noise in the mean of a full cohort, over the norm that one unit's clipped contribution has.
    ratio = noise.std_of_sum(planned) / clip / planned * math.sqrt(dimensions["train"])
    releases = demand(config, unit, devices=users, simulation=True, dimensions=dimensions, steps=plan.steps).releases(
        1.0
    )
    return {
        "epsilon": layer.epsilon,
        "budget": unit_budgets(config)[unit],
        "noise_multipliers": {phase: z for phase in PHASES if (z := getattr(layer, phase))},
        "noise_to_signal": ratio,
        "accountant": accountant_of(releases),
        "advice": _advice(config, ratio, planned=planned, users=users, size=dimensions["train"]),
    }


def _advice(config: Config, ratio: float, *, planned: int, users: int, size: int) -> list[str]:
    """What to change when a round's noise is larger than any signal in it; [] when it is not."""
    if ratio <= 1:
        return []
    local = config.privacy.trust == "local"
    cohort = math.ceil(planned * (ratio**2 if local else ratio))
    advice = [
        f"a cohort of {cohort:,} instead of {planned:,}"
        + (f", which needs more than the {users:,} devices there are" if cohort > users else ""),
        f"an adapter of {max(1, int(size / ratio**2)):,} entries instead of {size:,} (model.output_rank,"
        " model.output_dim, lora.rank, lora.targets, model.context)",
        "fewer rounds a device joins (federation.rounds), or a larger epsilon",
    ]
    if local:
        advice.insert(0, "trust = aggregate with secure aggregation, which needs less noise by the root of the cohort")
    return advice
