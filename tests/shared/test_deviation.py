"""The spread of products that are not computed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.deviation import Deviation


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.integers(1, 6), st.floats(-100, 100))
def test_it_is_that_of_all_products(seed: int, count: int, width: int, shift: float) -> None:
    generator = np.random.default_rng(seed)
    rows = (generator.standard_normal((count, width)) + shift).astype(np.float32)
    weights = generator.standard_normal(width).astype(np.float32)
    products = rows.astype(np.float64) @ weights.astype(np.float64)
    assert Deviation(rows)(weights) == pytest.approx(products.std(ddof=1), rel=1e-4, abs=1e-4)


def test_many_rows_and_by_hand() -> None:
    """-1 and 1 alternate in the first column: their variance is N / (N - 1); the second is constant."""
    rows = np.ones((25_000, 2), dtype=np.float32)
    rows[::2, 0] = -1
    assert Deviation(rows)(np.array([3.0, 7.0])) == pytest.approx(3 * (25_000 / 24_999) ** 0.5, rel=1e-9)
    assert Deviation(rows)(np.array([0.0, 7.0])) == 0
    assert Deviation(rows[:1])(np.array([1.0, 1.0])) == 0
