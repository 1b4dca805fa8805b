"""A person's files become their device's history, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.intake import import_history
from client.store import History, Role, Store
from shared.artifacts import load_catalogue
from shared.errors import DataError
from shared.schema import EventKind

ITEMS = "item,title,text\ntea,Tea,Green leaf\ncup,Cup,\npot,Pot,\nbag,Bag,\n"


def write(folder: Path, events: str, *, items: str = ITEMS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "events.csv").write_text(events)
    (folder / "items.csv").write_text(items)
    return folder


def imported(folder: Path, data: Path, user: str | None = None) -> tuple[int, History]:
    store, catalogue = folder / "device.sqlite", folder / "items.jsonl"
    count = import_history(data, user=user, store=store, catalogue=catalogue)
    return count, Store(store).history(0, load_catalogue(catalogue))


def test_the_newest_target_is_held_out_and_what_follows_is_history(tmp_path: Path) -> None:
    data = write(
        tmp_path / "d",
        "user,item,timestamp,kind\nana,pot,300,purchase\nana,tea,100,click\nana,cup,200,skip\nana,bag,400,impression\n",
    )
    count, history = imported(tmp_path, data)
    assert count == len(history) == 4
    assert history.times.tolist() == [100.0, 200.0, 300.0, 400.0]
    assert history.items.tolist() == [0, 1, 2, 3]
    assert history.kinds.tolist() == [EventKind.CLICK, EventKind.SKIP, EventKind.PURCHASE, EventKind.IMPRESSION]
    assert history.roles.tolist() == [Role.TRAIN, Role.TRAIN, Role.VALIDATE, Role.HISTORY]


def test_ratings_and_what_a_source_says_about_its_people_come_along(tmp_path: Path) -> None:
    data = tmp_path / "d"
    data.mkdir()
    (data / "movies.dat").write_text("10::Toys (1995)::Comedy\n11::Heat (1995)::Action\n", encoding="latin-1")
    (data / "ratings.dat").write_text("1::10::4::100\n2::11::5::100\n2::10::1::200\n", encoding="latin-1")
    (data / "users.dat").write_text("1::M::1::2::90210\n2::F::25::7::90210\n", encoding="latin-1")
    _, history = imported(tmp_path, data, "2")
    assert history.values.tolist() == [5.0, 1.0]
    assert history.attributes == {"gender": "women", "age": "25-34"}


def test_a_single_target_is_trained_on_rather_than_held_out(tmp_path: Path) -> None:
    _, history = imported(tmp_path, write(tmp_path / "d", "user,item,kind\nana,tea,click\nana,cup,skip\n"))
    assert history.roles.tolist() == [Role.TRAIN, Role.TRAIN]
    assert np.isnan(history.times).all()
    assert np.isnan(history.values).all()
    assert history.attributes == {}


def test_an_item_clicked_again_is_not_held_out(tmp_path: Path) -> None:
    """It has been seen and is left out of every ranking, so it could never be found."""
    _, history = imported(tmp_path, write(tmp_path / "d", "user,item\nana,tea\nana,cup\nana,tea\n"))
    assert history.roles.tolist() == [Role.TRAIN, Role.VALIDATE, Role.HISTORY]


def test_the_catalogue_comes_along_with_items_nobody_touched(tmp_path: Path) -> None:
    imported(tmp_path, write(tmp_path / "d", "user,item\nana,tea\n"))
    assert [item.id for item in load_catalogue(tmp_path / "items.jsonl").items] == ["tea", "cup", "pot", "bag"]


def test_one_of_several_people_must_be_named(tmp_path: Path) -> None:
    data = write(tmp_path / "d", "user,item\nana,tea\nben,cup\nben,pot\n")
    with pytest.raises(DataError, match="found 2 users; a device is one person's, name one with --user"):
        imported(tmp_path, data)
    with pytest.raises(DataError, match="cleo"):
        imported(tmp_path, data, "cleo")
    assert not (tmp_path / "device.sqlite").exists()
    count, history = imported(tmp_path, data, "ben")
    assert count == 2
    assert history.items.tolist() == [1, 2]


def test_bad_data_names_its_place_and_leaves_nothing(tmp_path: Path) -> None:
    data = write(tmp_path / "d", "user,item\nana,tea\nana,gin\n")
    with pytest.raises(DataError, match=r"events\.csv, line 3.*gin"):
        imported(tmp_path, data)
    assert not (tmp_path / "device.sqlite").exists()
    assert not (tmp_path / "items.jsonl").exists()


def test_a_device_with_events_is_not_overwritten(tmp_path: Path) -> None:
    data = write(tmp_path / "d", "user,item\nana,tea\n")
    imported(tmp_path, data)
    other = write(tmp_path / "e", "user,item\nben,cup\n", items=ITEMS + "gin,Gin,\n")
    with pytest.raises(DataError, match="has events already; join without --data"):
        imported(tmp_path, other)
    catalogue = load_catalogue(tmp_path / "items.jsonl")
    assert len(catalogue) == 4
    assert Store(tmp_path / "device.sqlite").history(0, catalogue).items.tolist() == [0]


def test_an_interrupted_import_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "d", "user,item\nana,tea\nana,cup\n")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    for name in ("client.intake.save_catalogue", "client.store.Store.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(name, fail)
            with pytest.raises(OSError, match="disk full"):
                imported(tmp_path, data)
    assert imported(tmp_path, data)[0] == 2
