"""What every phase may cost and how much noise it therefore needs: the numbers the whole guarantee rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping

from server.aggregation import trained_names
from server.cohorts import cohort_size, participation_cap, rounds_per_pass
from shared.adapter import AdapterState
from shared.config import Config
from shared.errors import PrivacyError
from shared.layout import PriorLayout
from shared.model import Stage
from shared.noise import MODES, Layer, Noise
from shared.privacy.plan import PHASES, Demand, LayerPlan, NoisePlan, plan_layer
from shared.protocol import DIFFERENCE_BOUND
from shared.secagg.ring import ring_scale


def sensitivities(config: Config, phase: str, *, update_clip: float | None = None) -> dict[str, float]:
    """L2 sensitivity of a reply to one unit, in units of the reply. Derived from the clips, never set.

    | phase | event: another window | user: a person comes or goes |
    |---|---|---|
    | popularity | sqrt(L): a window holds at most L items | sqrt(L): the whole count is clipped to it |
    | prior | the clip of a window's moments | the same clip, of a whole reply |
    | train | local learning rate times the per-window clip | the clip of the whole update, see `whole_reply_bound` |
    | validate | sqrt(n): from one end of each of n ranges to the other | sqrt(n) / 2: a range is -0.5 to 0.5 |

    n is the number of rankers compared with the start, see `compared`.
    """
    if phase == "popularity":
        length = math.sqrt(config.model.history)
        return {"event": length, "user": length}
    if phase == "prior":
        return {"event": config.prior.clip, "user": config.prior.clip}
    if phase == "validate":
        bound = DIFFERENCE_BOUND * math.sqrt(len(compared(config)))
        return {"event": 2 * bound, "user": bound}
    clip = config.privacy.user_clip if update_clip is None else update_clip
    window = config.training.local_learning_rate * config.training.clip_norm
    return {"event": window, "user": whole_reply_bound(config, clip)}


def compared(config: Config) -> tuple[Stage, ...]:
    """The rankers that devices compare with the start at the end of a run."""
    return ("prior", "adapter") if config.prior.half_lives else ("adapter",)


def budget_shares(config: Config) -> dict[str, float]:
    """Part of the budget for each phase; a phase that is not asked gets none, and the rest is scaled up to 1."""
    privacy = config.privacy
    shares = {
        "popularity": privacy.popularity_share,
        "prior": privacy.prior_share if config.prior.half_lives else 0.0,
        "validate": privacy.validation_share,
    }
    training = 1.0 - sum(shares.values()) if config.federation.rounds else 0.0
    total = sum(shares.values()) + training
    return {phase: share / total for phase, share in {**shares, "train": training}.items()}


def whole_reply_bound(config: Config, clip: float) -> float:
    """L2 bound S of a training reply: the update, clipped to C, and with an adaptive clip one entry more.

    That entry is ±w/2 with w = 2 C sqrt(s / (1 - s)), so that S^2 = C^2 + (w/2)^2 = C^2 / (1 - s): one Gaussian
    release of the whole reply spends the share s on the clip's quantile and the rest on the update.
    """
    share = config.privacy.quantile_share if config.privacy.clip_quantile else 0.0
    return clip / math.sqrt(1 - share)


def quantile_weight(config: Config, clip: float) -> float:
    """The w of `whole_reply_bound`; 0 without an adaptive clip."""
    share = config.privacy.quantile_share if config.privacy.clip_quantile else 0.0
    return 2 * clip * math.sqrt(share / (1 - share))


def is_amplified(config: Config, *, simulation: bool) -> bool:
    """Whether the user layer may claim amplification by sampling: cohorts must really be Poisson sampled and secret."""
    privacy, federation = config.privacy, config.federation
    sampled = federation.sampling == "poisson" and privacy.trust == "aggregate"
    return simulation and sampled and "user" in MODES[privacy.mode]


def demand(
    config: Config,
    unit: str,
    *,
    devices: int,
    simulation: bool,
    dimensions: Mapping[str, int],
    steps: float = 0.0,
) -> Demand:
    """What one unit's data flows into over a whole run.

    dimensions: entries of each phase's reply. steps: integer steps of a whole reply's clip, 0 for real numbers.
    """
    federation, training = config.federation, config.training
    participations, rate = participation_cap(federation, devices), 1.0
    if unit == "event":
        participations, rate = participations * training.local_steps, training.window_sample_rate
    elif is_amplified(config, simulation=simulation):
        participations, rate = federation.rounds, cohort_size(federation, devices) / devices
    relative = [sensitivities(config, phase)[unit] / sensitivities(config, phase)["user"] for phase in PHASES]
    return Demand(
        unit,
        shares=budget_shares(config),
        steps=participations,
        sample_rate=rate,
        dimensions=dict(dimensions) if steps else {},
        grid=steps * min(relative),
    )


def reply_sizes(
    config: Config, adapter: AdapterState, *, items: int, layout: PriorLayout | None = None
) -> dict[str, int]:
    """Entries of the largest reply of each phase; `plan_budget` needs them for integer noise."""
    rule, adaptive = config.federation.aggregation, 1 if config.privacy.clip_quantile else 0
    trained = [trained_names(rule, round_number=number, names=list(adapter)) for number in (1, 2)]
    largest = max(adapter.select(names).size for names in trained)
    return {
        "popularity": items,
        "prior": AdapterState.length(layout.shapes) if layout else 0,
        "train": largest + adaptive,
        "validate": len(compared(config)),
    }


def plan_budget(
    config: Config, devices: int, *, simulation: bool = True, dimensions: Mapping[str, int] | None = None
) -> NoisePlan | None:
    """Noise multipliers that spend each unit's budget over the planned rounds; None without privacy.

    dimensions: entries of each phase's reply; needed for integer noise only. Raises PrivacyError when correlated
    noise would span more rounds than a device stays away.
    """
    privacy, federation = config.privacy, config.federation
    if privacy.mode == "none":
        return None
    if privacy.noise_bands > 1 and privacy.noise_bands > rounds_per_pass(federation, devices):
        raise PrivacyError(
            f"privacy.noise_bands: found {privacy.noise_bands}; a device comes back after"
            f" {rounds_per_pass(federation, devices)} rounds, and at most that many may share noise."
            " Lower noise_bands or the cohort"
        )

    def layers_of(steps: float) -> dict[str, LayerPlan]:
        return {
            unit: plan_layer(
                demand(config, unit, devices=devices, simulation=simulation, dimensions=dimensions or {}, steps=steps),
                epsilon=budget,
                delta=privacy.delta,
            )
            for unit, budget in unit_budgets(config).items()
        }

    steps = ring_scale(1.0, cohort=devices) if federation.secure_aggregation else 0.0
    layers = layers_of(steps)
    if steps:  # very large noise leaves room for fewer steps; planning again with those costs a little more noise
        largest = max(getattr(layer, phase) for layer in layers.values() for phase in PHASES)
        steps = ring_scale(1.0, cohort=devices, noise=2 * largest)
        layers = layers_of(steps)
    amplified = is_amplified(config, simulation=simulation)
    return NoisePlan(
        participations=participation_cap(federation, devices),
        event=layers.get("event"),
        user=layers.get("user"),
        user_rate=cohort_size(federation, devices) / devices if amplified else 1.0,
        user_steps=max(1, federation.rounds) if amplified else 0,
        steps=steps,
    )


def unit_budgets(config: Config) -> dict[str, float]:
    """Epsilon each protected unit may spend over a device's life."""
    privacy = config.privacy
    user = privacy.user_epsilon if privacy.mode == "both" and privacy.user_epsilon else privacy.epsilon
    return {unit: {"event": privacy.epsilon, "user": user}[unit] for unit in MODES[privacy.mode]}


