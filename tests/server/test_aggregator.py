"""The sum that is released: each reply counts once, within the clip, and the noise is what was asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from server.aggregation import Aggregator, mean_of, noise_generator
from server.correlated import Correlation
from shared.adapter import AdapterState
from shared.errors import AdapterError, ConfigError

SHAPES: dict[str, tuple[int, ...]] = {"a": (2,), "b": (1, 1)}


def reply(*values: float) -> AdapterState:
    packed = np.array(values, dtype=np.float32)
    return AdapterState.unpack(packed, SHAPES)


def total(replies: list[AdapterState], *, bound: float = math.inf) -> np.ndarray:
    found = Aggregator(SHAPES, bound=bound).add_up(replies)
    assert found is not None
    return found


#: The table of `Aggregator`.
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ((3.0, 0.0, 0.0), (3.0, 0.0, 0.0)),  # within the clip: itself
        ((3.0, 4.0, 0.0), (3.0, 4.0, 0.0)),  # on the clip
        ((6.0, 0.0, 8.0), (3.0, 0.0, 4.0)),  # norm 10: scaled by 5 / 10
        ((3e38, 0.0, 0.0), (5.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    ],
)
def test_the_table_of_contributions(values: tuple[float, ...], expected: tuple[float, ...]) -> None:
    found = Aggregator(SHAPES, bound=5.0).contribution(reply(*values))
    assert found.dtype == np.float64
    assert found == pytest.approx(np.array(expected), rel=1e-6)
    assert np.linalg.norm(found) <= 5.0 * (1 + 1e-12)


@pytest.mark.parametrize(
    "odd",
    [
        AdapterState({"a": np.ones(2), "c": np.ones((1, 1))}),
        AdapterState({"a": np.ones(2)}),
        AdapterState({"a": np.ones(1), "b": np.ones((1, 1))}),
        AdapterState({"a": np.ones(2), "b": np.ones(1)}),
        AdapterState({"a": np.ones(2), "b": np.ones((1, 1)), "c": np.ones(1)}),
    ],
)
def test_a_reply_of_another_form_is_refused(odd: AdapterState) -> None:
    for replies in ([odd], [reply(1, 2, 3), odd]):
        with pytest.raises(AdapterError, match="other names or shapes"):
            total(replies)


@pytest.mark.parametrize(
    ("bound", "std"),
    [(0.0, 1.0), (-1.0, 1.0), (math.nan, 1.0), (1.0, -1.0), (1.0, math.inf), (1.0, math.nan)],
)
def test_a_clip_or_noise_that_means_nothing_is_refused(bound: float, std: float) -> None:
    with pytest.raises(ConfigError, match="expected a positive clip and finite noise"):
        Aggregator(SHAPES, bound=bound, noise_std=std)


def test_no_reply_is_no_sum() -> None:
    assert Aggregator(SHAPES, bound=1.0, noise_std=1.0).add_up([]) is None


entries = st.floats(-1e6, 1e6, width=32)
replies_of = st.builds(reply, entries, entries, entries)


@settings(max_examples=200)
@given(st.lists(replies_of, max_size=5), replies_of, st.integers(0, 5), st.floats(1e-3, 1e3))
def test_no_single_reply_moves_the_sum_by_more_than_the_clip(
    others: list[AdapterState], one: AdapterState, place: int, bound: float
) -> None:
    """Whatever it says and wherever it arrives, next to anything; also where it is the only reply."""
    with_it = total([*others[:place], one, *others[place:]], bound=bound)
    without = total(others, bound=bound) if others else np.zeros(3)
    assert np.linalg.norm(with_it - without) <= bound * (1 + 1e-9) + 1e-12 * bound * len(others)


@given(st.lists(replies_of, min_size=1, max_size=6), st.randoms())
def test_every_reply_has_the_same_weight(replies: list[AdapterState], chance: object) -> None:
    """The sum is that of the contributions, in any order: no reply has a say in its own weight."""
    aggregator = Aggregator(SHAPES, bound=2.0)
    parts = [aggregator.contribution(one) for one in replies]
    mixed = list(replies)
    chance.shuffle(mixed)  # type: ignore[attr-defined]
    assert total(replies, bound=2.0) == pytest.approx(np.sum(parts, axis=0), abs=1e-12)
    assert total(mixed, bound=2.0) == pytest.approx(np.sum(parts, axis=0), abs=1e-9)


def test_the_sum_is_accumulated_in_float64() -> None:
    """A million and a thousand thousandths: float32 would lose each of them."""
    found = total([reply(1e6, 0, 0), *[reply(1e-3, 0, 0)] * 1000])
    assert found.dtype == np.float64
    assert found[0] == pytest.approx(1e6 + 1.0, abs=1e-4)


def test_noise_is_gaussian_of_the_asked_size_and_in_every_entry_its_own() -> None:
    size = 40_000
    shapes = {"w": (size,)}
    aggregator = Aggregator(shapes, bound=1.0, noise_std=2.5)
    released = aggregator.release(np.full(size, 7.0), np.random.default_rng(3)).arrays["w"]
    draws = (released.astype(np.float64) - 7.0) / 2.5
    assert 0.001 < stats.chi2.cdf(float((draws**2).sum()), size) < 0.999
    assert stats.kstest(draws, "norm").pvalue > 0.001
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 5 / math.sqrt(size)
    assert len(np.unique(released)) > 0.95 * size


def test_without_noise_the_sum_is_released_as_it_is() -> None:
    released = Aggregator(SHAPES).release(np.array([1.0, 2.0, 3.0]), np.random.default_rng(0))
    assert released == reply(1, 2, 3)


def test_noise_does_not_depend_on_who_answered() -> None:
    """Fixed denominator, fixed noise: one reply of eight planned gets the noise of eight."""
    aggregator = Aggregator(SHAPES, bound=1.0, noise_std=4.0)
    for count in (1, 8):
        replies = [reply(0, 0, 0)] * count
        found = aggregator.release(total(replies), np.random.default_rng(5))
        noise = mean_of(found, planned=8).pack()
        assert noise == pytest.approx(np.random.default_rng(5).standard_normal(3) * 4.0 / 8, rel=1e-5)


def test_the_noise_of_one_round_may_follow_from_those_before() -> None:
    shapes = {"w": (50,)}
    correlation = Correlation(3)
    aggregator = Aggregator(shapes, bound=1.0, noise_std=2.0, correlation=correlation)
    found = [aggregator.release(np.zeros(50), np.random.default_rng(n)).pack() for n in range(2)]
    twin = Correlation(3)
    white = [np.random.default_rng(n).standard_normal(50) for n in range(2)]
    assert found[0] == pytest.approx(2.0 * twin.colour(white[0]), rel=1e-5)
    assert found[1] == pytest.approx(2.0 * twin.colour(white[1]), rel=1e-5)


def test_a_simulation_repeats_the_noise_of_one_question_and_of_no_other() -> None:
    def draw(seed: int | None, question: bytes) -> list[float]:
        return noise_generator(seed, question).standard_normal(4).tolist()

    assert draw(1, b"round 3") == draw(1, b"round 3")
    assert len({str(draw(*way)) for way in [(1, b"round 3"), (1, b"round 4"), (2, b"round 3")]}) == 3
    assert draw(None, b"round 3") != draw(None, b"round 3")  # from the operating system
    assert noise_generator(2**63 - 1, b"").standard_normal(1).size == 1


@given(st.integers(1, 1000))
def test_the_mean_is_over_the_planned_cohort(planned: int) -> None:
    assert mean_of(reply(2, 4, 8), planned=planned).pack() == pytest.approx(np.array([2, 4, 8]) / planned, rel=1e-6)
