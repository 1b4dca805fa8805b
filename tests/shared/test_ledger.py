"""The ledger is written before anything is released, and never overspends."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import BudgetError, PrivacyError
from shared.privacy.accounting import Release, epsilon_of
from shared.privacy.ledger import Ledger

DELTA = 1e-5
ROUND = Release("train", 2.0)


def charge(ledger: Ledger, key: str, *, device: int = 0, release: Release = ROUND, epsilon: float = 8.0) -> bool:
    return ledger.charge(device, release, key=key, epsilon=epsilon, delta=DELTA)


def test_a_charge_is_written_and_priced() -> None:
    ledger = Ledger(":memory:")
    assert ledger.spent(0, delta=DELTA) == 0.0
    assert charge(ledger, "r1")
    assert charge(ledger, "r2", release=Release("validate", 3.0, 0.5, 2))
    assert ledger.releases(0) == [ROUND, Release("validate", 3.0, 0.5, 2)]
    assert ledger.spent(0, delta=DELTA) == epsilon_of(ledger.releases(0), delta=DELTA)
    assert ledger.devices() == [0]


def test_the_charge_is_on_disk_when_charge_returns(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    charge(ledger, "r1")
    assert Ledger(path).releases(0) == [ROUND]  # another connection sees it before anything is sent
    ledger.close()


def test_a_release_over_the_budget_is_refused_and_not_written() -> None:
    ledger = Ledger(":memory:")
    two = epsilon_of([ROUND, ROUND], delta=DELTA)
    assert charge(ledger, "r1", epsilon=two)
    assert charge(ledger, "r2", epsilon=two)
    with pytest.raises(BudgetError, match=r"would bring the device to epsilon .*; its limit is"):
        charge(ledger, "r3", epsilon=two)
    assert ledger.releases(0) == [ROUND, ROUND]
    with pytest.raises(BudgetError):  # a first release that is too dear
        charge(ledger, "r1", device=1, release=Release("train", 0.1), epsilon=two)
    assert ledger.devices() == [0]
    assert charge(ledger, "r1", epsilon=two) is False  # the ledger is usable after a refusal


def test_the_same_key_with_the_same_release_is_charged_once() -> None:
    ledger = Ledger(":memory:")
    assert charge(ledger, "r1") is True
    assert charge(ledger, "r1") is False
    assert charge(ledger, "r1", epsilon=1e-6) is False  # nothing new is spent, so no budget is needed
    assert ledger.releases(0) == [ROUND]


@pytest.mark.parametrize(
    "other",
    [
        Release("train", 1.0),
        Release("validate", 2.0),
        Release("train", 2.0, 0.5),
        Release("train", 2.0, 1.0, 2),
    ],
)
def test_the_same_key_with_another_release_is_refused(other: Release) -> None:
    ledger = Ledger(":memory:")
    charge(ledger, "r1")
    with pytest.raises(PrivacyError, match="charged with another release"):
        charge(ledger, "r1", release=other)
    assert ledger.releases(0) == [ROUND]
    assert charge(ledger, "r2")


def test_a_ledger_outlives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    limit = epsilon_of([ROUND], delta=DELTA)
    first = Ledger(path, durable=False)
    charge(first, "r1", epsilon=limit)
    first.close()
    again = Ledger(path)
    assert again.releases(0) == [ROUND]
    assert charge(again, "r1", epsilon=limit) is False
    with pytest.raises(BudgetError):
        charge(again, "r2", epsilon=limit)


def test_many_devices_do_not_pay_for_each_other() -> None:
    ledger = Ledger(":memory:", durable=False)
    limit = epsilon_of([ROUND], delta=DELTA)
    for device in range(200):
        assert charge(ledger, "same key", device=device, epsilon=limit)
    assert ledger.devices() == list(range(200))
    assert {ledger.spent(device, delta=DELTA) for device in range(200)} == {limit}
    with pytest.raises(BudgetError):
        charge(ledger, "another", device=17, epsilon=limit)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.5, 20.0)), max_size=12), st.floats(0.5, 10.0))
def test_whatever_is_asked_no_device_ever_spends_more_than_its_limit(
    wishes: list[tuple[int, float]], limit: float
) -> None:
    ledger = Ledger(":memory:", durable=False)
    granted: dict[int, list[Release]] = {0: [], 1: [], 2: []}
    for number, (device, multiplier) in enumerate(wishes):
        release = Release("train", multiplier)
        try:
            charge(ledger, str(number), device=device, release=release, epsilon=limit)
        except BudgetError:
            continue
        granted[device].append(release)
    for device, releases in granted.items():
        assert ledger.releases(device) == releases
        assert ledger.spent(device, delta=DELTA) <= limit * (1 + 1e-6)
    ledger.close()


def test_a_damaged_file_stops_training(tmp_path: Path) -> None:
    junk = tmp_path / "junk.sqlite"
    junk.write_bytes(b"this is no database" * 100)
    with pytest.raises(PrivacyError, match="found no usable ledger"):
        Ledger(junk)
    assert junk.read_bytes().startswith(b"this is no database")  # nothing is overwritten
    with pytest.raises(PrivacyError, match="found no usable ledger"):
        Ledger(tmp_path / "absent" / "ledger.sqlite")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "null",
        "[]",
        '{"phase": "train"}',
        '{"phase": "train", "noise_multiplier": "x"}',
        '{"a": 1}',
        '{"phase": "train", "noise_multiplier": -1.0}',
    ],
)
def test_a_damaged_row_stops_training(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    charge(ledger, "r1")
    ledger.close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE releases SET release = ?", (text,))
    raw.close()
    damaged = Ledger(path)
    with pytest.raises(PrivacyError):
        damaged.spent(0, delta=DELTA)
    for key in ("r1", "r2"):
        with pytest.raises(PrivacyError):
            charge(damaged, key)


def test_pages_damaged_behind_the_header_stop_training(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path, durable=False)
    for number in range(100):
        charge(ledger, str(number), release=Release("train", 100.0))
    ledger.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(bytes(content))
    with pytest.raises(PrivacyError):
        charge(Ledger(path), "new")