def phase_noise(
    config: Config, plan: NoisePlan | None, *, phase: str, asked: int, update_clip: float | None = None
) -> Noise:
    """The noise of one exchange with so many devices. update_clip: the current clip when it adapts."""
    privacy, hidden = config.privacy, config.federation.secure_aggregation
    clips = sensitivities(config, phase, update_clip=update_clip)
    layers = {
        unit: Layer(getattr(layer, phase), clips[unit])
        for unit in MODES[privacy.mode]
        if plan and (layer := getattr(plan, unit))
    }
    protects_people = "user" in layers
    central = protects_people and privacy.trust == "aggregate" and not hidden
    return Noise(
        mode=privacy.mode,
        trust=privacy.trust,
        by="server" if central else "device",
        quorum=max(1, math.ceil(config.federation.quorum * asked)),
        event=layers.get("event"),
        user=layers.get("user"),
        bound=clips["user"] if protects_people or hidden else math.inf,
        scale=(plan.steps if plan else ring_scale(1.0, cohort=asked)) / clips["user"] if hidden else 0.0,
        user_rate=plan.user_rate if plan and protects_people else 1.0,
        user_steps=plan.user_steps if plan and protects_people else 0,
    )


def run_facts(config: Config, plan: NoisePlan, *, devices: int, seeded: bool) -> dict[str, object]:
    """What the server's ledger writes when a run begins: all that a statement needs besides the releases.

    seeded: noise comes from the configuration's seed, as in a simulation.
    """
    return {
        "mode": config.privacy.mode,
        "units": list(MODES[config.privacy.mode]),
        "trust": config.privacy.trust,
        "secure_aggregation": config.federation.secure_aggregation,
        "delta": config.privacy.delta,
        "budgets": unit_budgets(config),
        "clips": {"event": config.training.clip_norm, "user": config.privacy.user_clip},
        "history": config.model.history,
        "devices": devices,
        "seeded": seeded,
        "participation_cap": plan.participations,
        "amplified": plan.user_steps > 0,
        "noise_bands": config.privacy.noise_bands,
        "phases": [phase for phase in PHASES if budget_shares(config)[phase]],
    }
