"""Cells: reading a small part of the rows finds nearly all of the best, and where it would not, all are read."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from numpy.typing import NDArray

from client import cells
from client.cells import Cells, nearest, open_index
from client.retrieval import Scan
from shared.errors import ConfigError

WIDTH = 8


def in_groups(count: int, *, groups: int = 300, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors around as many centres."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((groups, WIDTH), dtype=np.float32)
    rows = centres[generator.integers(0, groups, count)]
    rows = rows + 0.1 * generator.standard_normal(rows.shape, dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def grouped() -> tuple[NDArray[np.float32], Cells]:
    rows = in_groups(30_000)
    return rows, Cells(rows)


def test_it_finds_most_of_the_best_in_a_part_of_the_rows(grouped: tuple[NDArray[np.float32], Cells]) -> None:
    rows, found = grouped
    assert found.share <= 0.1
    assert found.recall >= 0.98
    shares = []
    for query in in_groups(40, seed=0):
        true = np.argsort(-(rows @ query), kind="stable")[:50]
        best = found.best(query, 50)
        assert (np.diff(rows[best] @ query) <= 1e-6).all()
        shares.append(np.isin(best, true).mean())
    assert np.mean(shares) > 0.9


def test_every_row_is_in_one_cell(grouped: tuple[NDArray[np.float32], Cells]) -> None:
    rows, found = grouped
    assert np.sort(found.best(rows[0], len(rows))).tolist() == list(range(len(rows)))


def test_what_it_keeps_is_a_byte_an_entry_and_a_place_a_row(grouped: tuple[NDArray[np.float32], Cells]) -> None:
    rows, found = grouped
    assert rows.size + 8 * len(rows) < found.bytes < 12 * (rows.size + 8 * len(rows))


def test_few_rows_are_all_read_and_many_in_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = in_groups(20_000, groups=50)
    assert isinstance(open_index(rows), Scan)
    monkeypatch.setattr(cells, "SCANNED", 10_000)
    assert isinstance(open_index(rows), Cells)


def test_rows_without_groups_are_all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "SCANNED", 1_000)
    rows = np.random.default_rng(0).standard_normal((20_000, 48), dtype=np.float32)
    assert Cells(rows).share == 1
    assert isinstance(open_index(rows), Scan)


def test_without_integer_products_all_are_read_and_the_log_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cells, "SCANNED", 10)
    monkeypatch.setattr(cells, "integer_products", lambda: False)
    cells._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert isinstance(open_index(in_groups(20)), Scan)
    with pytest.raises(ConfigError, match=r"install homerank\[large\]"):
        Cells(in_groups(20))
    assert [record.getMessage() for record in caplog.records] == [
        "found 20 items and no numkong; every ranking reads all of them. Install homerank[large]"
    ]


def test_nearest_centre_by_hand() -> None:
    centres = np.array([[0.0, 0.0], [4.0, 0.0]], dtype=np.float32)
    rows = np.array([[1.9, 5.0], [2.1, -5.0], [9.0, 0.0]], dtype=np.float32)
    assert nearest(rows, centres).tolist() == [0, 1, 1]
