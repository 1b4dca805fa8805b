"""What values a configuration may hold, and which combinations would break a guarantee."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from shared.errors import ConfigError

if TYPE_CHECKING:
    from shared.config import Config

AGGREGATIONS = ("alternate", "ffa", "fedit")


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
    _choice("privacy.mode", config.privacy.mode, ("none", "event"))
    _choice("privacy.trust", config.privacy.trust, ("aggregate", "local"))
    _choice("federation.engine", config.federation.engine, ("inline", "ray"))
    _choice("federation.sampling", config.federation.sampling, ("shuffled", "poisson"))
    _choice("federation.aggregation", config.federation.aggregation, AGGREGATIONS)
    _choice("federation.server_optimizer", config.federation.server_optimizer, ("adam", "sgd"))
    _within("seed", config.seed, 0, 2**63 - 1)
    for name, low, high in _BOUNDS:
        section, key = name.split(".")
        _within(name, getattr(getattr(config, section), key), low, high)
    spent = config.privacy.popularity_share + config.privacy.validation_share
    if spent >= 1:
        raise ConfigError(f"privacy: shares of popularity and validation add up to {spent:g}; training gets nothing")
    private = config.privacy.mode != "none"
    if private and config.privacy.trust == "aggregate" and config.training.local_steps > 1:
        raise ConfigError(
            "training.local_steps > 1 with privacy.trust = 'aggregate': a later local step depends on an"
            " earlier one that carries only a share of the noise, so the sum would not meet epsilon."
            " Use local_steps = 1, or trust = 'local'"
        )


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
    ("lora.rank", 1, 4096),
    ("lora.alpha", 1, 65536),
    ("lora.dropout", 0, 0.9),
    ("lora.blocks", 0, 1000),
    ("training.local_steps", 1, 10000),
    ("training.local_learning_rate", 1e-9, 1e6),
    ("training.window_sample_rate", 1e-6, 1),
    ("training.clip_norm", 1e-9, _LARGE),
    ("privacy.epsilon", 1e-6, 1e4),
    ("privacy.delta", 1e-300, 0.5),
    ("privacy.popularity_share", 1e-6, 1),
    ("privacy.validation_share", 1e-6, 1),
    ("federation.rounds", 0, _LARGE),
    ("federation.cohort", 1, _LARGE),
    ("federation.server_learning_rate", 1e-12, 1e6),
    ("federation.server_momentum", 0, 0.9999),
    ("federation.average_last", 0, 1),
    ("federation.quorum", 1e-6, 1),
    ("federation.minimum_devices", 1, _LARGE),
    ("federation.reply_timeout", 1e-3, _LARGE),
    ("evaluation.every", 0, _LARGE),
    ("evaluation.curve_users", 1, _LARGE),
    ("evaluation.local_only_users", 0, _LARGE),
    ("evaluation.bootstrap", 10, 1_000_000),
)
