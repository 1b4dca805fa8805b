"""What values a configuration may hold, and which combinations would break a guarantee."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from shared.errors import ConfigError

if TYPE_CHECKING:
    from shared.config import Config

AGGREGATIONS = ("alternate", "ffa", "fedit")
CONTEXTS = ("kind", "gap", "value", "hour", "attributes")
DIRECTIONS = ("catalogue", "backbone")
ROBUST_RULES = ("norm-filter", "mean", "median", "trimmed-mean", "multi-krum")


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(value, allowed, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{name}: found {value!r}; expected one of {', '.join(allowed)}.{hint}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}: found {value}; expected {low:g} to {high:g}")


def check_config(config: Config) -> None:
    """ConfigError for a value out of range, an unknown choice, or a combination that breaks a guarantee."""
    _choice("data.split", config.data.split, ("leave-one-out", "temporal"))
    _choice("model.directions", config.model.directions, DIRECTIONS)
    _choice("privacy.mode", config.privacy.mode, ("none", "event", "user", "both"))
    _choice("privacy.trust", config.privacy.trust, ("aggregate", "local"))
    _choice("federation.engine", config.federation.engine, ("inline", "ray"))
    _choice("federation.sampling", config.federation.sampling, ("shuffled", "cyclic", "poisson"))
    _choice("federation.aggregation", config.federation.aggregation, AGGREGATIONS)
    _choice("federation.server_optimizer", config.federation.server_optimizer, ("adam", "sgd"))
    _within("seed", config.seed, 0, 2**63 - 1)
    for name, low, high in _BOUNDS:
        section, key = name.split(".")
        _within(name, getattr(getattr(config, section), key), low, high)
    for rule in config.federation.robust:  # their order is checked where they run
        _choice("federation.robust", rule, ROBUST_RULES)
    for source in config.model.context:
        _choice("model.context", source, CONTEXTS)
    prior = config.prior
    if prior.half_lives and prior.widths and len(prior.half_lives) != len(prior.widths):
        raise ConfigError(
            f"prior: found {len(prior.half_lives)} half_lives and {len(prior.widths)} widths; expected one width each"
        )
    for half_life in prior.half_lives:
        _within("prior.half_lives", half_life, 0.01, 1e6)
    for width in prior.widths:
        _within("prior.widths", width, 1, 65536)
    privacy = config.privacy
    spent = privacy.popularity_share + privacy.validation_share + (privacy.prior_share if prior.half_lives else 0)
    if spent >= 1:
        raise ConfigError(f"privacy: shares of the other releases add up to {spent:g}; training gets nothing")
    for broken, reason in _forbidden(config):
        if broken:
            raise ConfigError(reason)


def _forbidden(config: Config) -> list[tuple[bool, str]]:
    """Combinations that would break a guarantee, or do nothing, each with the reason and the way out."""
    privacy, federation, training = config.privacy, config.federation, config.training
    event, user = privacy.mode in ("event", "both"), privacy.mode in ("user", "both")
    shared_noise = privacy.trust == "aggregate"
    central = privacy.mode == "user" and shared_noise and not federation.secure_aggregation
    return [
        (
            event and shared_noise and training.local_steps > 1,
            "training.local_steps > 1 with privacy.trust = 'aggregate': a later local step depends on an"
            " earlier one that carries only a share of the noise, so the sum would not meet epsilon."
            " Use local_steps = 1, or trust = 'local'",
        ),
        (
            privacy.mode == "both" and training.local_steps > 1,
            "training.local_steps > 1 with privacy.mode = 'both': one noise is added to the whole update, which does"
            " not protect an event in each local step. Use local_steps = 1, or mode = 'event' or 'user'",
        ),
        (
            bool(federation.robust) and (user or (event and shared_noise)),
            "federation.robust with noise on the sum: a median or a filter is no sum of clipped updates, so its"
            " sensitivity is not the clip and epsilon would be wrong. Clipping with uniform weights already bounds"
            " what one device can do. Use robust = [], privacy.trust = 'local' at event level, or mode = 'none'",
        ),
        (
            bool(federation.robust) and federation.secure_aggregation,
            "federation.robust with federation.secure_aggregation: robust rules compare single updates, which secure"
            " aggregation hides from the server. Choose one of the two",
        ),
        (
            federation.secure_aggregation and privacy.trust == "local",
            "federation.secure_aggregation with privacy.trust = 'local': every reply meets epsilon alone, so hiding it"
            " buys nothing. Use trust = 'aggregate'",
        ),
        (
            federation.secure_aggregation and event and training.window_sample_rate < 1,
            "federation.secure_aggregation with training.window_sample_rate < 1: integer noise is priced without"
            " subsampling of windows. Use window_sample_rate = 1",
        ),
        (
            federation.secure_aggregation and user and federation.sampling == "poisson",
            "federation.secure_aggregation with Poisson cohorts at user level: integer noise is priced without"
            " amplification. Use federation.sampling = 'shuffled'",
        ),
        (
            privacy.clip_quantile > 0 and not (privacy.mode == "user" and shared_noise),
            "privacy.clip_quantile needs privacy.mode = 'user' and trust = 'aggregate': elsewhere the quantile's own"
            " noise, or an event's effect on it, would cost more than a better clip gains. Set clip_quantile = 0",
        ),
        (
            privacy.noise_bands > 1
            and not (central and federation.sampling == "cyclic" and federation.aggregation != "alternate"),
            "privacy.noise_bands > 1 needs privacy.mode = 'user', trust = 'aggregate' without secure aggregation, and"
            " federation.sampling = 'cyclic': the server must add the noise, and a device may only come back after"
            " that many rounds. And federation.aggregation = 'ffa' or 'fedit': noise cancels only where the same"
            " parameters train in every round",
        ),
        (
            bool(config.prior.half_lives) and config.prior.folds > 1 and privacy.mode != "none",
            "prior.folds > 1 with privacy: a round then asks one group of devices only, and the participation cap is"
            " priced with all of them. Use prior.folds = 1",
        ),
        (
            "attributes" in config.model.context and privacy.mode == "event",
            "model.context with attributes and privacy.mode = 'event': a person's attributes are read with every one"
            " of their windows, and a guarantee for one window does not cover them. Use mode = 'user' or 'both', or"
            " leave attributes out",
        ),
        (
            config.simulation.chaos > 0 and federation.engine == "ray",
            "simulation.chaos with federation.engine = 'ray': faults are injected in the inline engine only."
            " Use federation.engine = 'inline'",
        ),
        (
            config.simulation.chaos > 0 and federation.secure_aggregation,
            "simulation.chaos with federation.secure_aggregation: faults are made for plain replies. Choose one",
        ),
    ]


_LARGE = 1e9
_BOUNDS = (
    ("data.min_item_count", 0, _LARGE),
    ("data.world_users", 1, _LARGE),
    ("data.world_events", 8, _LARGE),
    ("model.blocks", 1, 1000),
    ("model.history", 2, 4096),
    ("model.input_rank", 0, 65536),
    ("model.output_rank", 0, 65536),
    ("model.output_dim", 1, 65536),
    ("model.whitening", 0, 1),
    ("model.output_scale", 1e-6, 1e6),
    ("model.token_scale", 1e-6, 1e6),
    ("model.gamma", 0, 1e6),
    ("model.beta", 0, 1e6),
    ("model.content_half_life", 0.1, 1e6),
    ("model.content_whitening", 0, 1),
    ("model.sharpness", 0, 30),
    ("model.identity", 0, 65536),
    ("model.input_codes", 0, 65536),
    ("prior.output", 1, 65536),
    ("prior.ridge", 1e-9, _LARGE),
    ("prior.kappa", 0, 1e6),
    ("prior.floor", 1e-9, 1e6),
    ("prior.skip_penalty", 0, 1),
    ("prior.gamma", 0, 1e6),
    ("prior.beta", 0, 1e6),
    ("prior.fusion", 0, 1e6),
    ("prior.folds", 1, 16),
    ("prior.clip", 1e-9, _LARGE),
    ("lora.rank", 1, 4096),
    ("lora.alpha", 1, 65536),
    ("lora.dropout", 0, 0.9),
    ("lora.blocks", 0, 1000),
    ("training.local_steps", 1, 10000),
    ("training.local_learning_rate", 1e-9, 1e6),
    ("training.window_sample_rate", 1e-6, 1),
    ("training.clip_norm", 1e-9, _LARGE),
    ("privacy.epsilon", 1e-6, 1e4),
    ("privacy.user_epsilon", 0, 1e4),
    ("privacy.delta", 1e-300, 0.5),
    ("privacy.popularity_share", 1e-6, 1),
    ("privacy.prior_share", 1e-6, 1),
    ("privacy.validation_share", 1e-6, 1),
    ("privacy.user_clip", 1e-9, _LARGE),
    ("privacy.clip_quantile", 0, 0.99),
    ("privacy.quantile_share", 1e-6, 0.9),
    ("privacy.clip_learning_rate", 1e-6, 10),
    ("privacy.noise_bands", 1, 10_000),
    ("federation.rounds", 0, _LARGE),
    ("federation.cohort", 1, _LARGE),
    ("federation.survey", 0, _LARGE),
    ("federation.server_learning_rate", 1e-12, 1e6),
    ("federation.server_momentum", 0, 0.9999),
    ("federation.anchor", 0, 0.99),
    ("federation.average_last", 0, 1),
    ("federation.quorum", 1e-6, 1),
    ("federation.minimum_devices", 1, _LARGE),
    ("federation.reply_timeout", 1e-3, _LARGE),
    ("federation.robust_share", 0, 0.49),
    ("simulation.chaos", 0, 0.9),
    ("evaluation.every", 0, _LARGE),
    ("evaluation.curve_users", 1, _LARGE),
    ("evaluation.test_users", 0, _LARGE),
    ("evaluation.local_only_users", 0, _LARGE),
    ("evaluation.bootstrap", 10, 1_000_000),
)
