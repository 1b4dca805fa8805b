"""The server writes every run and every release down first. `ServerLedger.charge`'s table, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from server.ledger import ServerLedger
from shared.errors import PrivacyError
from shared.privacy.accounting import Release
from shared.privacy.chain import EMPTY, Head

EVENT, USER = Release("train", 2.0), Release("train", 3.0, 0.1, 2, unit="user")
FACTS: dict[str, Any] = {
    "releases": [asdict(EVENT), asdict(USER)],
    "cohort": 64,
    "asked": 60,
    "trust": "aggregate",
    "sampling": "poisson",
    "sample_rate": 0.1,
    "mechanism": "gaussian",
}


@pytest.fixture
def ledger() -> Iterator[ServerLedger]:
    with closing(ServerLedger(":memory:", durable=False)) as opened:
        yield opened


def charge(ledger: ServerLedger, round: int, *, run: str = "first", phase: str = "train", **changed: Any) -> Head:
    return ledger.charge(run=run, phase=phase, round=round, facts={**FACTS, **changed})


def test_runs_and_releases_are_read_back_in_order(ledger: ServerLedger) -> None:
    assert (ledger.entries(), ledger.runs(), ledger.head()) == ([], [], EMPTY)
    assert ledger.open_run("first", {"devices": 600, "settings": "ab12"}).seq == 1
    assert charge(ledger, 1).seq == 2
    assert charge(ledger, 1, phase="validate").seq == 3
    assert charge(ledger, 1, run="second", releases=[asdict(USER)]).seq == 4
    assert charge(ledger, 2) == ledger.head()
    assert ledger.runs() == ["first", "second"]
    assert ledger.entries()[0] == {"kind": "run", "run": "first", "facts": {"devices": 600, "settings": "ab12"}}
    assert ledger.entries()[1] == {"kind": "release", "run": "first", "phase": "train", "round": 1, "facts": FACTS}
    assert ledger.releases("first") == [EVENT, USER] * 3
    assert ledger.releases("second") == [USER]
    assert ledger.releases("third") == []
    assert ledger.releases() == [EVENT, USER, EVENT, USER, USER, EVENT, USER]


def test_a_round_is_charged_once_however_often_it_is_tried(ledger: ServerLedger) -> None:
    first = charge(ledger, 1)
    assert charge(ledger, 1) == first
    newest = charge(ledger, 1, run="second")
    assert charge(ledger, 1) == newest  # still the newest of its own run
    for changed in ({"cohort": 65}, {"releases": [asdict(EVENT)]}, {"more": 1}):
        with pytest.raises(PrivacyError, match="charged with another release"):
            charge(ledger, 1, **changed)
    assert ledger.head() == newest


def test_an_old_checkpoint_cannot_release_a_round_again(ledger: ServerLedger) -> None:
    for number in (1, 2, 3):
        newest = charge(ledger, number)
    assert charge(ledger, 3) == newest
    for number in (1, 2):
        with pytest.raises(PrivacyError, match=f"behind its ledger: train round {number} .* after it train round 3"):
            charge(ledger, number)
    assert ledger.head() == newest


def test_names_do_not_run_into_each_other(ledger: ServerLedger) -> None:
    charge(ledger, 1, run='a", "train', phase="b")
    charge(ledger, 1, run="a", phase='train", "b')
    ledger.open_run("a", {})
    assert ledger.head().seq == 3


@pytest.mark.parametrize(
    "releases", [None, [], "x", [{}], [{"phase": "train"}], [{"phase": "train", "noise_multiplier": 0.0}], [EVENT]]
)
def test_a_charge_without_readable_releases_is_refused(ledger: ServerLedger, releases: object) -> None:
    with pytest.raises(PrivacyError):
        charge(ledger, 1, releases=releases)
    assert ledger.entries() == []


def test_a_run_is_opened_once(ledger: ServerLedger) -> None:
    ledger.open_run("first", {"devices": 600})
    ledger.open_run("first", {"devices": 600})
    assert len(ledger.entries()) == 1
    with pytest.raises(PrivacyError, match=r"first in the ledger with other settings or devices; .* \(--out\)"):
        ledger.open_run("first", {"devices": 6})
    ledger.open_run("first", {"devices": 600})
    ledger.open_run("second", {"devices": 6})
    assert [entry["facts"]["devices"] for entry in ledger.entries()] == [600, 6]


@pytest.mark.parametrize("put_back", ["the ledger", "both files"])
def test_a_checkpoint_ahead_of_its_ledger_is_refused(tmp_path: Path, put_back: str) -> None:
    path, witness = tmp_path / "ledger.sqlite", tmp_path / "witness.sqlite"
    with closing(ServerLedger(path, witness=witness)) as ledger:
        early = charge(ledger, 1)
    old = {file: file.read_bytes() for file in (path, witness)}
    with closing(ServerLedger(path, witness=witness)) as ledger:
        late = charge(ledger, 2)
        for head in (EMPTY, early, late):
            ledger.require(head)
    for file in [path] if put_back == "the ledger" else [path, witness]:
        file.write_bytes(old[file])
    behind = pytest.raises(PrivacyError, match="the ledger is behind: it ends at row 1 and 2 were written")
    with closing(ServerLedger(path, witness=witness)) as ledger, behind:
        ledger.require(late)


def test_a_checkpoint_of_another_ledger_is_refused(ledger: ServerLedger) -> None:
    with closing(ServerLedger(":memory:")) as other:
        charge(ledger, 1)
        with pytest.raises(PrivacyError, match="another ledger, or a rewritten one"):
            ledger.require(charge(other, 1, cohort=5))
