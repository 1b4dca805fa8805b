"""One conformance suite for every aggregation rule, and what sets them apart."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.aggregation import Aggregator, mean_of, trained_names
from shared.adapter import AdapterState
from shared.config_rules import AGGREGATIONS
from shared.errors import AdapterError, ConfigError

#: Shapes of a model that has every kind of parameter: LoRA pairs, low-rank projections, single matrices.
SHAPES = {
    "encoder.0.query.lora_A.weight": (2, 6),
    "encoder.0.query.lora_B.weight": (6, 2),
    "input.low.0.weight": (3, 6),
    "input.low.1.weight": (6, 3),
    "output.0.weight": (4, 6),
    "output.0.bias": (4,),
    "output.1.weight": (5, 4),
    "gamma.weight": (1,),
    "input.kind.weight": (6, 6),
}
FIRST = {"encoder.0.query.lora_A.weight", "input.low.0.weight", "output.0.weight", "output.0.bias"}
SECOND = {"encoder.0.query.lora_B.weight", "input.low.1.weight", "output.1.weight"}
ALONE = {"gamma.weight", "input.kind.weight"}
FULL_OUTPUT = {name: shape for name, shape in SHAPES.items() if name != "output.1.weight"}


def state(seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> AdapterState:
    generator = np.random.default_rng(seed)
    return AdapterState({name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


def updates(rule: str, *, round_number: int, count: int) -> list[AdapterState]:
    """What `count` devices reply in a round under a rule."""
    names = trained_names(rule, round_number=round_number, names=list(SHAPES))
    return [state(seed).select(names) for seed in range(count)]


def mean(replies: Iterable[AdapterState], *, planned: int) -> AdapterState:
    """The mean that a round of at least one reply releases, without noise."""
    first, *others = replies
    aggregator = Aggregator(first.shapes)
    total = aggregator.add_up(iter([first, *others]))
    assert total is not None
    return mean_of(aggregator.release(total, np.random.default_rng(0)), planned=planned)


# --- what every rule must do -------------------------------------------------------------------------------

every_rule = pytest.mark.parametrize("rule", AGGREGATIONS)
both_parities = pytest.mark.parametrize("round_number", [1, 2])


@every_rule
@both_parities
def test_the_order_of_replies_does_not_matter(rule: str, round_number: int) -> None:
    replies = updates(rule, round_number=round_number, count=7)
    shuffled = [replies[row] for row in np.random.default_rng(0).permutation(7)]
    first, second = mean(replies, planned=7), mean(shuffled, planned=7)
    assert np.allclose(first.pack(), second.pack(), rtol=1e-6, atol=1e-7)


@every_rule
@both_parities
def test_identical_replies_give_that_reply(rule: str, round_number: int) -> None:
    reply = updates(rule, round_number=round_number, count=1)[0]
    assert np.allclose(mean([reply] * 5, planned=5).pack(), reply.pack(), rtol=1e-6, atol=0)
    assert mean([reply], planned=1) == reply


@every_rule
@both_parities
def test_missing_replies_count_as_zero(rule: str, round_number: int) -> None:
    replies = updates(rule, round_number=round_number, count=3)
    total = replies[0] + replies[1] + replies[2]
    assert np.allclose(mean(replies, planned=10).pack(), total.pack() / 10, rtol=1e-5, atol=1e-7)


@every_rule
@both_parities
def test_another_shape_or_name_is_refused(rule: str, round_number: int) -> None:
    reply = updates(rule, round_number=round_number, count=1)[0]
    name = next(iter(reply))
    array = reply.arrays[name]
    broadcastable = AdapterState({**reply.arrays, name: array[:1]})
    renamed = AdapterState({"other" if key == name else key: value for key, value in reply.arrays.items()})
    missing = reply.select([key for key in reply if key != name])
    flat = AdapterState({**reply.arrays, name: array.reshape(-1, 1)})
    for odd in (broadcastable, renamed, missing, flat):
        for pair in ([reply, odd], [odd, reply]):
            if odd.shapes != reply.shapes:
                with pytest.raises(AdapterError, match="other names or shapes"):
                    Aggregator(reply.shapes).add_up(pair)


@every_rule
def test_no_reply_is_no_update_and_nobody_planned_is_refused(rule: str) -> None:
    replies = updates(rule, round_number=1, count=3)
    assert Aggregator(replies[0].shapes).add_up([]) is None
    with pytest.raises(AdapterError, match="found a planned cohort of 0"):
        mean(replies, planned=0)


@every_rule
@both_parities
def test_a_larger_poisson_cohort_still_divides_by_the_planned_number(rule: str, round_number: int) -> None:
    replies = updates(rule, round_number=round_number, count=4)
    total = replies[0] + replies[1] + replies[2] + replies[3]
    assert np.allclose(mean(replies, planned=2).pack(), total.pack() / 2, rtol=1e-5, atol=1e-6)


def test_a_sum_is_accumulated_in_double_precision() -> None:
    """In float32, 1e8 + 1 is 1e8; the small parts must not be lost on the way."""
    parts = [AdapterState({"w": np.array([value], dtype=np.float32)}) for value in (1e8, *[1.0] * 100, -1e8)]
    total = Aggregator({"w": (1,)}).add_up(parts)
    assert total is not None
    assert total.tolist() == [100.0]


@every_rule
def test_the_mean_is_float32_and_replies_are_not_changed(rule: str) -> None:
    replies = updates(rule, round_number=1, count=3)
    before = [reply.pack().copy() for reply in replies]
    found = mean(iter(replies), planned=3)
    assert all(array.dtype == np.float32 for array in found.arrays.values())
    assert all(np.array_equal(reply.pack(), kept) for reply, kept in zip(replies, before, strict=True))


@every_rule
def test_every_parameter_trains_within_two_rounds_but_a_frozen_first_factor(rule: str) -> None:
    trained = {name for number in (1, 2) for name in trained_names(rule, round_number=number, names=list(SHAPES))}
    assert trained == set(SHAPES) - (FIRST if rule == "ffa" else set())


@every_rule
def test_names_come_sorted_whatever_their_order(rule: str) -> None:
    names = trained_names(rule, round_number=3, names=list(SHAPES)[::-1])
    assert list(names) == sorted(names)
    assert names == trained_names(rule, round_number=3, names=list(SHAPES))


@every_rule
@both_parities
def test_a_full_output_matrix_always_trains(rule: str, round_number: int) -> None:
    assert "output.0.weight" in trained_names(rule, round_number=round_number, names=list(FULL_OUTPUT))


@given(
    values=st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3), min_size=1, max_size=6),
    extra=st.integers(0, 4),
)
def test_the_mean_is_the_sum_over_the_planned_number(values: list[list[float]], extra: int) -> None:
    replies = [AdapterState({"w": np.array(row, dtype=np.float32)}) for row in values]
    planned = len(values) + extra
    expected = np.array(values, dtype=np.float32).astype(np.float64).sum(0) / planned
    assert np.allclose(mean(replies, planned=planned).arrays["w"], expected, rtol=1e-6, atol=1e-6)


# --- what sets them apart ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "odd", "even"),
    [
        ("alternate", SECOND | ALONE, FIRST | ALONE),
        ("ffa", SECOND | ALONE, SECOND | ALONE),
        ("fedit", FIRST | SECOND | ALONE, FIRST | SECOND | ALONE),
    ],
)
def test_which_parameters_train_in_which_round(rule: str, odd: set[str], even: set[str]) -> None:
    for number in (1, 3, 9):
        assert set(trained_names(rule, round_number=number, names=list(SHAPES))) == odd
    for number in (2, 4, 10):
        assert set(trained_names(rule, round_number=number, names=list(SHAPES))) == even


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="found aggregation rule 'fedavg'; expected alternate, ffa or fedit"):
        trained_names("fedavg", round_number=1, names=list(SHAPES))


@pytest.mark.parametrize(("rule", "exact"), [("alternate", True), ("ffa", True), ("fedit", False)])
@both_parities
def test_the_product_of_the_means_is_the_mean_of_the_products(rule: str, exact: bool, round_number: int) -> None:
    """Devices end with B_i A_i; only when one factor is the same for all does averaging factors average products."""
    a, b = "encoder.0.query.lora_A.weight", "encoder.0.query.lora_B.weight"
    start = state(99)
    replies = updates(rule, round_number=round_number, count=5)
    merged = start.replace(start.select(list(replies[0])) + mean(replies, planned=5))
    wanted = start.arrays[b] @ start.arrays[a]
    ends = [start.replace(start.select(list(reply)) + reply) for reply in replies]
    products = np.mean([end.arrays[b] @ end.arrays[a] for end in ends], axis=0)
    error = np.abs(merged.arrays[b] @ merged.arrays[a] - products).max()
    moved = np.abs(products - wanted).max()
    assert moved > 0.1
    if exact:
        assert error < 1e-5 * moved
    else:
        assert error > 0.05 * moved
