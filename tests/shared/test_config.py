"""Configuration: typed, documented, used, and refused with a reason where it would break a guarantee."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import (
    Config,
    Data,
    Model,
    Privacy,
    describe,
    load_config,
    merge,
    override,
    to_toml,
)
from shared.config_docs import configuration_markdown
from shared.config_rules import _BOUNDS
from shared.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
KEYS = [name for name, _, _ in describe()]


#: Values that are no default, in four runs because some exclude one another.
VARIANTS: tuple[dict[str, Any], ...] = (
    {
        "privacy.mode": "event",
        "privacy.trust": "local",
        "federation.robust": ("median",),
        "federation.engine": "ray",
        "training.local_steps": 2,
        "training.window_sample_rate": 0.5,
    },
    {"prior.folds": 2},
    {
        "privacy.mode": "user",
        "privacy.clip_quantile": 0.5,
        "federation.secure_aggregation": True,
    },
    {
        "privacy.mode": "user",
        "privacy.noise_bands": 4,
        "federation.sampling": "cyclic",
        "federation.aggregation": "ffa",
        "simulation.chaos": 0.2,
    },
)
#: Settings that keep their default unless a variant says otherwise.
SPECIAL = {name for variant in VARIANTS for name in variant}


def other_value(name: str, default: Any) -> Any:
    """A legal value that is not the default."""
    choices = {
        "data.split": "temporal",
        "model.directions": "backbone",
        "federation.server_optimizer": "sgd",
        "model.context": ("kind", "value", "hour"),
        "prior.half_lives": (1.5, 9.0),
        "prior.widths": (3, 4),
    }
    if name in choices:
        return choices[name]
    if isinstance(default, bool):
        return not default
    if isinstance(default, tuple):
        return ("k",)
    if isinstance(default, str):
        return f"{default}-other"
    low, high = next(((low, high) for key, low, high in _BOUNDS if key == name), (0, 10))
    candidate = default / 2 if isinstance(default, float) else default + 1
    return candidate if low <= candidate <= high and candidate != default else type(default)(high)


def changed(variant: dict[str, Any]) -> Config:
    tree: dict[str, Any] = {}
    for name, default, _ in describe():
        section, _, key = name.rpartition(".")
        kept = default if name in SPECIAL else other_value(name, default)
        (tree.setdefault(section, {}) if section else tree)[key] = variant.get(name, kept)
    return merge(Config(), tree)


def test_defaults_survive_a_dict_and_a_toml_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    for config in (Config(), *map(changed, VARIANTS)):
        assert Config.from_dict(config.to_dict()) == config
        file.write_text(to_toml(config), encoding="utf-8")
        assert load_config(file) == config


def value_of(config: Any, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), config)


@pytest.mark.parametrize(("name", "default", "_text"), describe())
def test_every_setting_has_been_changed_in_one_of_them(name: str, default: Any, _text: str) -> None:
    assert any(value_of(changed(variant), name) != default for variant in VARIANTS)


def test_a_prior_is_asked_for_unless_a_configuration_says_otherwise() -> None:
    prior = Config().prior
    assert (prior.half_lives, prior.widths, prior.output, prior.folds) == ((2.0,), (), 64, 1)
    assert override(Config(), "prior.half_lives=[]").prior.half_lives == ()


@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_any_text_survives_a_toml_file(text: str) -> None:
    config = Config(data=Data(source=text))
    assert Config.from_dict(tomllib.loads(to_toml(config))) == config


@given(st.floats(1e-6, 1e4), st.floats(1e-300, 0.5))
def test_any_float_survives_a_toml_file(epsilon: float, delta: float) -> None:
    config = Config(privacy=Privacy(epsilon=epsilon, delta=delta))
    assert Config.from_dict(tomllib.loads(to_toml(config))) == config


@pytest.mark.parametrize(("name", "_default", "text"), describe())
def test_every_field_is_documented(name: str, _default: Any, text: str) -> None:
    assert len(text) > 10, name
    assert text == text.strip()


@functools.cache
def sources() -> str:
    files = [
        file
        for folder in ("shared", "client", "server", "simulations")
        for file in sorted((ROOT / folder).rglob("*.py"))
        if file.name not in ("config.py", "config_docs.py", "config_rules.py")
    ]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@pytest.mark.parametrize("name", KEYS)
def test_every_field_is_used(name: str) -> None:
    """Read as an attribute (`.field`) or, on a device, out of the manifest's settings (`["field"]`)."""
    field = name.rpartition(".")[2]
    found = re.search(rf'\.{field}\b(?!\s*\()|\["{field}"\]', sources())
    assert found, f"{name} is never read; remove the setting or use it"


