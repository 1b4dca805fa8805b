"""Combinations that would break a guarantee are refused with the reason; their neighbours are not."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from shared.config import Config, merge
from shared.config_rules import _forbidden
from shared.errors import ConfigError
from shared.sections import Privacy, Training

#: Settings that are refused together, words of the reason, and changes that each make them legal.
FORBIDDEN: dict[str, tuple[dict[str, Any], str, list[dict[str, Any]]]] = {
    "local steps on a share of the noise": (
        {"privacy.mode": "event", "training.local_steps": 2},
        r"carries only a share of the noise.*Use local_steps = 1, or trust = 'local'",
        [{"training.local_steps": 1}, {"privacy.trust": "local"}, {"privacy.mode": "none"}, {"privacy.mode": "user"}],
    ),
    "local steps under one noise for both units": (
        {"privacy.mode": "both", "privacy.trust": "local", "training.local_steps": 2},
        r"does not protect an event in each local step. Use local_steps = 1, or mode = 'event' or 'user'",
        [{"training.local_steps": 1}, {"privacy.mode": "event"}, {"privacy.mode": "user"}],
    ),
    "a robust rule and noise on the sum": (
        {"privacy.mode": "user", "federation.robust": ["median"]},
        r"no sum of clipped updates, so its sensitivity is not the clip.*Use robust = \[\]",
        [
            {"federation.robust": []},
            {"privacy.mode": "none"},
            {"privacy.mode": "event", "privacy.trust": "local"},
        ],
    ),
    "a robust rule and shares of noise": (
        {"privacy.mode": "event", "federation.robust": ["norm-filter", "mean"]},
        r"federation.robust with noise on the sum",
        [{"privacy.trust": "local"}, {"privacy.mode": "none"}],
    ),
    "a robust rule and people protected by themselves": (
        {"privacy.mode": "user", "privacy.trust": "local", "federation.robust": ["median"]},
        r"federation.robust with noise on the sum",
        [{"federation.robust": []}, {"privacy.mode": "event"}],
    ),
    "a robust rule and hidden replies": (
        {"federation.robust": ["multi-krum"], "federation.secure_aggregation": True},
        r"robust rules compare single updates, which secure aggregation hides",
        [{"federation.robust": []}, {"federation.secure_aggregation": False}],
    ),
    "hidden replies that need no hiding": (
        {"federation.secure_aggregation": True, "privacy.trust": "local", "privacy.mode": "event"},
        r"hiding it buys nothing. Use trust = 'aggregate'",
        [{"privacy.trust": "aggregate"}, {"federation.secure_aggregation": False}],
    ),
    "integer noise and sampled windows": (
        {
            "federation.secure_aggregation": True,
            "privacy.mode": "both",
            "training.window_sample_rate": 0.5,
        },
        r"priced without subsampling of windows. Use window_sample_rate = 1",
        [
            {"training.window_sample_rate": 1.0},
            {"federation.secure_aggregation": False},
            {"privacy.mode": "user"},
        ],
    ),
    "integer noise and sampled cohorts": (
        {
            "federation.secure_aggregation": True,
            "privacy.mode": "user",
            "federation.sampling": "poisson",
        },
        r"priced without amplification. Use federation.sampling = 'shuffled'",
        [
            {"federation.sampling": "shuffled"},
            {"federation.sampling": "cyclic"},
            {"federation.secure_aggregation": False},
            {"privacy.mode": "event"},
        ],
    ),
    "attributes beside protected windows": (
        {"privacy.mode": "event", "model.context": ["kind", "attributes"]},
        r"a person's attributes are read with every one of their windows, and a guarantee for one window does not",
        [{"privacy.mode": "user"}, {"privacy.mode": "both"}, {"privacy.mode": "none"}, {"model.context": ["kind"]}],
    ),
    "an adaptive clip beside protected windows": (
        {"privacy.mode": "both", "privacy.clip_quantile": 0.5},
        r"privacy.clip_quantile needs privacy.mode = 'user' and trust = 'aggregate'",
        [{"privacy.clip_quantile": 0.0}, {"privacy.mode": "user"}],
    ),
    "an adaptive clip under the noise of one device": (
        {"privacy.mode": "user", "privacy.trust": "local", "privacy.clip_quantile": 0.5},
        r"privacy.clip_quantile needs",
        [{"privacy.trust": "aggregate"}, {"privacy.clip_quantile": 0.0}],
    ),
    "an adaptive clip of nothing": (
        {"privacy.mode": "none", "privacy.clip_quantile": 0.5},
        r"privacy.clip_quantile needs",
        [{"privacy.mode": "user"}],
    ),
    "correlated noise that devices add": (
        {
            "privacy.mode": "user",
            "privacy.trust": "local",
            "privacy.noise_bands": 4,
            "federation.sampling": "cyclic",
            "federation.aggregation": "ffa",
        },
        r"privacy.noise_bands > 1 needs .*the server must add the noise",
        [{"privacy.trust": "aggregate"}, {"privacy.noise_bands": 1}],
    ),
    "correlated noise under secure aggregation": (
        {
            "privacy.mode": "user",
            "privacy.noise_bands": 4,
            "federation.sampling": "cyclic",
            "federation.aggregation": "ffa",
            "federation.secure_aggregation": True,
        },
        r"without secure aggregation",
        [{"federation.secure_aggregation": False}],
    ),
    "correlated noise at event level": (
        {
            "privacy.mode": "event",
            "privacy.noise_bands": 4,
            "federation.sampling": "cyclic",
            "federation.aggregation": "ffa",
        },
        r"privacy.noise_bands > 1 needs privacy.mode = 'user'",
        [{"privacy.mode": "user"}],
    ),
    "correlated noise and devices that come back at once": (
        {"privacy.mode": "user", "privacy.noise_bands": 4, "federation.aggregation": "ffa"},
        r"federation.sampling = 'cyclic'.*a device may only come back after that many rounds",
        [{"federation.sampling": "cyclic"}, {"privacy.noise_bands": 1}],
    ),
    "correlated noise of parameters that take turns": (
        {"privacy.mode": "user", "privacy.noise_bands": 4, "federation.sampling": "cyclic"},
        r"privacy.noise_bands",
        [{"federation.aggregation": "ffa"}, {"federation.aggregation": "fedit"}, {"privacy.noise_bands": 1}],
    ),
    "groups of devices under one participation cap": (
        {"prior.folds": 2, "privacy.mode": "event"},
        r"prior.folds > 1 with privacy.*the participation cap is priced with all of them. Use prior.folds = 1",
        [{"prior.folds": 1}, {"privacy.mode": "none"}, {"prior.half_lives": []}],
    ),
    "faults where none can be injected": (
        {"simulation.chaos": 0.2, "federation.engine": "ray"},
        r"faults are injected in the inline engine only. Use federation.engine = 'inline'",
        [{"federation.engine": "inline"}, {"simulation.chaos": 0.0}],
    ),
    "faults in hidden replies": (
        {"simulation.chaos": 0.2, "federation.secure_aggregation": True},
        r"faults are made for plain replies",
        [{"federation.secure_aggregation": False}, {"simulation.chaos": 0.0}],
    ),
}


def build(settings: dict[str, Any]) -> Config:
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        tree.setdefault(section, {})[key] = value
    return Config.from_dict(tree)


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_combination_that_breaks_a_guarantee_is_refused_with_the_reason(name: str) -> None:
    settings, reason, _ = FORBIDDEN[name]
    with pytest.raises(ConfigError, match=reason):
        build(settings)


@pytest.mark.parametrize(
    ("name", "way_out"), [(name, number) for name, row in FORBIDDEN.items() for number in range(len(row[2]))]
)
def test_what_the_reason_names_as_the_way_out_is_accepted(name: str, way_out: int) -> None:
    settings, _, ways = FORBIDDEN[name]
    build({**settings, **ways[way_out]})


def test_every_rule_has_been_broken_above() -> None:
    """A rule that is added without a case here fails this."""
    seen: set[str] = set()
    for settings, _, _ in FORBIDDEN.values():
        with pytest.raises(ConfigError) as caught:
            build(settings)
        seen.add(str(caught.value))
    assert {reason for _, reason in _forbidden(Config())} == seen


def test_the_constructor_refuses_as_the_file_does() -> None:
    with pytest.raises(ConfigError, match="carries only a share of the noise"):
        Config(training=Training(local_steps=2), privacy=Privacy(mode="event"))


@pytest.mark.parametrize(("mode", "trust"), list(product(("none", "event", "user", "both"), ("aggregate", "local"))))
def test_every_mode_goes_with_every_trust(mode: str, trust: str) -> None:
    assert merge(Config(), {"privacy": {"mode": mode, "trust": trust}}).privacy.mode == mode


def test_an_unknown_robust_rule_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"federation.robust: found 'medain'.*Did you mean 'median'"):
        build({"federation.robust": ["medain"]})
