"""How much noise each side adds, and which plans are refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ProtocolError
from shared.noise import Noise
from shared.privacy.accounting import Release

PLAN: dict[str, Any] = {"mode": "event", "trust": "aggregate", "multiplier": 3.0, "clip": 0.5, "quorum": 9}


def plan(**changes: Any) -> Noise:
    return Noise(**{**PLAN, **changes})


@pytest.mark.parametrize(
    ("changes", "share", "of_the_sum"),
    [
        ({"trust": "local"}, 3.0, 3.0 * 0.5 * 4),  # z C sqrt(n), n = 16
        ({}, 1.0, 1.0 * 0.5 * 4),  # z C sqrt(n / quorum)
        ({"mode": "none", "multiplier": 0.0}, 0.0, 0.0),
        ({"mode": "none"}, 0.0, 0.0),  # without privacy nobody adds any
    ],
)
def test_the_shares_of_the_table(changes: dict[str, Any], share: float, of_the_sum: float) -> None:
    noise = plan(**changes)
    assert noise.share == share
    assert noise.std_of_sum(16) == pytest.approx(of_the_sum)


@given(quorum=st.integers(1, 10_000), more=st.integers(0, 10_000), z=st.floats(0.01, 1e4), clip=st.floats(1e-3, 1e3))
def test_once_the_quorum_is_met_the_sum_carries_all_of_the_noise(quorum: int, more: int, z: float, clip: float) -> None:
    noise = plan(multiplier=z, clip=clip, quorum=quorum)
    assert noise.std_of_sum(quorum + more) >= z * clip * (1 - 1e-9)
    assert noise.std_of_sum(quorum) == pytest.approx(z * clip)
    assert plan(trust="local", multiplier=z, clip=clip, quorum=quorum).std_of_sum(1) == pytest.approx(z * clip)


def test_shares_that_are_drawn_really_add_up() -> None:
    noise = plan()
    generator = np.random.default_rng(0)
    total = sum(generator.normal(0, noise.share * noise.clip, 20_000) for _ in range(12))
    assert np.std(total) == pytest.approx(noise.std_of_sum(12), rel=0.02)


def test_the_ledger_writes_down_the_protected_quantity_and_not_the_share() -> None:
    assert plan().release("train", sample_rate=0.5, steps=2) == Release("train", 3.0, 0.5, 2)
    assert plan(trust="local").release("validate") == Release("validate", 3.0)


def test_a_plan_survives_its_way_through_a_manifest() -> None:
    assert Noise.from_dict(json.loads(json.dumps(plan().to_dict()))) == plan()
    unprotected = plan(mode="none", multiplier=0.0, clip=math.inf)
    assert Noise.from_dict(unprotected.to_dict()) == unprotected


@pytest.mark.parametrize(
    "values",
    [
        None,
        "noise",
        [],
        {},
        {name: value for name, value in PLAN.items() if name != "quorum"},
        {**PLAN, "mode": "user"},
        {**PLAN, "mode": None},
        {**PLAN, "trust": "nobody"},
        {**PLAN, "multiplier": 0.0},
        {**PLAN, "multiplier": -3.0},
        {**PLAN, "multiplier": math.inf},
        {**PLAN, "multiplier": math.nan},
        {**PLAN, "multiplier": "many"},
        {**PLAN, "clip": 0.0},
        {**PLAN, "clip": -1.0},
        {**PLAN, "clip": math.inf},
        {**PLAN, "clip": math.nan},
        {**PLAN, "quorum": 0},
        {**PLAN, "quorum": -4},
        {**PLAN, "quorum": math.inf},
        {**PLAN, "quorum": math.nan},
        {**PLAN, "multiplier": 10**400},
    ],
    ids=str,
)
def test_a_plan_that_means_less_noise_than_it_says_is_refused(values: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        Noise.from_dict(values)
    assert caught.value.code == "bad-message"
