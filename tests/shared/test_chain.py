"""What was written stays, and whatever happens to the files is noticed. Each test walks rows of `Chain`'s tables."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import BudgetError, PrivacyError
from shared.privacy.chain import EMPTY, SCHEMA_VERSION, Chain, Head, Row, Witness

OTHER_HASH = hashlib.sha256(b"something else").hexdigest()


class Files:
    """A ledger and its witness on disk, opened anew for each use, as a restarted process would."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger, self.witness = folder / "ledger.sqlite", folder / "witness.sqlite"

    def open(self, *, witness: bool = True) -> Chain:
        return Chain(self.ledger, durable=False, witness=self.witness if witness else None)

    def append(self, *keys: str, owner: int = 0) -> None:
        with closing(self.open()) as chain:
            for key in keys:
                chain.append(owner, key=key, entry={"name": key})

    def keys(self, *, owner: int = 0, witness: bool = True) -> list[str]:
        with closing(self.open(witness=witness)) as chain:
            return [row.key for row in chain.rows(owner)]

    def raw(self, *statements: str, file: str = "ledger") -> None:
        """Change a file as someone with the sqlite3 program would: without the triggers."""
        with closing(sqlite3.connect(self.folder / f"{file}.sqlite", isolation_level=None)) as db:
            for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                db.execute(f"DROP TRIGGER {name}")
            for statement in statements:
                db.execute(statement)

    def saved(self, name: str) -> Path:
        """A copy of the ledger as it is now, with whatever lies beside it."""
        target = self.folder / name
        target.mkdir()
        for path in self.folder.glob("ledger.sqlite*"):
            shutil.copy(path, target / path.name)
        return target

    def remove(self, file: str) -> None:
        for path in self.folder.glob(f"{file}.sqlite*"):
            path.unlink()

    def restore(self, copy: Path, *, keep_wal: bool = False) -> None:
        if not keep_wal:
            self.remove("ledger")
        for path in copy.iterdir():
            shutil.copy(path, self.folder / path.name)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def refused(files: Files, reason: str, *, witness: bool = True) -> None:
    """Neither read nor appended to; and trying leaves the ledger as it was."""
    before = rows_on_disk(files)
    for use in (lambda chain: chain.rows(0), lambda chain: chain.append(0, key="new", entry={})):
        with closing(files.open(witness=witness)) as chain, pytest.raises(PrivacyError, match=reason):
            use(chain)
    assert rows_on_disk(files) == before


def rows_on_disk(files: Files) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(files.ledger)) as db:
        return db.execute("SELECT * FROM entries ORDER BY owner, seq").fetchall()


# --- an untouched chain -------------------------------------------------------------------------------------


def test_rows_come_back_in_order_and_each_hash_covers_all_before(files: Files) -> None:
    files.append("a", "b")
    first = hashlib.sha256(b"0" * 64 + b'\n0\n1\n1\na\n{"name":"a"}').hexdigest()
    second = hashlib.sha256(first.encode() + b'\n0\n2\n1\nb\n{"name":"b"}').hexdigest()
    with closing(files.open()) as chain:
        rows = chain.rows(0)
        assert rows == [Row(Head(1, first), "a", '{"name":"a"}'), Row(Head(2, second), "b", '{"name":"b"}')]
        assert rows[1].entry == {"name": "b"}
        assert chain.head(0) == Head(2, second)
        assert chain.head(5) == EMPTY
        assert chain.owners() == [0]


def test_appending_follows_its_table() -> None:
    chain = Chain(":memory:", witness=":memory:")
    seen: list[list[str]] = []

    def look(past: Sequence[Row]) -> None:
        seen.append([row.key for row in past])

    def refuse(_: object) -> None:
        raise BudgetError("too dear")

    assert chain.append(0, key="a", entry={"x": 1.5, "y": [1]}, check=look)
    assert chain.append(0, key="b", entry={}, check=look)
    assert seen == [[], ["a"]]
    assert chain.append(0, key="a", entry={"y": [1], "x": 1.5}, check=refuse) is False
    for key, entry, check, reason in (
        ("c", {}, refuse, "too dear"),
        ("a", {"x": 2.5, "y": [1]}, look, "charged with another release; use a fresh key"),
        ("c", {"x": float("nan")}, look, "not JSON"),
        ("c", {"x": {1}}, look, "not JSON"),
    ):
        with pytest.raises(PrivacyError, match=reason):
            chain.append(0, key=key, entry=entry, check=check)
    assert [row.key for row in chain.rows(0)] == ["a", "b"]
    assert chain.append(0, key="c", entry={})  # usable after each refusal