@pytest.mark.parametrize("name", KEYS)
def test_every_number_has_bounds(name: str) -> None:
    default = {row[0]: row[1] for row in describe()}[name]
    if isinstance(default, int | float) and not isinstance(default, bool):
        section, _, key = name.rpartition(".")
        for value in (math.inf, math.nan, -1.0) if isinstance(default, float) else (-1, 2**63):
            with pytest.raises(ConfigError, match=re.escape(name)):
                Config.from_dict({section: {key: value}} if section else {key: value})


def test_the_page_on_configuration_is_up_to_date() -> None:
    committed = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert committed == configuration_markdown(), "run python -m shared.config_docs > docs/configuration.md"


def test_the_page_on_configuration_has_every_key() -> None:
    page = configuration_markdown()
    for name, _, text in describe():
        assert f"| `{name.rpartition('.')[2]}` |" in page
        assert text.replace("|", "&#124;") in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert all(line.count("|") == 4 for line in rows)
    assert len(rows) == len(KEYS)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": {}}, r"unknown setting 'modle'"),
        ({"model": {"block": 2}}, r"unknown setting 'model.block'. Did you mean 'model.blocks'"),
        ({"model": {"rounds": 2}}, r"unknown setting 'model.rounds'. Did you mean 'federation.rounds'"),
        ({"epsilon": 2.0}, r"unknown setting 'epsilon'. Did you mean 'privacy.epsilon'"),
        ({"zzz": 1}, r"unknown setting 'zzz'. Sections: seed, data, model"),
        ({"model": 3}, r"model: found 3; expected a table"),
        ({"seed": {"x": 1}}, r"seed: found \{'x': 1\}; expected int"),
        ({"model": {"blocks": "2"}}, r"model.blocks: found '2'; expected int \(default 2\)"),
        ({"model": {"blocks": 2.0}}, r"model.blocks: found 2.0; expected int"),
        ({"model": {"blocks": True}}, r"model.blocks: found True; expected int"),
        ({"model": {"gamma": True}}, r"model.gamma: found True; expected float"),
        ({"model": {"context": 1}}, r"model.context: found 1; expected a list"),
        ({"model": {"context": ["kind", "vallue"]}}, r"model.context: found 'vallue'.*Did you mean 'value'"),
        ({"prior": {"skip_penalty": 1.5}}, r"prior.skip_penalty: found 1.5; expected 0 to 1"),
        ({"lora": {"targets": "q"}}, r"lora.targets: found 'q'; expected a list"),
        ({"lora": {"targets": ["q", 1]}}, r"lora.targets\[1\]: found 1; expected str"),
        ({"prior": {"half_lives": 3.0}}, r"prior.half_lives: found 3.0; expected a list"),
        ({"prior": {"half_lives": ["3"]}}, r"prior.half_lives\[0\]: found '3'; expected float"),
        ({"prior": {"half_lives": [True]}}, r"prior.half_lives\[0\]: found True; expected float"),
        ({"prior": {"widths": [8, 2.5]}}, r"prior.widths\[1\]: found 2.5; expected int"),
        ({"prior": {"half_lives": [2, 3], "widths": [8]}}, r"found 2 half_lives and 1 widths; expected one width each"),
        ({"prior": {"half_lives": [2, 0.0], "widths": [8, 8]}}, r"prior.half_lives: found 0.0; expected 0.01 to 1e"),
        ({"prior": {"half_lives": [math.nan], "widths": [8]}}, r"prior.half_lives: found nan"),
        ({"prior": {"half_lives": [2], "widths": [0]}}, r"prior.widths: found 0; expected 1 to 65536"),
        ({"model": {"directions": "backbon"}}, r"model.directions: found 'backbon'.*Did you mean 'backbone'"),
        ({"federation": {"anchor": 1.0}}, r"federation.anchor: found 1.0; expected 0 to 0.99"),
        ({"privacy": {"mode": "evnt"}}, r"privacy.mode: found 'evnt'.*Did you mean 'event'"),
        ({"privacy": {"trust": "server"}}, r"expected one of aggregate, local"),
        ({"federation": {"aggregation": "flora"}}, r"expected one of alternate, ffa, fedit"),
        ({"privacy": {"delta": 0.9}}, r"privacy.delta: found 0.9; expected 1e-300 to 0.5"),
        ({"privacy": {"epsilon": 0}}, r"privacy.epsilon: found 0"),
        ({"training": {"window_sample_rate": 0}}, r"training.window_sample_rate"),
        (
            {"prior": {"half_lives": []}, "privacy": {"popularity_share": 0.6, "validation_share": 0.4}},
            r"add up to 1; training gets nothing",
        ),
        (
            {"privacy": {"prior_share": 0.8}},
            r"add up to 1; training gets nothing",
        ),
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_dict(values)


