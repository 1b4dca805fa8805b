"""A person's data out of their device, in formats that any program reads, and from files into it.

Nothing of what is exported is ever sent; whoever holds the export holds the person's behaviour.
"""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from client.door.sent import read_sent
from client.events import unknown_item
from client.intake import import_history
from client.journal import Journal
from client.profile import Preferences, Profile
from client.store import Role, Row, Store
from shared.artifacts import load_catalogue, save_catalogue
from shared.catalogue import Catalogue
from shared.datasets.columns import LATEST_SECONDS
from shared.errors import DataError, PrivacyError
from shared.privacy.chain import Chain
from shared.schema import EventKind

#: Seconds UTC at the beginning of the year 1.
FIRST_DATE = -62_135_596_800
#: The name that events.csv gives the person, whom a device does not know by any other.
SELF = "me"

_README = """Your data from homerank, profile "{name}", exported {time}.

This folder holds everything this device keeps about you. It has not been sent anywhere; keep it as private as a diary.

events.jsonl         {events} events, oldest first, one JSON object a line: seq (its number), item and title, time
                     (seconds since 1970, UTC) and timestamp (the same as a date; none where it is not known), kind,
                     value (a rating or amount), role (train: may be learned from; validate: held out to compare
                     adapters; history: came after that one).
history/events.csv   the same events as a table: user, item, timestamp (empty everywhere if one is not known), kind,
                     value.
history/items.csv    the items in it: item, title, text. The folder `history` can be imported again: into a profile
                     that has the catalogue, or into an empty one, which then knows no other items.
interests.json       interests: tags you muted (0) or boosted (above 1). verdicts: items you did not want. attributes:
                     what the device was told about you.
settings.json        your choices, such as whether this device takes part in training.
sent.jsonl           what left this device, newest first: when, to which run, how long, its SHA-256 or the code that
                     was sent instead, and by how much the ledger grew.
ledger.jsonl         what this device released about you, oldest first, each with the noise that protected it. {ledger}
personal.safetensors what was learned for you alone: arrays in the open safetensors format. {personal}
"""
#: More rows than a log can hold.
EVERYTHING = 2**31
_NONE_HERE = "There is none yet, so the file is missing."


@dataclass(frozen=True)
class Exported:
    """Where an export is, and how many events and ledger rows are in it. complete: whether the ledger could be read."""

    path: Path
    events: int
    ledger_rows: int
    complete: bool


def export(profile: Profile, journal: Journal, target: Path) -> Exported:
    """Write all of a person's data to a new folder, or to one file where `target` ends in .zip; whole or not at all.

    journal: the profile's, opened. The folder gets mode 0700, files 0600. A ledger that cannot be read is left out, and
    README.txt says so: it must not keep the rest from its owner. Raises DataError when there is something at `target`
    already, or it cannot be written.
    """
    target = target.expanduser().absolute()
    if target.exists():
        raise DataError(f"{target}: found something there; expected a new folder or file; choose another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=target.parent) as scratch:  # mode 0700
            folder = Path(scratch) / "homerank-export"
            done = _write_all(profile, journal, folder)
            made = folder
            if target.suffix == ".zip":
                made = _zipped(folder, Path(scratch) / "export.zip")
            made.rename(target)
    except OSError as error:
        raise DataError(f"{target}: could not be written ({error.strerror or error}); nothing was exported") from None
    return Exported(target, *done)


def import_data(profile: Profile, data: Path, *, user: str | None = None) -> int:
    """Fill a profile without events from a data folder (formats of docs/data.md); number of events.

    user: whose history it is, when the folder has several people. A profile without a catalogue takes the folder's; one
    with a catalogue keeps it, since its adapter belongs to it, and every event must be on one of its items. Roles as
    `client.intake` gives them. Events are only added to an empty profile, because older ones between the ones that are
    there would move these to other training windows.

    Raises DataError and CatalogueError; the profile is as it was then.
    """
    profile.cache.mkdir(exist_ok=True, mode=0o700)
    with TemporaryDirectory(prefix="import-", dir=profile.cache) as scratch:
        store, items = Path(scratch) / "events.sqlite", Path(scratch) / "items.jsonl"
        count = import_history(data, user=user, store=store, catalogue=items)
        offered = load_catalogue(items)
        source = Store(store)
        rows = cast("list[Row]", source.read("SELECT * FROM events ORDER BY seq"))
        about = source.attributes()
        source.close()
        catalogue = load_catalogue(profile.catalogue) if profile.catalogue.exists() else offered
        if strange := [item for _, _, item, *_ in rows if item not in catalogue]:
            raise DataError(
                f"{data}: {len(strange)} of {count} events are on items that this profile's catalogue does not have;"
                f" {unknown_item(strange[0], catalogue)}. Import into a new profile"
            )
        journal = profile.journal(catalogue)
        try:
            if journal.store.count():
                raise DataError(f"{profile.events}: found events already; forget them first, or use another profile")
            if catalogue is offered:
                save_catalogue(catalogue, profile.catalogue)  # first: a profile with events has its catalogue
                profile.catalogue.chmod(0o600)
            journal.store.set_attributes(about)
            journal.store.replace(rows)
        finally:
            journal.close()
    return count


def _write_all(profile: Profile, journal: Journal, folder: Path) -> tuple[int, int, bool]:
    """All files of an export; events, ledger rows, and whether the ledger could be read."""
    (folder / "history").mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)
    events = _write_events(journal, folder)
    _write_json(folder / "interests.json", _interests(journal))
    if profile.settings.exists():
        shutil.copyfile(profile.settings, folder / "settings.json")  # as it is, even damaged
    else:
        _write_json(folder / "settings.json", asdict(Preferences()))
    rows, problem = _ledger_rows(profile)
    _write_lines(folder / "ledger.jsonl", rows)
    sent = read_sent(profile.sent, EVERYTHING)[0] if profile.sent.exists() else []
    _write_lines(folder / "sent.jsonl", [{"id": number, **asdict(one)} for number, one in sent])
    personal = _NONE_HERE
    if profile.personal.exists():
        shutil.copyfile(profile.personal, folder / profile.personal.name)
        personal = ""
    text = _README.format(
        name=profile.name,
        time=_date(datetime.now(UTC).timestamp()),
        events=events,
        ledger=f"IT COULD NOT BE READ: {problem}" if problem else "",
        personal=personal,
    )
    (folder / "README.txt").write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", encoding="utf-8")
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return events, len(rows), not problem