def test_owners_have_chains_of_their_own(files: Files) -> None:
    files.append("same", owner=1)
    files.append("same", "more", owner=2)
    assert (files.keys(owner=1), files.keys(owner=2), files.keys(owner=3)) == (["same"], ["same", "more"], [])
    files.raw("UPDATE entries SET entry = '{}' WHERE owner = 1")
    assert files.keys(owner=2) == ["same", "more"]
    with pytest.raises(PrivacyError, match="row 1 of the ledger"):
        files.keys(owner=1)


def test_the_tables_refuse_what_is_not_an_append(files: Files) -> None:
    files.append("a")
    with closing(sqlite3.connect(files.ledger)) as db:
        for statement in ("UPDATE entries SET entry = '{}'", "DELETE FROM entries"):
            with pytest.raises(sqlite3.IntegrityError, match="only appended to"):
                db.execute(statement)


def test_a_head_is_required_to_be_in_the_chain(files: Files) -> None:
    files.append("a", "b")
    with closing(files.open()) as chain:
        for head in (EMPTY, *(row.head for row in chain.rows(0))):
            chain.require(0, head)
        for owner, head, reason in (
            (0, Head(3, OTHER_HASH), "the ledger is behind: it ends at row 2 and 3 were written"),
            (0, Head(2, OTHER_HASH), "row 2 of the ledger is not the one that was written"),
            (0, Head(0, OTHER_HASH), "row 0 of the ledger is not"),
            (9, Head(1, OTHER_HASH), "the ledger is lost"),
        ):
            with pytest.raises(PrivacyError, match=reason):
                chain.require(owner, head)


@pytest.mark.parametrize("values", [(-1, OTHER_HASH), ("1", OTHER_HASH), (True, OTHER_HASH), (1, "ab"), (1, None)])
def test_a_head_from_a_damaged_file_is_refused(values: tuple[object, object]) -> None:
    with pytest.raises(PrivacyError, match="as the head of a ledger"):
        Head(*values)  # type: ignore[arg-type]


# --- a changed ledger ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("UPDATE entries SET entry = '{}' WHERE seq = 2", "row 2 .* edited, removed or moved"),
        ("UPDATE entries SET entry = entry || ' ' WHERE seq = 3", "row 3 .* edited"),
        ("UPDATE entries SET entry = x'ff00' WHERE seq = 3", "row 3 .* edited|damaged ledger"),
        ("UPDATE entries SET entry = CAST(x'ff' AS TEXT) WHERE seq = 3", "damaged ledger"),
        ("UPDATE entries SET key = 'z' WHERE seq = 1", "row 1 .* edited"),
        (f"UPDATE entries SET hash = '{OTHER_HASH}' WHERE seq = 4", "row 4 .* edited"),
        ("UPDATE entries SET seq = 9 WHERE seq = 4", "row 4 .* edited"),
        ("UPDATE entries SET owner = 1 WHERE seq = 4", "the ledger is behind: it ends at row 3 and 4"),
        ("DELETE FROM entries WHERE seq = 1", "row 1 .* removed"),
        ("DELETE FROM entries WHERE seq = 3", "row 3 .* removed"),
        ("DELETE FROM entries WHERE seq = 4", "the ledger is behind: it ends at row 3 and 4 were written"),
        ("DELETE FROM entries WHERE seq > 1", "the ledger is behind: it ends at row 1 and 4"),
        ("DELETE FROM entries", "the ledger is lost: it is empty and 4 rows were written"),
        ("DROP TABLE entries", "the ledger is lost"),
    ],
)
def test_a_changed_ledger_is_refused_and_the_first_bad_row_named(files: Files, statement: str, reason: str) -> None:
    files.append("a", "b", "c", "d")
    files.raw(statement)
    with closing(files.open()) as chain:
        for use in (lambda: chain.rows(0), lambda: chain.append(0, key="new", entry={}), lambda: chain.head(0)):
            with pytest.raises(PrivacyError, match=reason):
                use()


