"""Every person has a folder, closed to others; settings are whole or an error."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from client.events import NewEvent
from client.profile import Preferences, Profile, profiles
from shared.catalogue import Catalogue
from shared.errors import ConfigError
from shared.privacy.accounting import Release
from shared.schema import Item

SHELF = Catalogue(tuple(Item(id=f"secret-item-{n}", title="t", text="t") for n in range(9)))
ONCE = Release(phase="train", unit="event", noise_multiplier=4.0)
BUDGETS = {"event": 8.0}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_profile_is_closed_to_others(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        profile = Profile.open(tmp_path / "home", "ana")
        profile.save_preferences(Preferences(tail=0.5))
        journal, ledger = profile.journal(SHELF), profile.open_ledger()
        journal.record([NewEvent("secret-item-1")])
        ledger.charge(0, [ONCE], key="a", budgets=BUDGETS, delta=1e-5)
        for path in (profile.folder, profile.folder.parent, tmp_path / "home"):
            assert mode(path) == 0o700
        files = [path for path in profile.folder.rglob("*") if path.is_file()]
        assert {"events.sqlite", "events.sqlite-wal", "ledger.sqlite", "ledger.witness", "settings.json"} <= {
            path.name for path in files
        }
        assert {mode(path) for path in files} == {0o600}
        journal.close()
        ledger.close()
        profile.settings.chmod(0o644)
        profile.folder.chmod(0o755)
        Profile.open(tmp_path / "home", "ana")
        assert (mode(profile.settings), mode(profile.folder)) == (0o600, 0o700)
    finally:
        os.umask(old)


def test_people_share_nothing(tmp_path: Path) -> None:
    ana, ben = (Profile.open(tmp_path, name) for name in ("ana", "ben"))
    assert profiles(tmp_path) == ["ana", "ben"]
    for kind in ("events", "ledger", "witness", "settings", "catalogue", "adapter", "personal", "cache"):
        mine, theirs = getattr(ana, kind), getattr(ben, kind)
        assert mine != theirs
        assert mine.parent == tmp_path / "profiles" / "ana"
    journal = ana.journal(SHELF)
    journal.record([NewEvent("secret-item-1")])
    other = ben.journal(SHELF)
    assert other.store.count() == 0
    ledger = ana.open_ledger()
    ledger.charge(0, [ONCE], key="a", budgets=BUDGETS, delta=1e-5)
    theirs = ben.open_ledger()
    assert theirs.releases(0) == []
    for opened in (journal, other, ledger, theirs):
        opened.close()


@pytest.mark.parametrize("name", ["a", "default", "ana-2", "a_b", "0", "x" * 32])
def test_good_names(tmp_path: Path, name: str) -> None:
    assert Profile.open(tmp_path, name).name == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../ben", "a/b", "Ana", "ana ", "-a", "a-", "_", "ana\n", "x" * 33, "é", "a.b", "\x00", "~"]
)
def test_bad_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="profile: found"):
        Profile.open(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["profile", "store", "same"])
def test_no_link_leads_two_people_to_one_store(tmp_path: Path, kind: str) -> None:
    ana = Profile.open(tmp_path, "ana")
    ana.journal(SHELF).close()
    folder = tmp_path / "profiles" / "ben"
    if kind == "profile":
        folder.symlink_to(ana.folder)
    else:
        folder.mkdir()
        if kind == "store":
            (folder / "events.sqlite").symlink_to(ana.events)
        else:
            (folder / "events.sqlite").hardlink_to(ana.events)
    with pytest.raises(ConfigError, match="found a link"):
        Profile.open(tmp_path, "ben")


def test_the_list_of_profiles_names_folders_only(tmp_path: Path) -> None:
    assert profiles(tmp_path) == []
    Profile.open(tmp_path, "ana")
    (tmp_path / "profiles" / "note").touch()
    (tmp_path / "profiles" / "Not One").mkdir()
    assert profiles(tmp_path) == ["ana"]


# --- settings ----------------------------------------------------------------------------------------------


def test_settings_are_kept(tmp_path: Path) -> None:
    profile = Profile.open(tmp_path)
    assert profile.preferences() == Preferences()
    chosen = Preferences(participate=False, tail=0.25, per_tag_cap=3, retention_days=365)
    profile.save_preferences(chosen)
    assert Profile.open(tmp_path).preferences() == chosen
    assert json.loads(profile.settings.read_text())["schema"] == 1


def test_nothing_is_on_before_it_is_chosen() -> None:
    off = asdict(Preferences())
    assert off.pop("participate") is True
    assert set(off.values()) == {0}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tial": 0.5}, "settings: found 'tial'; expected participate, .*Did you mean 'tail'?"),
        ({"tail": 1.1}, "settings.tail: found '1.1'; expected a number from 0"),
        ({"tail": -0.1}, "expected a number"),
        ({"tail": float("nan")}, "expected a number"),
        ({"tail": "0.5"}, "expected a number"),
        ({"tail": True}, "expected a number"),
        ({"tail": None}, "expected a number"),
        ({"participate": 1}, "settings.participate: found '1'; expected true or false"),
        ({"participate": "yes"}, "expected true or false"),
        ({"per_tag_cap": 1.5}, "settings.per_tag_cap: found '1.5'; expected a whole number"),
        ({"per_tag_cap": -1}, "expected a whole number"),
        ({"retention_days": True}, "expected a whole number"),
        ({"retention_events": 10**10}, "expected a whole number"),
    ],
)
def test_a_choice_that_means_nothing_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Preferences().changed(values)


def test_some_choices_are_changed_and_the_others_stay() -> None:
    chosen = Preferences(tail=0.5).changed({"diversity": 1, "participate": False})
    assert chosen == Preferences(participate=False, tail=0.5, diversity=1.0)
    assert type(chosen.diversity) is float
    assert {field.name for field in fields(Preferences)} == set(asdict(chosen))


@pytest.mark.parametrize("text", ["{", "[]", '{"tail": 0.5}', '{"schema": 2}', '{"schema": 1, "tail": 7}', "\udcff"])
def test_damaged_settings_never_put_a_person_back_in(tmp_path: Path, text: str) -> None:
    profile = Profile.open(tmp_path)
    profile.save_preferences(Preferences(participate=False))
    profile.settings.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match="settings"):
        profile.preferences()


def test_settings_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = Profile.open(tmp_path)
    profile.save_preferences(Preferences(tail=0.5))

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(Exception, match="disk full"):
        profile.save_preferences(Preferences(tail=0.75))
    assert profile.preferences().tail == 0.5
    assert [path.name for path in profile.folder.iterdir()] == ["settings.json"]


# --- forgetting --------------------------------------------------------------------------------------------


def test_forgetting_keeps_choices_and_what_was_spent(tmp_path: Path) -> None:
    profile = Profile.open(tmp_path)
    profile.save_preferences(Preferences(participate=False))
    profile.events.write_bytes(b"secret-item-7 was here " * 300)
    ledger = profile.open_ledger()
    ledger.charge(0, [ONCE], key="a", budgets=BUDGETS, delta=1e-5)
    spent = ledger.spent(0, unit="event", delta=1e-5)
    journal = profile.journal(SHELF)
    assert journal.quarantined is not None
    assert ledger.spent(0, unit="event", delta=1e-5) == spent > 0
    journal.record([NewEvent("secret-item-1"), NewEvent("secret-item-2")])
    profile.personal.write_bytes(b"secret-item-1 weights")
    profile.cache.mkdir()
    (profile.cache / "queries").write_bytes(b"secret-item-2")
    profile.adapter.mkdir()
    (profile.adapter / "homerank.json").write_text("{}")
    done = profile.forget(journal)
    assert done.before["events"] == 2
    assert set(done.after.values()) == {0}
    assert sorted(done.files)[:2] == ["cache", journal.quarantined.name]
    assert "personal.safetensors" in done.files
    left = [path for path in profile.folder.rglob("*") if path.is_file()]
    assert not [path for path in left if b"secret-item" in path.read_bytes()]
    assert {"settings.json", "ledger.sqlite", "ledger.witness", "homerank.json"} <= {path.name for path in left}
    assert not profile.preferences().participate
    assert ledger.spent(0, unit="event", delta=1e-5) == spent
    assert profile.forget(journal).files == ()
    journal.close()
    ledger.close()