def _write_events(journal: Journal, folder: Path) -> int:
    """events.jsonl and the two tables of history/; number of events."""
    catalogue, count, met = journal.catalogue, 0, dict[str, tuple[str, str]]()
    timed = not journal.store.read("SELECT 1 FROM events WHERE device = 0 AND time IS NULL LIMIT 1")
    with (
        (folder / "events.jsonl").open("w", encoding="utf-8") as lines,
        (folder / "history" / "events.csv").open("w", encoding="utf-8", newline="") as cells,
    ):
        table = csv.writer(cells)
        table.writerow(("user", "item", "timestamp", "kind", "value"))
        for _, seq, item, time, kind, role, value in journal.rows():
            if item not in met:
                met[item] = _described(catalogue, item)
            event = {"seq": seq, "item": item, "title": met[item][0], "time": time, "timestamp": _date(time)}
            said = {"kind": EventKind(kind).label, "value": value, "role": Role(role).name.lower()}
            lines.write(json.dumps({**event, **said}, ensure_ascii=False) + "\n")
            table.writerow((SELF, item, time if timed else "", said["kind"], "" if value is None else value))
            count += 1
    with (folder / "history" / "items.csv").open("w", encoding="utf-8", newline="") as cells:
        table = csv.writer(cells)
        table.writerow(("item", "title", "text"))
        table.writerows((item, *words) for item, words in met.items())
    return count


def _described(catalogue: Catalogue, item: str) -> tuple[str, str]:
    """Title and text of an item; its id where the catalogue does not have it any more."""
    if item not in catalogue:
        return item, ""
    known = catalogue.items[catalogue.index(item)]
    return known.title, known.text


def _interests(journal: Journal) -> dict[str, Any]:
    return {
        "interests": journal.interests(),
        "verdicts": [
            {"item": item, "verdict": verdict.value, "time": time, "timestamp": _date(time)}
            for item, verdict, time in journal.verdicts()
        ],
        "attributes": {name: value for device, name, value in journal.store.attributes() if device == 0},
    }


def _ledger_rows(profile: Profile) -> tuple[list[dict[str, Any]], str]:
    """The rows of the ledger, and why they could not be read if so."""
    if not profile.ledger.exists():
        return [], ""
    try:
        chain = Chain(profile.ledger, witness=profile.witness)
        try:
            rows = chain.rows(0)
        finally:
            chain.close()
    except PrivacyError as error:
        return [], str(error)
    return [{"seq": row.head.seq, "key": row.key, "hash": row.head.hash, **row.entry} for row in rows], ""


def _zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", compression=zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    path.chmod(0o600)
    return path


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _date(time: float | None) -> str | None:
    """Seconds UTC as ISO 8601, for people; None for what is no date of the calendar either."""
    if time is None or not FIRST_DATE <= time < LATEST_SECONDS:
        return None
    return datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