def test_two_rows_that_change_places_are_found(files: Files) -> None:
    files.append("a", "b", "c", "d")
    files.raw(
        "UPDATE entries SET seq = 99 WHERE seq = 2",
        "UPDATE entries SET seq = 2 WHERE seq = 3",
        "UPDATE entries SET seq = 3 WHERE seq = 99",
    )
    refused(files, "row 2 .* moved")


def test_a_chain_worked_out_again_is_found_by_the_witness(files: Files, tmp_path: Path) -> None:
    files.append("a", "b")
    (tmp_path / "other").mkdir()
    forged = Files(tmp_path / "other")
    forged.append("a", "cheaper", "more")
    files.restore(forged.saved("copy"))
    assert files.keys(witness=False) == ["a", "cheaper", "more"]  # whole in itself
    refused(files, "row 2 of the ledger is not the one that was written: another ledger, or a rewritten one")


FIELDS: dict[str, st.SearchStrategy[object]] = {
    "owner": st.integers(-3, 3),
    "seq": st.integers(-3, 9),
    "key": st.text(max_size=3),
    "entry": st.text(max_size=9) | st.just('{"name":"b"}') | st.binary(max_size=3),
    "hash": st.text(max_size=64) | st.sampled_from([OTHER_HASH, EMPTY.hash]),
}


@pytest.fixture(scope="module")
def whole() -> Iterator[Files]:
    with tempfile.TemporaryDirectory() as folder:
        files = Files(Path(folder))
        files.append("a", "b", "c")
        files.append("a", owner=1)
        files.raw()  # no triggers from here on
        yield files


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_change_of_any_field_is_found(whole: Files, data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(sorted(FIELDS)))
    row, value = data.draw(st.integers(1, 3)), data.draw(FIELDS[field])
    with closing(whole.open()) as chain:
        db = chain._db  # the same connection, so that a rollback undoes the change
        db.execute("BEGIN")
        (old,) = db.execute(f"SELECT {field} FROM entries WHERE owner = 0 AND seq = ?", (row,)).fetchone()
        try:
            db.execute(f"UPDATE OR REPLACE entries SET {field} = ? WHERE owner = 0 AND seq = ?", (value, row))
            if value == old:
                assert len(chain.rows(0)) == 3
            else:
                with pytest.raises(PrivacyError):
                    chain.rows(0)
        finally:
            db.execute("ROLLBACK")


# --- files put back, lost or replaced -----------------------------------------------------------------------


@pytest.mark.parametrize("keep_wal", [False, True])
def test_an_old_copy_of_the_ledger_is_behind(files: Files, keep_wal: bool) -> None:
    files.append("a", "b")
    copy = files.saved("backup")
    files.append("c")
    files.restore(copy, keep_wal=keep_wal)
    refused(files, "the ledger is behind: it ends at row 2 and 3 were written, so a backup was restored")


def test_an_old_copy_beside_a_newer_write_ahead_log_never_loses_a_row_unnoticed(files: Files) -> None:
    files.append("a", "b")
    copy = files.saved("backup")
    running = files.open()  # its write-ahead log stays, as after a kill
    running.append(0, key="c", entry={})
    newer = files.saved("killed")
    running.close()
    files.restore(newer)
    files.restore(copy, keep_wal=True)
    assert (files.folder / "ledger.sqlite-wal").stat().st_size
    try:
        assert files.keys() == ["a", "b", "c"]  # SQLite replays the log
    except PrivacyError:
        refused(files, "behind|damaged|row")


def test_the_newest_ledger_put_back_is_accepted_again(files: Files) -> None:
    files.append("a")
    old = files.saved("old")
    files.append("b")
    newest = files.saved("newest")
    files.restore(old)
    refused(files, "until the newest ledger file is put back")
    files.restore(newest)
    files.append("c")
    assert files.keys() == ["a", "b", "c"]


