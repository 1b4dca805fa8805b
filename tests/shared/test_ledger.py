"""The ledger is written before anything is released, and never overspends. `Ledger.charge`'s table, row by row."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import BudgetError, PrivacyError
from shared.privacy.accounting import Release, epsilon_of
from shared.privacy.chain import Chain
from shared.privacy.ledger import Ledger

DELTA = 1e-5
ROUND = Release("train", 2.0)
PERSON = Release("train", 3.0, unit="user")


def charge(
    ledger: Ledger,
    key: str,
    *releases: Release,
    device: int = 0,
    event: float = 8.0,
    user: float = 8.0,
) -> bool:
    budgets = {"event": event, "user": user}
    return ledger.charge(device, releases or (ROUND,), key=key, budgets=budgets, delta=DELTA)


def price(*releases: Release) -> float:
    return epsilon_of(releases, delta=DELTA)


def test_a_charge_is_written_and_priced_for_each_unit_apart() -> None:
    ledger = Ledger(":memory:")
    assert ledger.spent(0, unit="event", delta=DELTA) == 0.0
    assert charge(ledger, "r1", ROUND, PERSON)
    assert charge(ledger, "r2", Release("validate", 3.0, 1.0, 2))
    assert ledger.releases(0) == [ROUND, PERSON, Release("validate", 3.0, 1.0, 2)]
    assert ledger.spent(0, unit="event", delta=DELTA) == price(ROUND, Release("validate", 3.0, 1.0, 2))
    assert ledger.spent(0, unit="user", delta=DELTA) == price(PERSON)
    assert ledger.devices() == [0]


def test_the_charge_is_on_disk_when_charge_returns(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    charge(ledger, "r1")
    assert Ledger(path).releases(0) == [ROUND]  # another connection sees it before anything is sent
    ledger.close()


def test_a_release_over_the_budget_is_refused_and_not_written() -> None:
    ledger = Ledger(":memory:")
    two = price(ROUND, ROUND)
    assert charge(ledger, "r1", event=two)
    assert charge(ledger, "r2", event=two)
    with pytest.raises(BudgetError, match=r"would bring the device to event-level epsilon .*; its limit is"):
        charge(ledger, "r3", event=two)
    assert ledger.releases(0) == [ROUND, ROUND]
    with pytest.raises(BudgetError):  # a first release that is too dear
        charge(ledger, "r1", Release("train", 0.1), device=1, event=two)
    assert ledger.devices() == [0]
    assert charge(ledger, "r1", event=two) is False  # the ledger is usable after a refusal


@pytest.mark.parametrize(
    ("event", "user", "named"), [(0.1, 8.0, "event"), (8.0, 0.1, "user"), (8.0, float("nan"), "user")]
)
def test_two_units_are_charged_both_or_neither(event: float, user: float, named: str) -> None:
    ledger = Ledger(":memory:")
    with pytest.raises(BudgetError, match=f"{named}-level epsilon"):
        charge(ledger, "r1", ROUND, PERSON, event=event, user=user)
    assert ledger.releases(0) == []


def test_a_unit_that_is_not_charged_is_not_asked_for_its_budget() -> None:
    ledger = Ledger(":memory:")
    assert charge(ledger, "r1", ROUND, event=price(ROUND), user=0.0)
    assert charge(ledger, "r2", PERSON, event=0.0, user=price(PERSON))
    assert ledger.charge(1, [ROUND], key="r1", budgets={"event": 8.0}, delta=DELTA)


@pytest.mark.parametrize(("releases", "found"), [([], r"\[\]"), ([PERSON], r"\['user'\]"), ([ROUND, PERSON], "event")])
def test_no_release_or_a_unit_without_a_budget_is_refused(releases: Sequence[Release], found: str) -> None:
    ledger = Ledger(":memory:")
    with pytest.raises(PrivacyError, match=f"found releases for units {found}|found .*{found}"):
        ledger.charge(0, releases, key="r1", budgets={"event": 8.0}, delta=DELTA)
    assert ledger.devices() == []


def test_the_same_key_with_the_same_releases_is_charged_once() -> None:
    ledger = Ledger(":memory:")
    assert charge(ledger, "r1") is True
    assert charge(ledger, "r1") is False
    assert charge(ledger, "r1", event=1e-6) is False  # nothing new is spent, so no budget is needed
    assert ledger.releases(0) == [ROUND]


@pytest.mark.parametrize(
    "others",
    [
        (Release("train", 1.0),),
        (Release("validate", 2.0),),
        (Release("train", 2.0, 0.5),),
        (Release("train", 2.0, 1.0, 2),),
        (Release("train", 2.0, unit="user"),),
        (ROUND, PERSON),
    ],
)
def test_the_same_key_with_other_releases_is_refused(others: tuple[Release, ...]) -> None:
    ledger = Ledger(":memory:")
    charge(ledger, "r1")
    with pytest.raises(PrivacyError, match="charged with another release"):
        charge(ledger, "r1", *others)
    assert ledger.releases(0) == [ROUND]
    assert charge(ledger, "r2")


def test_a_ledger_outlives_its_process(tmp_path: Path) -> None:
    path, limit = tmp_path / "ledger.sqlite", price(ROUND)
    first = Ledger(path, durable=False)
    charge(first, "r1", event=limit)
    first.close()
    again = Ledger(path)
    assert again.releases(0) == [ROUND]
    assert charge(again, "r1", event=limit) is False
    with pytest.raises(BudgetError):
        charge(again, "r2", event=limit)


def test_many_devices_do_not_pay_for_each_other() -> None:
    ledger = Ledger(":memory:", durable=False)
    limit = price(ROUND)
    for device in range(200):
        assert charge(ledger, "same key", device=device, event=limit)
    assert ledger.devices() == list(range(200))
    assert {ledger.spent(device, unit="event", delta=DELTA) for device in range(200)} == {limit}
    with pytest.raises(BudgetError):
        charge(ledger, "another", device=17, event=limit)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0.5, 20.0), st.sampled_from(["event", "user"])), max_size=12),
    st.floats(0.5, 10.0),
)
def test_whatever_is_asked_no_device_ever_spends_more_than_its_limit(
    wishes: list[tuple[int, float, str]], limit: float
) -> None:
    ledger = Ledger(":memory:", durable=False)
    granted: dict[int, list[Release]] = {0: [], 1: [], 2: []}
    for number, (device, multiplier, unit) in enumerate(wishes):
        release = Release("train", multiplier, unit=unit)
        try:
            charge(ledger, str(number), release, device=device, event=limit, user=limit / 2)
        except BudgetError:
            continue
        granted[device].append(release)
    for device, releases in granted.items():
        assert ledger.releases(device) == releases
        assert ledger.spent(device, unit="event", delta=DELTA) <= limit * (1 + 1e-6)
        assert ledger.spent(device, unit="user", delta=DELTA) <= limit / 2 * (1 + 1e-6)
    ledger.close()


# --- damage: the table itself is walked in test_chain -------------------------------------------------------


def test_a_backup_put_back_stops_training_and_spends_nothing_twice(tmp_path: Path) -> None:
    path, witness = tmp_path / "ledger.sqlite", tmp_path / "witness.sqlite"
    for key in ("r1", "r2"):
        with closing(Ledger(path, witness=witness)) as ledger:
            charge(ledger, key)
        if key == "r1":
            backup = path.read_bytes()
    path.write_bytes(backup)
    with closing(Ledger(path, witness=witness)) as ledger:
        for use in (
            lambda: charge(ledger, "r3"),
            lambda: ledger.releases(0),
            lambda: ledger.spent(0, unit="event", delta=DELTA),
        ):
            with pytest.raises(PrivacyError, match="the ledger is behind: it ends at row 1 and 2 were written"):
                use()
    path.unlink()
    with closing(Ledger(path, witness=witness)) as ledger, pytest.raises(PrivacyError, match="the ledger is lost"):
        charge(ledger, "r3")


def test_a_damaged_file_stops_training(tmp_path: Path) -> None:
    junk = tmp_path / "junk.sqlite"
    junk.write_bytes(b"this is no database" * 100)
    with pytest.raises(PrivacyError, match="found no usable ledger"):
        Ledger(junk)
    assert junk.read_bytes().startswith(b"this is no database")  # nothing is overwritten
    with pytest.raises(PrivacyError, match="found no usable ledger"):
        Ledger(tmp_path / "absent" / "ledger.sqlite")


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"releases": None},
        {"releases": [{}]},
        {"releases": [[]]},
        {"releases": [{"phase": "train"}]},
        {"releases": [{"phase": "train", "noise_multiplier": "x"}]},
        {"releases": [{"phase": "train", "noise_multiplier": -1.0}]},
        {"releases": [asdict(ROUND) | {"what a later version adds": 1}]},
    ],
)
def test_an_entry_that_this_version_cannot_read_stops_training(tmp_path: Path, entry: dict[str, object]) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(Chain(path)) as chain:
        chain.append(0, key="r1", entry=entry)
    with closing(Ledger(path)) as ledger:
        with pytest.raises(PrivacyError):
            ledger.spent(0, unit="event", delta=DELTA)
        for key in ("r1", "r2"):
            with pytest.raises(PrivacyError):
                charge(ledger, key)


@pytest.mark.parametrize("text", ["{", "null", "[1]", '{"releases": []'])
def test_a_row_rewritten_as_something_else_stops_training(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(Ledger(path)) as ledger:
        charge(ledger, "r1")
    with closing(sqlite3.connect(path, isolation_level=None)) as raw:
        raw.execute("DROP TRIGGER entries_stay")
        raw.execute("UPDATE entries SET entry = ?", (text,))
    with closing(Ledger(path)) as ledger, pytest.raises(PrivacyError, match="row 1 of the ledger"):
        charge(ledger, "r2")


def test_pages_damaged_behind_the_header_stop_training(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path, durable=False)
    for number in range(100):
        charge(ledger, str(number), Release("train", 100.0))
    ledger.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(bytes(content))
    with pytest.raises(PrivacyError):
        charge(Ledger(path), "new")
