"""A damaged event file is moved aside and kept; ranking goes on with a new one, and the person is told.

Only the event file is looked at. A ledger that is damaged or lost stops training instead (`shared.privacy.chain`):
events can be done without, a record of what was spent cannot.
"""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

from client.store import VERSION, Role, Store, text_of
from shared.errors import DataError
from shared.schema import EventKind

#: What SQLite adds to a file's name while it is in use. They belong to the file and move with it.
COMPANIONS = ("-wal", "-shm")

#: Bytes up to which a full check takes a fraction of a second.
FULLY_CHECKED = 4 * 1024**2

#: SQLite's words for "these bytes are no database of ours": corrupt, not a database, unknown format, missing column.
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_ERROR}
_FORM = """
SELECT tables.name, columns.name FROM sqlite_master AS tables, pragma_table_info(tables.name) AS columns
WHERE tables.type = 'table' ORDER BY tables.name, columns.name
"""
_UNREADABLE_ROW = f"""
SELECT 1 FROM events WHERE typeof(device) <> 'integer' OR typeof(seq) <> 'integer' OR typeof(item) <> 'text'
    OR typeof(time) NOT IN ('real', 'null') OR typeof(kind) <> 'integer' OR typeof(role) <> 'integer'
    OR kind NOT BETWEEN 0 AND {max(EventKind)} OR role NOT BETWEEN 0 AND {max(Role)} LIMIT 1
"""


def set_aside_if_damaged(path: Path) -> Path | None:
    """Move a damaged event file to `<name>.damaged-<UTC time>`, with its companions; where it is now, or None.

    | found | result |
    |---|---|
    | no file, or an empty one | None |
    | SQLite's check passes and every event means something | None |
    | no SQLite file, a failed check, a missing table or column, an event that means nothing | moved |
    | locked, or not readable | DataError, nothing is moved |

    The check is `PRAGMA quick_check`, and for small files `integrity_check`, which also compares indexes with tables.
    """
    if not path.exists():
        return None
    try:
        if not _damaged(path):
            return None
    except (sqlite3.Error, OSError) as error:
        raise DataError(
            f"{path}: the event store could not be checked ({error}); expected a file that this program may"
            " read; end whatever else uses it, or give it back to its owner"
        ) from None
    target = _free_name(path)
    for suffix in ("", *COMPANIONS):
        if (part := path.with_name(path.name + suffix)).exists():
            part.rename(target.with_name(target.name + suffix))
    return target


def set_aside(path: Path) -> list[Path]:
    """Every file that was ever moved aside for `path` and is still there; they hold behaviour too."""
    return sorted(path.parent.glob(f"{path.name}.damaged-*"))


def _damaged(path: Path) -> bool:
    with path.open("rb") as file:
        if max(file.read(20)[18:], default=1) > 2:  # a form that SQLite would open, and then refuse to write
            return True
    # Read-only, so that closing neither merges nor removes the companions of a file that is to be kept as it is.
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60, isolation_level=None)
    db.text_factory = text_of
    try:
        check = "integrity_check" if path.stat().st_size <= FULLY_CHECKED else "quick_check"
        if db.execute(f"PRAGMA {check}(1)").fetchall() != [("ok",)]:
            return True
        form = db.execute(_FORM).fetchall()
        if db.execute("PRAGMA user_version").fetchone()[0] == VERSION and form != Store(":memory:").read(_FORM):
            return True
        return any(table == "events" for table, _ in form) and bool(db.execute(_UNREADABLE_ROW).fetchall())
    except UnicodeDecodeError:  # the names of tables are no text any more
        return True
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _DAMAGE:
            return True
        raise
    finally:
        db.close()


def _free_name(path: Path) -> Path:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name, tries = f"{path.name}.damaged-{stamp}", 1
    while path.with_name(name).exists():
        tries += 1
        name = f"{path.name}.damaged-{stamp}-{tries}"
    return path.with_name(name)
