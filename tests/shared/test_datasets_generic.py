"""Anyone's data: events and items as csv, jsonl or parquet, and sequences."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shared.datasets import load_data
from shared.errors import DataError
from shared.schema import EventKind

ITEMS = """item,title,text,brand,tags,domain
a,Tea,Green leaves.,Mori,drink|hot,shop
b,Cup,,,,
c,,A song. Live,,,music
"""
EVENTS = "user,item,timestamp,kind,value\nu2,b,200,like,\nu1,a,2024-01-01T00:00:10Z,,\nu1,b,1704067200,,4.5\n"


def write(folder: Path, *, events: str = EVENTS, items: str = ITEMS) -> Path:
    (folder / "events.csv").write_text(events, encoding="utf-8")
    (folder / "items.csv").write_text(items, encoding="utf-8")
    return folder


def test_csv_events_and_items(tmp_path: Path) -> None:
    data = load_data(write(tmp_path))
    assert data.name == tmp_path.name
    assert data.users == ("u2", "u1")
    assert data.item.tolist() == [1, 1, 0]
    assert data.time.tolist() == [200.0, 1_704_067_200.0, 1_704_067_210.0]
    assert data.kind.tolist() == [EventKind.LIKE, EventKind.RATING, EventKind.CLICK]
    assert data.value[1] == 4.5
    assert np.isnan(data.value[[0, 2]]).all()


def test_attributes_join_the_text_and_untouched_items_stay(tmp_path: Path) -> None:
    tea, cup, song = load_data(write(tmp_path)).catalogue.items
    assert tea.text == "Tea. Green leaves. Mori. drink, hot. shop"
    assert (tea.title, tea.tags, tea.domain) == ("Tea", ("drink", "hot"), "shop")
    assert (cup.title, cup.text, cup.tags) == ("Cup", "Cup", ())
    assert (song.title, song.text) == ("A song", "A song. Live. music")


def test_user_and_item_are_enough(tmp_path: Path) -> None:
    data = load_data(write(tmp_path, events="user,item\nu,c\nu,a\n"))
    assert not data.has_times
    assert data.item.tolist() == [2, 0]
    assert (data.kind == EventKind.CLICK).all()


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [
        ("1704067200", 1_704_067_200.0),
        ("1704067200.5", 1_704_067_200.5),
        ("2024-01-01", 1_704_067_200.0),
        ("2024-01-01T00:00:00", 1_704_067_200.0),
        ("2024-01-01 00:00:00Z", 1_704_067_200.0),
        ("2024-01-01T01:00:00+01:00", 1_704_067_200.0),
    ],
)
def test_times_are_seconds_utc(tmp_path: Path, cell: str, seconds: float) -> None:
    data = load_data(write(tmp_path, events=f"user,item,timestamp\nu,a,{cell}\n"))
    assert data.time.tolist() == [seconds]


def test_byte_order_mark_quotes_and_blank_lines(tmp_path: Path) -> None:
    items = '\ufeffitem,title\n\na,"Tea, ""green""\n(loose)"\n'
    data = load_data(write(tmp_path, events="user,item\nu,a\n\n", items=items))
    assert data.catalogue.texts == ['Tea, "green" (loose)']


def test_jsonl(tmp_path: Path) -> None:
    items = [
        {"item": 1, "title": "Tea", "tags": ["drink", "hot"], "price": None},
        {"item": 2, "title": "Cup"},
    ]
    events = [{"user": 7, "item": 2, "timestamp": 20, "value": 3}, {"user": 7, "item": 1, "timestamp": 10}]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)) + "\n\n")
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, events)))
    data = load_data(tmp_path)
    assert data.users == ("7",)
    assert data.catalogue.texts == ["Tea. drink, hot", "Cup"]
    assert data.item.tolist() == [0, 1]
    assert data.kind.tolist() == [EventKind.CLICK, EventKind.RATING]


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    items = {"item": [1, 2], "title": ["Tea", "Cup"], "tags": [["drink", "hot"], []]}
    seconds = pyarrow.array([20, 10], type=pyarrow.timestamp("s", tz="UTC"))
    events = {"user": ["u", "u"], "item": [2, 1], "timestamp": seconds, "value": [float("nan"), 2.0]}
    parquet.write_table(pyarrow.table(items), tmp_path / "items.parquet")
    parquet.write_table(pyarrow.table(events), tmp_path / "events.parquet")
    data = load_data(tmp_path)
    assert data.catalogue.texts == ["Tea. drink, hot", "Cup"]
    assert data.time.tolist() == [10.0, 20.0]
    assert data.kind.tolist() == [EventKind.RATING, EventKind.CLICK]
    (tmp_path / "events.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"events\.parquet: found unreadable parquet"):
        load_data(tmp_path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    (tmp_path / "events.csv").rename(tmp_path / "events.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="pip install pyarrow"):
        load_data(tmp_path)


def test_sequences_with_items(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text('item_id,asin,text\n0,B0,"Tape. Office. 3M. "\n1,B1,Glue\n2,B2,Pen\n')
    (tmp_path / "sequences.txt").write_text("7 1 0\n3 0 1 0\n")
    data = load_data(tmp_path)
    assert data.users == ("7", "3")
    assert data.item.tolist() == [1, 0, 0, 1, 0]
    assert data.catalogue.texts == ["Tape. Office. 3M", "Glue", "Pen"]
    assert data.catalogue.items[0].title == "Tape"
    assert not data.has_times


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ("7 0\n8\n", r"sequences\.txt, line 2: found user '8' with an empty history"),
        ("7 0\n\n8 1\n", "line 2: found a blank line"),
        ("7 0\n7 1\n", "line 2, column 1: found user '7' again"),
        (
            "7 0 1\n8 1 5 0 6 5\n",
            "line 2, column 3: found unknown item id '5'.*3 events name 2 unknown items",
        ),
        ("", "line 1: found an empty file"),
    ],
)
def test_bad_sequences_name_their_place(tmp_path: Path, sequences: str, message: str) -> None:
    (tmp_path / "items.csv").write_text("item,text\n0,Tape\n1,Glue\n")
    (tmp_path / "sequences.txt").write_text(sequences)
    with pytest.raises(DataError, match=message):
        load_data(tmp_path)


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ("person,item\nu,a\n", r"events\.csv, line 1, column user: found only the columns person, item"),
        ("user,item,timestmp\nu,a,1\n", "found the unknown column 'timestmp'.*Did you mean 'timestamp'"),
        ("user,item,weather\nu,a,1\n", "unknown column 'weather'.*Rename or remove it"),
        ("user,item,item\nu,a,a\n", "line 1, column 3: found the column name 'item' twice"),
        ("user,item,\nu,a,\n", "line 1, column 3: found an empty column name"),
        ("user,item\nu,a\nu\n", "line 3: found 1 field; expected 2 fields as in the header"),
        ("user,item\nu,a\n,b\n", "line 3, column user: found an empty id"),
        (
            "user,item\nu,a\nu,z\nv,z\n",
            "line 3, column item: found unknown item id 'z'.*2 events name 1 unknown",
        ),
        (
            "user,item,kind\nu,a,clik\n",
            "line 2, column kind: found unknown kind 'clik'.*Did you mean 'click'",
        ),
        ("user,item,value\nu,a,\nu,a,many\n", "line 3, column value: found 'many'; expected a number"),
        ("user,item,value\nu,a,inf\n", "line 2, column value: found 'inf'; expected a number"),
        ("user,item,timestamp\nu,a,5\nu,b,\n", "line 3, column timestamp: found an empty timestamp"),
        ("user,item,timestamp\nu,a,yesterday\n", "line 2, column timestamp: found 'yesterday'"),
        ("user,item,timestamp\nu,a,1704067200000\n", "looks like milliseconds"),
        ("user,item\n", "found no rows; expected at least one row"),
        ("", "found an empty file"),
        ('user,item\n"u,a\n', "malformed csv"),
        ('user,item\n"multi\nline",a\nu,z\n', "line 4, column item: found unknown item id 'z'"),
    ],
)
def test_bad_events_name_their_place(tmp_path: Path, events: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(write(tmp_path, events=events))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("name,text\na,Tea\n", r"items\.csv, line 1, column item: found only the columns name, text"),
        ("item,brand\na,Mori\n", r"items\.csv, line 1, column text"),
        ("item,title\na,Tea\na,Tea\n", "line 3, column item: found item id 'a' again"),
        ("item,title\n ,Tea\n", "line 2, column item: found an empty id"),
        ("item,title\na,\n", "line 2, column title: found no usable text"),
        ("item,text\na,\u202e\n", "line 2, column text: found no usable text"),
    ],
)
def test_bad_items_name_their_place(tmp_path: Path, items: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_data(write(tmp_path, items=items))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"user": "u", "item": "a"}\n{"user": \n', "line 2: found invalid JSON"),
        ('["u", "a"]\n', "line 1: found a JSON list; expected a JSON object"),
        ('{"user": "u", "item": {"id": "a"}}\n', "line 1, column item: found a value of type dict"),
        (
            '{"user": "u", "item": "a"}\n\n{"user": "u"}\n',
            "line 3, column item: found an empty id",
        ),
    ],
)
def test_bad_json_names_its_line(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "items.csv").write_text(ITEMS)
    (tmp_path / "events.jsonl").write_text(lines)
    with pytest.raises(DataError, match=message):
        load_data(tmp_path)


def test_undecodable_bytes_name_their_place(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "items.csv").write_bytes("item,title\na,Tea\nb,Café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"items\.csv, line 3, column 6: found byte 0xe9; expected utf-8 text"):
        load_data(tmp_path)


def test_folders_that_hold_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found nothing there; expected a folder with"):
        load_data(tmp_path / "missing")
    with pytest.raises(DataError, match="found an empty folder"):
        load_data(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"found notes\.txt; expected u\.data"):
        load_data(tmp_path)
    with pytest.raises(DataError, match="found a file"):
        load_data(tmp_path / "notes.txt")
    (tmp_path / "events.csv").write_text(EVENTS)
    with pytest.raises(DataError, match=r"found none; expected exactly one of items\.csv"):
        load_data(tmp_path)
    write(tmp_path)
    (tmp_path / "events.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"found events\.csv and events\.jsonl; expected exactly one"):
        load_data(tmp_path)


@pytest.mark.slow
def test_real_amazon(real_data: Callable[[str], Path]) -> None:
    data = load_data(real_data("amazon-scientific"))
    assert (len(data.users), len(data.catalogue), len(data)) == (8_442, 4_385, 59_384)
    assert not data.has_times
    assert data.catalogue.items[0].title.startswith("eSUN Bronze filament")
