"""`homerank-simulate plan`: what it says must be what a run then does."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from shared.errors import ConfigError, PrivacyError
from simulations.planning import plan_run
from tests.simulations.tiny_runs import invoke, tiny_config, tiny_options, train_inline

PRIOR = ("prior.half_lives=[1.0, 4.0]", "prior.widths=[8, 6]", "prior.output=10", "prior.folds=1")
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("secure", ["false", "true"])
def test_a_plan_is_what_the_run_then_spends(tmp_path: Path, tiny_data: Path, secure: str) -> None:
    config = tiny_config(
        tiny_data, "privacy.mode=both", "privacy.user_epsilon=5.0", f"federation.secure_aggregation={secure}"
    )
    planned = plan_run(config)
    run, adapter = train_inline(config, tmp_path / "run")
    spent = json.loads((run.path / "adapter" / "privacy.json").read_text())
    assert planned["participation_cap"] == spent["participation_cap"]
    for unit, layer in planned["layers"].items():
        # One noise serves both units, so a run may spend less than was planned for one of them.
        assert spent["layers"][unit]["epsilon"] <= layer["epsilon"] * (1 + 1e-6)
    assert max(spent["layers"][unit]["epsilon"] / planned["layers"][unit]["epsilon"] for unit in spent["layers"]) > 0.95
    assert planned["bytes_per_device_per_round"]["down"] == 4 * adapter.size


@pytest.mark.parametrize("rounds", [0, 3])
def test_a_prior_is_in_the_plan_as_it_is_in_the_run(tmp_path: Path, tiny_data: Path, rounds: int) -> None:
    config = tiny_config(tiny_data, "privacy.mode=user", *PRIOR, f"federation.rounds={rounds}")
    planned = plan_run(config)
    run, adapter = train_inline(config, tmp_path / "run")
    spent = json.loads((run.path / "adapter" / "privacy.json").read_text())["layers"]["user"]
    assert planned["layers"]["user"]["noise_multipliers"] == pytest.approx(spent["noise_multipliers"])
    assert set(spent["noise_multipliers"]) == {"popularity", "prior", "validate", *(["train"] if rounds else [])}
    assert spent["epsilon"] == pytest.approx(planned["layers"]["user"]["epsilon"])
    assert planned["bytes_per_device_per_round"]["down"] == 4 * adapter.size  # with popularity and prior
    assert planned["entries"]["adapter"] == adapter.size - 120 - 14 * 10


def test_a_multiplier_without_training_is_refused(tiny_data: Path) -> None:
    with pytest.raises(PrivacyError, match="no training rounds"):
        plan_run(tiny_config(tiny_data, "privacy.mode=user", "federation.rounds=0"), multiplier=1.0)


def test_the_noise_for_an_epsilon_costs_that_epsilon(tiny_data: Path) -> None:
    config = tiny_config(tiny_data, "privacy.mode=user", "privacy.epsilon=3.0")
    forward = plan_run(config)["layers"]["user"]
    back = plan_run(config, multiplier=forward["noise_multipliers"]["train"])["layers"]["user"]
    assert forward["epsilon"] == pytest.approx(3.0, rel=1e-6)
    assert back["epsilon"] == pytest.approx(3.0, rel=1e-6)


def test_the_noise_to_signal_ratio_is_the_formula_of_its_trust(tiny_data: Path) -> None:
    for trust, divisor in (("aggregate", 4.0), ("local", 2.0)):
        plan = plan_run(tiny_config(tiny_data, "privacy.mode=user", f"privacy.trust={trust}"))
        layer, entries = plan["layers"]["user"], plan["entries"]["trained_per_round"]
        expected = layer["noise_multipliers"]["train"] * math.sqrt(entries) / divisor
        assert layer["noise_to_signal"] == pytest.approx(expected)


def test_advice_is_given_only_where_noise_drowns_the_signal(tiny_data: Path) -> None:
    config = tiny_config(tiny_data, "privacy.mode=user")
    assert plan_run(config)["layers"]["user"]["advice"]
    large = tiny_config(tiny_data, "privacy.mode=user", "federation.cohort=5000")
    assert plan_run(large, users=100_000, items=100)["layers"]["user"]["advice"] == []


def test_what_the_advice_says_would_be_enough(tiny_data: Path) -> None:
    config = tiny_config(tiny_data, "privacy.mode=user", "federation.rounds=1")
    advice = plan_run(config, users=100_000, items=100)["layers"]["user"]["advice"]
    cohort = next(line for line in advice if line.startswith("a cohort of")).split()[3].replace(",", "")
    enough = tiny_config(tiny_data, "privacy.mode=user", "federation.rounds=1", f"federation.cohort={cohort}")
    assert plan_run(enough, users=100_000, items=100)["layers"]["user"]["noise_to_signal"] <= 1


@pytest.mark.parametrize("mode", ["none", "both"])
def test_one_multiplier_prices_one_unit(tiny_data: Path, mode: str) -> None:
    with pytest.raises(ConfigError, match="--privacy event or user"):
        plan_run(tiny_config(tiny_data, f"privacy.mode={mode}"), multiplier=1.0)


def test_the_command_prints_a_table_and_one_object(
    tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [option for option in tiny_options(tiny_data, tmp_path)[1:] if option not in ("--out", str(tmp_path))]
    assert invoke("plan", *options, "--privacy", "user", "--json") == 0
    assert json.loads(capsys.readouterr().out)["layers"]["user"]["epsilon"] == pytest.approx(8, rel=1e-6)
    assert invoke("plan", *options, "--privacy", "user") == 0
    printed = capsys.readouterr().out
    assert "epsilon 8.000" in printed
    assert "What would help" in printed
    assert invoke("plan", *options, "--privacy", "none") == 0
    assert "No privacy" in capsys.readouterr().out
    assert invoke("plan", *options, "--privacy", "everything") != 0
