"""Tags and years as arrays, against values counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from client.tags import TagTable, item_years
from shared.catalogue import Catalogue
from shared.errors import CatalogueError
from shared.schema import Item


def shelf(*rows: tuple[str, tuple[str, ...]]) -> Catalogue:
    return Catalogue(tuple(Item(str(n), title, title, tags=tags) for n, (title, tags) in enumerate(rows)))


FILMS = shelf(
    ("Heat (1995)", ("Crime", "Drama")), ("Jaws", ("1970s",)), ("Plain", ()), ("1984 (1956)", ("drama", "Drama"))
)
TABLE = TagTable.of_catalogue(FILMS)


def test_tags_count_once_whatever_their_capitals() -> None:
    assert TABLE.names == ("1970s", "Crime", "Drama")
    assert TABLE.of_item(3).tolist() == [2]
    assert TABLE.shares(np.arange(4)).tolist() == [[0, 0.5, 0.5], [1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert TABLE.with_any([TABLE.index("DRAMA")]).tolist() == [True, False, False, True]


def test_a_distribution_is_a_weighted_mean_over_items_that_have_tags() -> None:
    assert TABLE.distribution(np.array([0, 2, 3])) == pytest.approx([0, 0.25, 0.75])
    assert TABLE.distribution(np.array([0, 1]), [3.0, 1.0]) == pytest.approx([0.25, 0.375, 0.375])
    assert TABLE.distribution(np.array([0, 0])) == pytest.approx([0, 0.5, 0.5])
    assert TABLE.distribution(np.array([2])).tolist() == [0, 0, 0]


def test_sums_add_a_value_per_tag() -> None:
    assert TABLE.sums([1.0, 10.0, 100.0]).tolist() == [110, 1, 0, 100]


def test_an_unknown_tag_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(CatalogueError, match="did you mean 'Drama'"):
        TABLE.index("Dramma")


def test_years_come_from_the_title_first_then_from_tags() -> None:
    assert item_years(FILMS).tolist()[:2] == [1995, 1970]
    assert np.isnan(item_years(FILMS)[2])
    assert item_years(FILMS)[3] == 1956


def test_a_catalogue_without_tags_has_an_empty_table() -> None:
    table = TagTable.of_catalogue(shelf(("A", ()), ("B", ())))
    assert table.names == ()
    assert table.shares(np.arange(2)).shape == (2, 0)
    assert table.distribution(np.arange(2)).shape == (0,)
    assert table.sums([]).tolist() == [0, 0]
