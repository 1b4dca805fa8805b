"""Correlated noise is what its matrix says, and costs what its formal guarantee says."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.correlated import Correlation, band_coefficients

ROUNDS = 9


def matrix(bands: int, *, rounds: int = ROUNDS) -> np.ndarray:
    """The lower triangular Toeplitz matrix C, written out; (rounds, rounds)."""
    coefficients = band_coefficients(bands)
    found = np.zeros((rounds, rounds))
    for row in range(rounds):
        for column in range(max(0, row - bands + 1), row + 1):
            found[row, column] = coefficients[row - column]
    return found


def noises(bands: int, white: np.ndarray) -> np.ndarray:
    """What `colour` makes of white noise, one row a round; (rounds, d)."""
    correlation = Correlation(bands)
    return np.stack([correlation.colour(row) for row in white])


def test_the_coefficients_by_hand() -> None:
    assert band_coefficients(1).tolist() == [1.0]
    assert band_coefficients(4) == pytest.approx([1.0, 1 / 2, 3 / 8, 5 / 16])


def test_all_bands_together_are_the_square_root_of_the_prefix_sum() -> None:
    whole = matrix(ROUNDS)
    assert whole @ whole == pytest.approx(np.tril(np.ones((ROUNDS, ROUNDS))))


@pytest.mark.parametrize("bands", [1, 2, 4, ROUNDS, 20])
def test_the_noise_is_the_inverse_of_the_matrix_times_white_noise(bands: int) -> None:
    white = np.random.default_rng(bands).normal(size=(ROUNDS, 5))
    expected = np.linalg.solve(matrix(bands), white) * Correlation(bands).factor
    assert noises(bands, white) == pytest.approx(expected)


def test_one_band_is_independent_noise_and_remembers_nothing() -> None:
    white = np.random.default_rng(0).normal(size=(3, 4))
    correlation = Correlation(1)
    assert correlation.factor == 1.0
    for row in white:
        assert np.array_equal(correlation.colour(row), row)
        assert correlation.past == []


@pytest.mark.parametrize("bands", [2, 3, 5])
def test_only_the_last_noises_are_kept_and_they_are_all_that_matters(bands: int) -> None:
    white = np.random.default_rng(1).normal(size=(ROUNDS, 4))
    whole = noises(bands, white)
    for stop in range(ROUNDS):
        first = Correlation(bands)
        for row in white[:stop]:
            first.colour(row)
        assert len(first.past) == min(stop, bands - 1)
        resumed = Correlation(bands, [past.copy() for past in first.past])
        rest = [resumed.colour(row) for row in white[stop:]]
        assert np.array_equal(np.stack(rest), whole[stop:])


def patterns(rounds: int, *, apart: int, most: int) -> list[tuple[int, ...]]:
    """All sets of at most `most` rounds of which any two are at least `apart` apart."""
    return [
        chosen
        for count in range(1, most + 1)
        for chosen in combinations(range(rounds), count)
        if all(later - earlier >= apart for earlier, later in pairwise(chosen))
    ]


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_sensitivity_over_every_way_to_take_part_is_that_of_the_guarantee(bands: int, most: int) -> None:
    """A device that joins rounds R with vectors of norm at most 1 moves C x by || sum_t C[:, t] x_t ||.

    Its largest value is that of one direction for all vectors, as no entry of C is negative.
    """
    encoder = matrix(bands)
    stated = math.sqrt(most * float(np.sum(band_coefficients(bands) ** 2)))
    moves = [
        float(np.linalg.norm(encoder[:, list(chosen)].sum(axis=1)))
        for chosen in patterns(ROUNDS, apart=bands, most=most)
    ]
    assert max(moves) <= stated * (1 + 1e-12)
    if (most - 1) * bands + bands <= ROUNDS:  # all columns fit in whole
        assert max(moves) == pytest.approx(stated)


@given(seed=st.integers(0, 10**6), bands=st.integers(1, 4))
def test_vectors_in_any_direction_move_it_by_no_more(seed: int, bands: int) -> None:
    generator = np.random.default_rng(seed)
    ways = patterns(ROUNDS, apart=bands, most=3)
    chosen = ways[int(generator.integers(len(ways)))]
    taken = np.zeros((ROUNDS, 3))
    for number in chosen:
        vector = generator.normal(size=3)
        taken[number] = vector / np.linalg.norm(vector)
    moved = float(np.linalg.norm(matrix(bands) @ taken))
    assert moved <= math.sqrt(len(chosen)) * Correlation(bands).factor * (1 + 1e-9)


def test_coming_back_too_soon_would_cost_more_than_is_charged() -> None:
    """Why the plan refuses more bands than a device stays away: two adjacent rounds break the guarantee."""
    encoder = matrix(3)
    assert np.linalg.norm(encoder[:, [0, 1]].sum(axis=1)) > 1.2 * math.sqrt(2) * Correlation(3).factor


def test_at_equal_privacy_the_sum_of_many_rounds_carries_far_less_noise() -> None:
    """Independent noise in a sum of 64 rounds has variance 64; here most of it cancels."""
    rounds, bands = 64, 16
    decoder = np.tril(np.ones((rounds, rounds)))
    variance = np.sum((decoder @ np.linalg.inv(matrix(bands, rounds=rounds))) ** 2, axis=1)
    variance *= Correlation(bands).factor ** 2
    assert variance[-1] < 64 / 4
    assert variance.mean() < 32 / 3
    white = np.random.default_rng(2).normal(size=(rounds, 4000))
    measured = noises(bands, white).sum(axis=0).var()
    assert measured == pytest.approx(variance[-1], rel=0.1)
