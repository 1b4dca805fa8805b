"""The prior on the server: groups and turns, cross-fitting, one file that a checkpoint rests on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.prior import FILE, TURN, Priors, groups_of, round_of, split, turn_of
from shared.adapter import AdapterState
from shared.artifacts import save_arrays
from shared.config import Config, merge
from shared.errors import RunError
from shared.layout import MOMENTS, PriorLayout
from shared.prior import solve_prior


def settings(**sections: Any) -> Config:
    return merge(Config(), {"prior": {"half_lives": [2.0], "widths": [8], "folds": 2}, **sections})


# --- groups and turns --------------------------------------------------------------------------------------


def test_the_same_device_is_always_in_the_same_group() -> None:
    three = merge(settings(), {"prior": {"folds": 3}})
    assert groups_of(settings(), [8, 3, 4, 1]) == [[8, 4], [3, 1]]
    assert groups_of(three, range(1, 8)) == [[3, 6], [1, 4, 7], [2, 5]]
    late = groups_of(three, [2**63 + 1, *range(4)])
    for group, members in enumerate(groups_of(three, range(4))):
        assert set(members) <= set(late[group])


@pytest.mark.parametrize(
    "config",
    [
        merge(settings(), {"prior": {"folds": 1}}),
        merge(Config(), {"prior": {"half_lives": [], "folds": 4}}),
        settings(federation={"rounds": 0}),
    ],
    ids=["one fold", "no prior", "no training"],
)
def test_there_is_one_group_when_there_is_nothing_to_cross_fit(config: Config) -> None:
    assert groups_of(config, [5, 2, 9]) == [[5, 2, 9]]


def test_an_empty_group_makes_it_one() -> None:
    assert groups_of(settings(), [2, 4, 8]) == [[2, 4, 8]]


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_groups_take_turns_of_two_rounds_and_count_their_own(groups: int) -> None:
    turns = [turn_of(number, groups=groups) for number in range(1, 12 * groups + 1)]
    assert [group for group, _ in turns[: TURN * groups]] == [g for g in range(groups) for _ in range(TURN)]
    for group in range(groups):
        assert [time for asked, time in turns if asked == group] == list(range(1, 13))


# --- the matrices ------------------------------------------------------------------------------------------

LAYOUT = PriorLayout((1.0,), (6,), 4)


def sums_of(groups: int) -> list[AdapterState]:
    """Moments of as many groups as asked for."""
    generator = np.random.default_rng(3)
    found = []
    for _ in range(groups):
        before = generator.normal(size=(30, 6))
        triangle, products = (before.T @ before)[np.triu_indices(6)], before.T @ generator.normal(size=(30, 4))
        found.append(AdapterState(dict(zip(MOMENTS, (triangle, products), strict=True))))
    return found


def matrix_of(sums: list[AdapterState], **options: float) -> np.ndarray:
    total = sums[0]
    for other in sums[1:]:
        total = total + other
    return solve_prior(total.arrays[MOMENTS[0]], total.arrays[MOMENTS[1]], ridge=2.0, **options)


def test_each_group_trains_against_the_prior_of_the_others() -> None:
    sums = sums_of(3)
    priors = Priors.solve(sums, ridge=2.0, noise_stds=[0.0] * 3)
    np.testing.assert_allclose(priors.whole, matrix_of(sums), atol=1e-5)
    for group in range(3):
        others = [found for other, found in enumerate(sums) if other != group]
        np.testing.assert_allclose(priors.for_group(group), matrix_of(others), atol=1e-5)


@pytest.mark.parametrize("group", [0, 1])
def test_what_a_group_sends_has_no_part_in_its_own_prior(group: int) -> None:
    sums = sums_of(2)
    before = Priors.solve(sums, ridge=2.0, noise_stds=[0.0, 0.0])
    sums[group] = sums[group] * 100 + sums[1 - group]
    after = Priors.solve(sums, ridge=2.0, noise_stds=[0.0, 0.0])
    assert np.array_equal(after.for_group(group), before.for_group(group))
    assert not np.allclose(after.for_group(1 - group), before.for_group(1 - group))
    assert not np.allclose(after.whole, before.whole)


def test_one_group_trains_against_the_whole() -> None:
    priors = Priors.solve(sums_of(1), ridge=2.0, noise_stds=[0.0])
    assert priors.without == []
    assert priors.for_group(0) is priors.whole


def test_the_noise_of_several_sums_adds_up_by_its_squares() -> None:
    sums = sums_of(3)
    priors = Priors.solve(sums, ridge=2.0, noise_stds=[3.0, 4.0, 12.0])
    np.testing.assert_allclose(priors.whole, matrix_of(sums, noise_std=13.0), atol=1e-6)
    np.testing.assert_allclose(priors.for_group(2), matrix_of(sums[:2], noise_std=5.0), atol=1e-6)
    assert not np.allclose(priors.whole, matrix_of(sums))


# --- the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 3])
def test_priors_come_back_as_they_were_written(groups: int, tmp_path: Path) -> None:
    priors = Priors.solve(sums_of(groups), ridge=2.0, noise_stds=[0.0] * groups)
    digest = priors.save(tmp_path)
    again = Priors.load(tmp_path, digest=digest)
    assert np.array_equal(again.whole, priors.whole)
    assert len(again.without) == len(priors.without) == (groups if groups > 1 else 0)
    assert all(np.array_equal(one, other) for one, other in zip(again.without, priors.without, strict=True))
    assert priors.save(tmp_path) == digest


@pytest.mark.parametrize("how", ["another", "missing", "damaged", "of other names"])
def test_a_prior_that_is_not_the_checkpoints_is_refused(how: str, tmp_path: Path) -> None:
    priors = Priors.solve(sums_of(2), ridge=2.0, noise_stds=[0.0, 0.0])
    digest = priors.save(tmp_path)
    if how == "another":
        dataclasses.replace(priors, whole=priors.whole + 1e-3).save(tmp_path)
    elif how == "missing":
        (tmp_path / FILE).unlink()
    elif how == "damaged":
        (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-3])
    else:
        save_arrays(tmp_path / FILE, {"hole": priors.whole})
    with pytest.raises(RunError, match=r"found no usable prior .*start a new run in another folder"):
        Priors.load(tmp_path, digest=digest)


def test_a_device_stays_in_its_group_when_the_other_group_is_away() -> None:
    assert split([1, 2, 3, 4], 2) == [[2, 4], [1, 3]]
    assert [round_of(number, nodes=[1, 3], groups=2) for number in (1, 2, 3)] == [
        (1, 1, [1, 3]),
        (1, 2, [1, 3]),
        (1, 3, [1, 3]),
    ]
    assert [round_of(number, nodes=[1, 2, 3, 4], groups=2)[0] for number in range(1, 6)] == [0, 0, 1, 1, 0]
    whole, first, second = (np.full((2, 2), value, dtype=np.float32) for value in (0.0, 1.0, 2.0))
    priors = Priors(whole, [first, second])
    assert priors.groups == 2
    assert priors.for_group(1) is second
    assert Priors(whole).groups == 1