def test_whole_numbers_are_accepted_where_a_float_is_wanted() -> None:
    assert Config.from_dict({"model": {"gamma": 3}}).model.gamma == 3.0
    assert isinstance(Config.from_dict({"model": {"gamma": 3}}).model.gamma, float)
    listed = Config.from_dict({"prior": {"half_lives": [3, 1.5], "widths": [8, 8]}}).prior.half_lives
    assert listed == (3.0, 1.5)
    assert [type(value) for value in listed] == [float, float]


def test_the_share_of_a_prior_that_is_not_asked_for_is_not_counted() -> None:
    assert Config.from_dict({"prior": {"half_lives": []}, "privacy": {"prior_share": 0.9}}).prior.half_lives == ()


@pytest.mark.parametrize(
    ("assignment", "read"),
    [
        ("seed=5", lambda config: config.seed == 5),
        ("model.blocks=3", lambda config: config.model.blocks == 3),
        ("model.gamma = 3", lambda config: config.model.gamma == 3.0),
        ("data.source=../data/ml-1m", lambda config: config.data.source == "../data/ml-1m"),
        ('data.source="a=b"', lambda config: config.data.source == "a=b"),
        ("lora.targets=['q', 'k']", lambda config: config.lora.targets == ("q", "k")),
        ("model.context=['hour']", lambda config: config.model.context == ("hour",)),
        ("prior.output=7", lambda config: config.prior.output == 7),
    ],
)
def test_one_key_is_overridden_and_the_rest_stays(assignment: str, read: Callable[[Config], bool]) -> None:
    start = Config(model=Model(output_rank=7))
    config = override(start, assignment)
    assert read(config)
    assert config.model.output_rank == 7
    assert start == Config(model=Model(output_rank=7))


def test_what_only_goes_together_is_overridden_together_and_later_ones_win() -> None:
    config = override(Config(), "prior.half_lives=[2, 9]", "prior.widths=[8]", "seed=4", "prior.widths=[8, 16]")
    assert (config.prior.half_lives, config.prior.widths, config.seed) == ((2.0, 9.0), (8, 16), 4)
    shorter = override(config, "prior.half_lives=[3]", "prior.widths=[4]")
    assert (shorter.prior.half_lives, shorter.prior.widths, shorter.seed) == ((3.0,), (4,), 4)
    with pytest.raises(ConfigError, match="1 half_lives and 2 widths"):
        override(config, "prior.half_lives=[3]")
    assert override(config) == config
    assert merge(
        Config(), {"model": {"blocks": 3}}, {"model": {"history": 9}}, {"model": {"blocks": 4}}
    ).model == Model(blocks=4, history=9)


@pytest.mark.parametrize(
    "assignment", ["model.blocks", "", "=1", "model=3", "seed.x=1", "model.blocks.x=1", "model.blocks=two"]
)
def test_bad_overrides_are_refused(assignment: str) -> None:
    with pytest.raises(ConfigError):
        override(Config(), assignment)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no readable file"):
        load_config(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    for content in (b"[model\n", b"\xff\xfe", b"seed = 1\nseed = 2"):
        broken.write_bytes(content)
        with pytest.raises(ConfigError, match="invalid TOML"):
            load_config(broken)


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1  # type: ignore[misc]