@pytest.mark.parametrize("how", ["deleted", "emptied"])
def test_a_lost_ledger_stays_lost(files: Files, how: str) -> None:
    files.append("a", "b")
    files.remove("ledger")
    if how == "emptied":
        files.ledger.touch()
    refused_when_lost = "the ledger is lost: it is empty and 2 rows were written. No more training .* ranking goes on"
    for _ in range(2):  # opening makes a new file, which is no way out
        with closing(files.open()) as chain:
            with pytest.raises(PrivacyError, match=refused_when_lost):
                chain.append(0, key="c", entry={})
            with pytest.raises(PrivacyError, match="begin a new ledger and witness with data that was never used"):
                chain.rows(0)
            assert chain.rows(1) == []  # an owner nobody has seen


def test_a_lost_witness_is_made_again(files: Files) -> None:
    files.append("a", "b")
    files.remove("witness")
    assert files.keys() == ["a", "b"]  # a read is enough
    files.raw("DELETE FROM entries WHERE seq = 2")
    refused(files, "the ledger is behind")


def test_what_the_two_files_alone_cannot_notice_a_head_kept_elsewhere_does(files: Files) -> None:
    files.append("a", "b")
    with closing(files.open()) as chain:
        kept = chain.head(0)
    files.remove("ledger")
    files.remove("witness")
    files.append("a")
    with closing(files.open()) as chain, pytest.raises(PrivacyError, match="the ledger is behind"):
        chain.require(0, kept)


