"""Untrusted text is cleaned; a catalogue has each item once."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.catalogue import MAX_TEXT_CHARS, Catalogue, clean_text
from shared.errors import CatalogueError
from shared.schema import Item


def catalogue(*ids: str) -> Catalogue:
    return Catalogue.from_rows(Item(id=item_id, title=f"title {item_id}", text="") for item_id in ids)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("plain", "plain"),
        ("  two\n lines\t here ", "two lines here"),
        ("bidi\u202e control\u0007", "bidi control"),
        ("ﬁne ①", "fine 1"),
        ("private\ue000 use", "private use"),
        ("Amélie (2001)", "Amélie (2001)"),
        ("", ""),
    ],
)
def test_text_is_normalised(raw: str, clean: str) -> None:
    assert clean_text(raw) == clean


@given(st.text(max_size=300), st.integers(1, 80))
def test_clean_text_is_one_safe_line_and_stays_as_it_is(raw: str, limit: int) -> None:
    clean = clean_text(raw, limit=limit)
    assert len(clean) <= limit
    assert not any(unicodedata.category(ch) in ("Cc", "Cf", "Co", "Cs", "Cn") for ch in clean)
    assert clean_text(clean, limit=limit) == clean


def test_long_text_is_cut() -> None:
    assert len(clean_text("word " * 10_000)) <= MAX_TEXT_CHARS


def test_items_have_positions() -> None:
    shelf = catalogue("b", "a", "c")
    assert len(shelf) == 3
    assert [shelf.index(item_id) for item_id in "bac"] == [0, 1, 2]
    assert "a" in shelf
    assert "z" not in shelf
    assert shelf.texts == ["title b", "title a", "title c"]


def test_subset_keeps_the_given_order() -> None:
    assert [item.id for item in catalogue("a", "b", "c").subset([2, 0]).items] == ["c", "a"]


def test_fingerprint_depends_on_ids_texts_and_order() -> None:
    assert catalogue("a", "b").fingerprint == catalogue("a", "b").fingerprint
    assert catalogue("a", "b").fingerprint != catalogue("b", "a").fingerprint
    one = Catalogue((Item(id="a", title="", text="bc"),))
    other = Catalogue((Item(id="ab", title="", text="c"),))
    assert one.fingerprint != other.fingerprint


def test_bad_catalogues_are_refused() -> None:
    with pytest.raises(CatalogueError, match="empty catalogue"):
        Catalogue(())
    with pytest.raises(CatalogueError, match="'a' twice"):
        catalogue("a", "a")
    with pytest.raises(CatalogueError, match="no usable text"):
        Catalogue.from_rows([Item(id="a", title="\u202e", text="")])
    with pytest.raises(CatalogueError, match="unknown item id 'z'"):
        catalogue("a").index("z")
