"""Searches that read int8 rows: never further off than they say, and exact in the end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client import retrieval
from client.retrieval import NARROW, IntegerRows, Quantised, Scan, largest

Floats = NDArray[np.float32]


def drawn(seed: int, count: int, width: int) -> tuple[Floats, Floats]:
    """Rows whose columns differ a thousandfold, some of them 0, and a query."""
    generator = np.random.default_rng(seed)
    scale = 10.0 ** generator.uniform(-2, 1, width) * generator.integers(0, 2, width)
    rows = (generator.standard_normal((count, width)) * scale).astype(np.float32)
    return rows, generator.standard_normal(width).astype(np.float32)


def true_best(rows: Floats, query: Floats, count: int) -> list[int]:
    return np.argsort(-(rows @ query), kind="stable")[:count].tolist()


def test_a_row_and_a_query_by_hand() -> None:
    """Columns reach 2 and 254, so they count in steps of 2/127 and 2; the query in steps of 1."""
    rows = np.array([[2.0, 0.0], [-1.0, 254.0]], dtype=np.float32)
    quantised = Quantised(rows)
    assert quantised.codes.tolist() == [[127, 0], [-64, 127]]
    np.testing.assert_allclose(quantised.scale, [2 / 127, 2.0], rtol=1e-6)
    asked, step, bound = quantised.asked(np.array([0.0, 63.5], dtype=np.float32))
    assert asked.tolist() == [[0, 127]]
    assert step == pytest.approx(1.0)
    assert bound == pytest.approx(0.5 * 127, rel=1e-6)  # |u| is 1/2, where -63.5 became -64; z' is (0, 127)
    assert IntegerRows(quantised.codes).products(asked, 2.0).tolist() == [0, 2 * 127 * 127]


@pytest.mark.parametrize("width", [1, NARROW, NARROW + 1, 900])
@pytest.mark.parametrize("count", [0, 1, 1_003])
def test_integer_products_are_exact(count: int, width: int) -> None:
    generator = np.random.default_rng(0)
    codes = generator.integers(-127, 128, (count, width), dtype=np.int8)
    asked = generator.integers(-127, 128, (1, width), dtype=np.int8)
    rows = IntegerRows(codes)
    found = rows.products(asked, 1.0)
    assert found.dtype == np.float32
    assert found.tolist() == (codes.astype(np.int64) @ asked[0].astype(np.int64)).tolist()
    assert codes.nbytes <= rows.bytes <= 2.2 * count * max(width, 64) + 100


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 40))
def test_estimates_are_as_near_as_they_say(seed: int, count: int, width: int) -> None:
    rows, query = drawn(seed, count, width)
    found, bound = Scan(rows).estimates(query)
    true = rows.astype(np.float64) @ query.astype(np.float64)
    assert np.abs(found - true).max() <= bound + 1e-5 * max(1.0, float(np.abs(true).max()))


@pytest.mark.parametrize("integers", [True, False], ids=["int8", "float32"])
@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.integers(1, 40), st.integers(0, 320))
def test_the_best_are_those_of_all_products(integers: bool, seed: int, count: int, width: int, wanted: int) -> None:
    rows, query = drawn(seed, count, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "integer_products", lambda: integers)
        scan = Scan(rows)
    assert (scan.bytes > 0) == integers
    found = scan.best(query, wanted)
    assert found.dtype == np.int64
    values = rows @ query
    assert len(found) == len(set(found.tolist())) == min(wanted, count)
    np.testing.assert_allclose(values[found], values[true_best(rows, query, wanted)], rtol=1e-5, atol=1e-5)


def test_rows_that_differ_less_than_int8_can_tell_are_told_apart() -> None:
    generator = np.random.default_rng(1)
    rows = np.ones((5_000, 16), dtype=np.float32)
    rows += 1e-4 * generator.standard_normal(rows.shape, dtype=np.float32)
    query = np.ones(16, dtype=np.float32)
    exact = rows.astype(np.float64).sum(axis=1)
    assert len(np.unique(Quantised(rows).codes, axis=0)) < 20
    assert exact[Scan(rows).best(query, 10)].min() >= np.sort(exact)[-10] - 1e-5


def test_equal_rows_come_in_their_order() -> None:
    rows = np.tile(np.eye(4, dtype=np.float32), (50, 1))
    assert Scan(rows).best(np.array([0, 0, 1, 0], dtype=np.float32), 5).tolist() == [2, 6, 10, 14, 18]


def test_a_query_of_nothing_finds_the_first() -> None:
    assert Scan(np.ones((9, 3), dtype=np.float32)).best(np.zeros(3, dtype=np.float32), 2).tolist() == [0, 1]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.sampled_from([10, 70_000]), st.integers(0, 400), st.booleans())
def test_the_largest_of_many(seed: int, size: int, count: int, tied: bool) -> None:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(size, dtype=np.float32)
    if tied:
        values = np.round(values)
    values[generator.integers(0, size, size // 3)] = -np.inf
    found = largest(values, count)
    assert len(set(found.tolist())) == len(found) == min(count, size)
    assert np.sort(values[found]).tolist() == np.sort(values)[size - len(found) :].tolist()