@pytest.mark.parametrize("file", ["ledger", "witness"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(files: Files, file: str) -> None:
    files.append("a")
    files.remove(file)
    junk = b"this is no database" * 100
    (files.folder / f"{file}.sqlite").write_bytes(junk)
    with pytest.raises(PrivacyError, match=f"{file}.sqlite: found no usable ledger"):
        files.open()
    assert (files.folder / f"{file}.sqlite").read_bytes() == junk


@pytest.mark.parametrize("file", ["ledger", "witness"])
def test_a_newer_schema_is_refused(files: Files, file: str) -> None:
    files.append("a")
    files.raw(f"PRAGMA user_version = {SCHEMA_VERSION + 1}", file=file)
    with pytest.raises(PrivacyError, match=f"{file}.sqlite: found ledger schema 2; expected 1 or older"):
        files.open()


def test_another_database_is_refused(files: Files) -> None:
    with closing(sqlite3.connect(files.ledger)) as db:
        db.execute("CREATE TABLE releases (device INTEGER)")
    with pytest.raises(PrivacyError, match="found another kind of database"):
        files.open()
    files.remove("ledger")
    with pytest.raises(PrivacyError, match="found another kind of database"):
        Chain(files.ledger, witness=files.ledger)


def test_a_damaged_witness_stops_the_ledger(files: Files) -> None:
    files.append("a")
    for statement in ("UPDATE heads SET hash = 'x'", "UPDATE heads SET seq = 'x'", "ALTER TABLE heads RENAME TO h"):
        files.raw(statement, file="witness")
        refused(files, "as the head of a ledger|damaged")


def test_a_witness_only_moves_forward(tmp_path: Path) -> None:
    with closing(Witness(tmp_path / "witness.sqlite", durable=False)) as witness:
        for seq in (1, 3, 2, 3):  # a slower process reports last
            witness.record(0, Head(seq, f"{seq:064d}"))
        assert witness.head(0) == Head(3, f"{3:064d}")


@pytest.mark.parametrize(("durable", "synchronous"), [(True, 2), (False, 0)])
def test_only_a_durable_ledger_waits_for_the_disk(files: Files, durable: bool, synchronous: int) -> None:
    """2 is FULL: in WAL mode every commit is fsynced before it returns (sqlite.org/pragma.html#pragma_synchronous)."""
    with closing(Chain(files.ledger, durable=durable, witness=files.witness)) as chain:
        for db in (chain._db, chain._witness._db):  # type: ignore[union-attr]
            assert db.execute("PRAGMA synchronous").fetchone() == (synchronous,)
            assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("folder", ["ledger", "witness"])
def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, folder: str) -> None:
    paths = {"ledger": tmp_path / "a.sqlite", "witness": tmp_path / "b.sqlite"} | {folder: tmp_path / "no" / "c.sqlite"}
    with pytest.raises(PrivacyError, match="found no usable ledger"):
        Chain(paths["ledger"], witness=paths["witness"])


# --- killed, full, shared -----------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from shared.privacy import chain
ledger = chain.Chain(sys.argv[1], witness=sys.argv[2])
ledger.append(0, key="a", entry={})
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "before the witness":
    chain.Witness.record = die
ledger.append(0, key="b", entry={}, check=die if sys.argv[3] == "before the row" else lambda past: None)
die()
"""


@pytest.mark.parametrize(
    ("moment", "keys"), [("before the row", ["a"]), ("before the witness", ["a", "b"]), ("at the end", ["a", "b"])]
)
def test_a_kill_at_any_moment_leaves_a_ledger_that_goes_on(files: Files, moment: str, keys: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, files.ledger, files.witness, moment], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert files.keys() == keys
    files.raw("DELETE FROM entries WHERE seq = (SELECT max(seq) FROM entries)")
    refused(files, "behind|lost")  # the read has mended the witness


def test_a_row_whose_witness_could_not_be_written_counts(files: Files) -> None:
    files.append("a")
    with closing(files.open()) as chain:
        chain._witness._db.execute("PRAGMA query_only = ON")  # type: ignore[union-attr]
        with pytest.raises(PrivacyError, match=r"witness of the ledger could not be written .* nothing is released"):
            chain.append(0, key="b", entry={})
    assert files.keys() == ["a", "b"]
    with closing(files.open()) as chain:
        assert chain.append(0, key="b", entry={}) is False  # asked again, it is not charged again


def test_on_a_full_disk_nothing_is_written_and_the_error_says_so(files: Files) -> None:
    files.append("a")
    with closing(files.open()) as chain:
        (pages,) = chain._db.execute("PRAGMA page_count").fetchone()
        chain._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(PrivacyError, match=r"could not be written .*full.*, so nothing is released"):
            chain.append(0, key="b", entry={"text": "x" * 10_000})
        assert [row.key for row in chain.rows(0)] == ["a"]
        assert chain.append(0, key="c", entry={})  # what fits is still written
    assert files.keys() == ["a", "c"]


def test_a_read_only_ledger_is_not_charged(files: Files) -> None:
    files.append("a")
    with closing(files.open()) as chain:
        chain._db.execute("PRAGMA query_only = ON")
        with pytest.raises(PrivacyError, match="could not be written"):
            chain.append(0, key="b", entry={})
    assert files.keys() == ["a"]


SHARED = """
import sys
from shared.errors import BudgetError
from shared.privacy.chain import Chain
def at_most_sixty(past):
    if len(past) >= 60:
        raise BudgetError("enough")
ledger = Chain(sys.argv[1], witness=sys.argv[2], durable=False)
for number in range(40):
    try:
        ledger.append(0, key=f"{sys.argv[3]}-{number}", entry={}, check=at_most_sixty)
    except BudgetError:
        break
    ledger.rows(0)
"""


def test_processes_that_append_at_once_keep_one_chain_and_one_limit(files: Files) -> None:
    """Three processes make the file together, want 120 rows and get 60; no reader takes a fresh row for a lost one."""
    command = [sys.executable, "-c", SHARED, str(files.ledger), str(files.witness)]
    running = [subprocess.Popen([*command, name], stderr=subprocess.PIPE) for name in "xyz"]
    assert [(process.communicate()[1], process.returncode) for process in running] == [(b"", 0)] * 3
    assert len(files.keys()) == 60


def test_an_append_that_is_slow_to_check_holds_the_others_off(files: Files) -> None:
    chain, other = files.open(), files.open()
    other._db.execute("PRAGMA busy_timeout = 20")
    reached = []

    def meanwhile(_: object) -> None:
        with pytest.raises(PrivacyError, match=r"could not be written \(database is locked\)"):
            other.append(0, key="b", entry={})
        assert other.rows(0) == []
        reached.append("the check")

    assert chain.append(0, key="a", entry={}, check=meanwhile)
    assert reached == ["the check"]
    assert [row.key for row in other.rows(0)] == ["a"]
    for opened in (chain, other):
        opened.close()
