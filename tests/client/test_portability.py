"""Everything out in formats that anyone reads, and back in again."""

from __future__ import annotations

import csv
import json
import stat
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from client.events import NewEvent
from client.journal import Journal
from client.portability import Exported, export, import_data
from client.profile import Preferences, Profile
from client.store import Role
from shared.artifacts import load_arrays, load_catalogue, save_arrays, save_catalogue
from shared.catalogue import Catalogue
from shared.datasets import load_data
from shared.errors import DataError
from shared.privacy.accounting import Release
from shared.schema import EventKind, Item

SHELF = Catalogue(
    (
        Item(id="tea", title="Tea", text="Tea. Green leaf", tags=("drink",)),
        Item(id='c"u,p', title="Cup, blue", text="Cup, blue"),
        Item(id="pot", title="Pöt", text="Of clay"),
    )
)
NOW = 1_700_000_000.0


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    made = Profile.open(tmp_path / "home", "ana")
    save_catalogue(SHELF, made.catalogue)
    return made


def filled(profile: Profile) -> Journal:
    journal = Journal(profile.events, SHELF, clock=lambda: NOW)
    journal.record(
        [NewEvent("tea", "like", 5.0), NewEvent('c"u,p', "rating", 6.5, 4.5), NewEvent("tea", "impression", 7.0)]
    )
    journal.set_interest("drink", 2)
    journal.judge("pot")
    journal.store.set_attributes([(0, "age", "25-34")])
    return journal


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_everything_about_a_person_comes_out(profile: Profile, tmp_path: Path) -> None:
    journal, ledger = filled(profile), profile.open_ledger()
    profile.save_preferences(Preferences(tail=0.5))
    save_arrays(profile.personal, {"weights": np.array([1.0, 0.9, -0.2], dtype=np.float32)}, private=True)
    release = Release(phase="train", unit="event", noise_multiplier=4.0)
    ledger.charge(0, [release], key="round 1", budgets={"event": 8.0}, delta=1e-5)
    done = export(profile, journal, tmp_path / "out")
    assert done == Exported(tmp_path / "out", events=3, ledger_rows=1, complete=True)
    assert {path.relative_to(done.path).as_posix() for path in done.path.rglob("*")} == {
        *("README.txt", "events.jsonl", "history", "history/events.csv", "history/items.csv"),
        *("interests.json", "settings.json", "ledger.jsonl", "sent.jsonl", "personal.safetensors"),
    }
    first, second, third = lines(done.path / "events.jsonl")
    assert first == {
        "seq": 0,
        "item": "tea",
        "title": "Tea",
        "time": 5.0,
        "timestamp": "1970-01-01T00:00:05Z",
        "kind": "like",
        "value": None,
        "role": "train",
    }
    assert (second["item"], second["value"], second["role"]) == ('c"u,p', 4.5, "validate")
    assert (third["kind"], third["role"]) == ("impression", "history")
    with (done.path / "history" / "events.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["user", "item", "timestamp", "kind", "value"],
            ["me", "tea", "5.0", "like", ""],
            ["me", 'c"u,p', "6.5", "rating", "4.5"],
            ["me", "tea", "7.0", "impression", ""],
        ]
    about = json.loads((done.path / "interests.json").read_text())
    verdict = {"item": "pot", "verdict": "not-interested", "time": NOW, "timestamp": "2023-11-14T22:13:20Z"}
    assert about == {"interests": {"drink": 2.0}, "verdicts": [verdict], "attributes": {"age": "25-34"}}
    assert json.loads((done.path / "settings.json").read_text()) == {"schema": 1, **asdict(Preferences(tail=0.5))}
    (row,) = lines(done.path / "ledger.jsonl")
    assert (row["seq"], row["key"], row["releases"]) == (1, "round 1", [asdict(release)])
    assert load_arrays(done.path / "personal.safetensors")["weights"].tolist() == pytest.approx([1.0, 0.9, -0.2])
    for path in (done.path, *done.path.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    journal.close()
    ledger.close()


def test_the_readme_names_every_file(profile: Profile, tmp_path: Path) -> None:
    journal = filled(profile)
    save_arrays(profile.personal, {"weights": np.ones(3, dtype=np.float32)})
    done = export(profile, journal, tmp_path / "out")
    said = (done.path / "README.txt").read_text()
    for path in done.path.rglob("*"):
        if path.is_file() and path.name != "README.txt":
            assert path.relative_to(done.path).as_posix() in said
    assert 'profile "ana"' in said
    assert "3 events" in said
    assert "There is none yet" not in said
    journal.close()


def test_a_profile_with_nothing_in_it_is_exported_too(profile: Profile, tmp_path: Path) -> None:
    journal = profile.journal(SHELF)
    done = export(profile, journal, tmp_path / "out")
    assert (done.events, done.ledger_rows, done.complete) == (0, 0, True)
    assert (done.path / "events.jsonl").read_text() == (done.path / "ledger.jsonl").read_text() == ""
    assert json.loads((done.path / "settings.json").read_text()) == asdict(Preferences())
    assert not (done.path / "personal.safetensors").exists()
    assert "There is none yet, so the file is missing." in (done.path / "README.txt").read_text()
    assert not profile.ledger.exists()
    journal.close()


def test_a_zip_holds_the_same_and_is_private(profile: Profile, tmp_path: Path) -> None:
    journal = filled(profile)
    folder = export(profile, journal, tmp_path / "out").path
    done = export(profile, journal, tmp_path / "new" / "out.zip")
    assert stat.S_IMODE(done.path.stat().st_mode) == 0o600
    with zipfile.ZipFile(done.path) as archive:
        assert archive.testzip() is None
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        assert sorted(archive.namelist()) == sorted(names)
        for name in names:
            if name != "README.txt":  # which says when
                assert archive.read(name) == (folder / name).read_bytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.zip"]
    journal.close()


def test_nothing_is_overwritten_and_nothing_partial_is_left(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = filled(profile)
    (tmp_path / "there").write_text("mine")
    with pytest.raises(DataError, match="found something there"):
        export(profile, journal, tmp_path / "there")
    assert (tmp_path / "there").read_text() == "mine"

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("client.portability._interests", fail)
    with pytest.raises(DataError, match=r"could not be written .No space left on device.; nothing was exported"):
        export(profile, journal, tmp_path / "full" / "out")
    assert list((tmp_path / "full").iterdir()) == []
    journal.close()


def test_a_ledger_that_cannot_be_read_does_not_keep_the_rest_from_its_owner(profile: Profile, tmp_path: Path) -> None:
    journal = filled(profile)
    profile.ledger.write_bytes(b"this is no database" * 300)
    profile.settings.write_text("{damaged")
    done = export(profile, journal, tmp_path / "out")
    assert (done.events, done.ledger_rows, done.complete) == (3, 0, False)
    assert "IT COULD NOT BE READ: " in (done.path / "README.txt").read_text()
    assert (done.path / "settings.json").read_text() == "{damaged"
    assert profile.ledger.read_bytes() == b"this is no database" * 300
    journal.close()


def test_events_on_items_that_are_gone_and_without_times_come_out_too(profile: Profile, tmp_path: Path) -> None:
    journal = profile.journal(SHELF)
    times = [None, 9.0, -1e11]
    journal.store.replace(
        (0, seq, name, time, 1, 0, None) for seq, (name, time) in enumerate(zip("xyx", times, strict=True))
    )
    done = export(profile, journal, tmp_path / "out")
    assert [(row["title"], row["timestamp"]) for row in lines(done.path / "events.jsonl")] == [
        ("x", None),
        ("y", "1970-01-01T00:00:09Z"),
        ("x", None),
    ]
    data = load_data(done.path / "history")
    assert not data.has_times
    assert [data.catalogue.items[item].id for item in data.item] == ["x", "y", "x"]
    journal.close()


# --- import ------------------------------------------------------------------------------------------------


def test_what_was_exported_can_be_imported(profile: Profile, tmp_path: Path) -> None:
    journal = filled(profile)
    journal.record([NewEvent("pot", "click", NOW)])
    folder = export(profile, journal, tmp_path / "out").path
    other = Profile.open(tmp_path / "home", "ben")
    save_catalogue(SHELF, other.catalogue)
    assert import_data(other, folder / "history") == 4
    again = other.journal(load_catalogue(other.catalogue))
    assert list(again.rows()) == list(journal.rows())
    assert again.catalogue.fingerprint == SHELF.fingerprint
    assert list(other.cache.iterdir()) == []
    again.close()
    journal.close()


def test_a_profile_without_a_catalogue_takes_the_folders(profile: Profile, tmp_path: Path) -> None:
    data = tmp_path / "d"
    data.mkdir()
    (data / "movies.dat").write_text("10::Toys (1995)::Comedy\n11::Heat (1995)::Action\n", encoding="latin-1")
    (data / "ratings.dat").write_text("1::10::4::100\n2::11::5::100\n2::10::1::200\n", encoding="latin-1")
    (data / "users.dat").write_text("1::M::1::2::90210\n2::F::25::7::90210\n", encoding="latin-1")
    new = Profile.open(tmp_path / "home", "new")
    with pytest.raises(DataError, match="found 2 users"):
        import_data(new, data)
    assert not new.catalogue.exists()
    assert import_data(new, data, user="2") == 2
    assert stat.S_IMODE(new.catalogue.stat().st_mode) == 0o600
    journal = new.journal(load_catalogue(new.catalogue))
    assert [(row[2], row[3], row[4], row[5], row[6]) for row in journal.rows()] == [
        ("11", 100.0, EventKind.RATING, Role.TRAIN, 5.0),
        ("10", 200.0, EventKind.RATING, Role.VALIDATE, 1.0),
    ]
    assert journal.newest(1).attributes == {"gender": "women", "age": "25-34"}
    journal.close()


def test_a_catalogue_that_is_there_stays_and_must_know_the_items(profile: Profile, tmp_path: Path) -> None:
    data = tmp_path / "d"
    data.mkdir()
    (data / "events.csv").write_text("user,item\nme,tea\nme,teas\nme,gin\n")
    (data / "items.csv").write_text("item,title\ntea,Tea\nteas,Teas\ngin,Gin\n")
    with pytest.raises(DataError, match=r"2 of 3 events .* unknown id 'teas'; .* did you mean 'tea'"):
        import_data(profile, data)
    assert load_catalogue(profile.catalogue).fingerprint == SHELF.fingerprint
    assert not profile.events.exists()
    (data / "events.csv").write_text("user,item\nme,tea\nme,pot\n")
    (data / "items.csv").write_text("item,title\npot,Pot\ntea,Tea\n")
    assert import_data(profile, data) == 2
    assert load_catalogue(profile.catalogue).fingerprint == SHELF.fingerprint


def test_a_profile_that_has_events_is_not_added_to(profile: Profile, tmp_path: Path) -> None:
    journal = filled(profile)
    folder = export(profile, journal, tmp_path / "out").path
    before = list(journal.rows())
    with pytest.raises(DataError, match="found events already; forget them first, or use another profile"):
        import_data(profile, folder / "history")
    assert list(journal.rows()) == before
    profile.forget(journal)
    assert import_data(profile, folder / "history") == 3
    assert list(journal.rows()) == before  # as the opened journal sees it
    assert journal.seen().tolist() == [True, True, False]
    journal.close()


def test_a_broken_source_leaves_the_profile_as_it_was(profile: Profile, tmp_path: Path) -> None:
    data = tmp_path / "d"
    data.mkdir()
    (data / "events.csv").write_text("user,item\nme,gin\n")
    (data / "items.csv").write_text("item,title\ntea,Tea\n")
    with pytest.raises(DataError, match=r"events\.csv, line 2.*gin"):
        import_data(profile, data)
    assert not profile.events.exists()
    assert list(profile.cache.iterdir()) == []
