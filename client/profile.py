"""The people of one machine: each has a folder, and nothing in it is shared with another.

::

    HOME/profiles/NAME/           0700, every file in it 0600
      events.sqlite               what the person did, and how they edited their interests (`client.journal`)
      events.sqlite.damaged-TIME  an earlier one that could not be read any more (`client.quarantine`)
      ledger.sqlite, .witness     what was spent; survives everything else here
      sent.sqlite                 what left this device (`client.door.sent`); survives forgetting too
      door.lock                   held by the process that serves the training socket (`client.door.lock`)
      settings.json               `Preferences`
      items.jsonl                 the catalogue, public
      publisher.json              whom releases are taken from, and releases.json: how far (`client.publisher`)
      adapter/, adapter.previous/ the global adapter and the one before it, public
      personal.safetensors        what was learned for this person alone
      cache/                      what was computed from events or queries and can be computed again
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from client.erasure import Forgotten
from client.journal import Journal
from client.quarantine import set_aside
from shared.artifacts import write_atomic
from shared.catalogue import Catalogue
from shared.datasets.columns import suggestion
from shared.errors import ConfigError
from shared.privacy.ledger import Ledger

SETTINGS_SCHEMA = 1
MAX_COUNT = 1_000_000_000
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,30}[a-z0-9])?")


@dataclass(frozen=True)
class Preferences:
    """What a person chose. ConfigError for a value of another type or range.

    participate: whether this device takes part in training. tail, diversity, calibration, freshness, exploration: how
    strongly each shapes the slate, from 0 (off) to 1. per_tag_cap, per_creator_cap: most items of one tag or creator in
    a slate, 0 for any number. personal: mix the parts of a score by weights learned from this person's own events, here
    and for here only. retention_events, retention_days: what `Journal.retain` keeps at most, 0 for everything.
    """

    participate: bool = True
    tail: float = 0.0
    diversity: float = 0.0
    calibration: float = 0.0
    freshness: float = 0.0
    exploration: float = 0.0
    per_tag_cap: int = 0
    per_creator_cap: int = 0
    retention_events: int = 0
    retention_days: int = 0
    personal: bool = False

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.type == "bool":
                good, expected = isinstance(value, bool), "true or false"
            elif setting.type == "int":
                good = type(value) is int and 0 <= value <= MAX_COUNT
                expected = f"a whole number from 0 (off) to {MAX_COUNT}"
            else:
                good, expected = type(value) in (int, float) and 0 <= value <= 1, "a number from 0 (off) to 1"
            if not good:
                raise ConfigError(f"settings.{setting.name}: found {str(value)[:60]!r}; expected {expected}")
            if setting.type == "float":
                object.__setattr__(self, setting.name, float(value))

    def changed(self, values: Mapping[str, Any]) -> Preferences:
        """These preferences with some values replaced. ConfigError for an unknown name, with the closest one."""
        known = asdict(self)
        for name in values:
            if name not in known:
                hint = suggestion(name[:60], list(known))
                raise ConfigError(f"settings: found {name[:60]!r}; expected {', '.join(known)}. {hint}".rstrip())
        return Preferences(**{**known, **values})


@dataclass(frozen=True)
class Profile:
    """One person's folder; `Profile.open` makes it."""

    folder: Path

    @classmethod
    def open(cls, home: Path, name: str = "default") -> Profile:
        """The profile of that name under HOME, made when missing, with all modes set.

        Raises ConfigError for a name that is not 1 to 32 small letters, digits, "-" or "_" (capitals would be another
        folder on one file system and the same on the next), or a folder or file that leads to another place by a link,
        by which two people would share a store or a ledger.
        """
        check_name(name)
        home = home.expanduser().resolve()
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        profile = cls(home / "profiles" / name)
        for folder in (profile.folder.parent, profile.folder):
            folder.mkdir(exist_ok=True, mode=0o700)
        for path in (profile.folder.parent, profile.folder, *profile.folder.rglob("*")):
            with suppress(FileNotFoundError):  # SQLite's companions come and go
                _make_private(path)
        return profile

    @property
    def name(self) -> str:
        """The profile's name."""
        return self.folder.name

    @property
    def events(self) -> Path:
        """The event store."""
        return self.folder / "events.sqlite"

    @property
    def ledger(self) -> Path:
        """What was spent."""
        return self.folder / "ledger.sqlite"

    @property
    def witness(self) -> Path:
        """How far the ledger went."""
        return self.folder / "ledger.witness"

    @property
    def sent(self) -> Path:
        """What left this device."""
        return self.folder / "sent.sqlite"

    @property
    def settings(self) -> Path:
        """The person's preferences."""
        return self.folder / "settings.json"

    @property
    def catalogue(self) -> Path:
        """Items of the deployment or of the import, as `shared.artifacts.save_catalogue` writes them."""
        return self.folder / "items.jsonl"

    @property
    def adapter(self) -> Path:
        """Folder of the global adapter."""
        return self.folder / "adapter"

    @property
    def personal(self) -> Path:
        """What was learned for this person alone; never sent."""
        return self.folder / "personal.safetensors"

    @property
    def cache(self) -> Path:
        """Folder for everything else that depends on the person and can be computed again."""
        return self.folder / "cache"

    def journal(self, catalogue: Catalogue) -> Journal:
        """The person's events; see its `quarantined`."""
        return Journal(self.events, catalogue)

    def open_ledger(self) -> Ledger:
        """This person's own ledger. PrivacyError as for any ledger that is damaged, lost or behind."""
        for path in (self.ledger, self.witness):
            path.touch(mode=0o600)
        return Ledger(self.ledger, witness=self.witness)

    def preferences(self) -> Preferences:
        """What the person chose; the defaults where nothing is stored yet.

        ConfigError when settings.json is damaged: a person who paused taking part must not be back by accident.
        """
        try:
            stored = json.loads(self.settings.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return Preferences()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.settings}: found no usable settings ({error}); mend or remove the file") from None
        if not isinstance(stored, dict) or stored.pop("schema", None) != SETTINGS_SCHEMA:
            raise ConfigError(
                f"{self.settings}: found other settings; expected schema {SETTINGS_SCHEMA}; update homerank or remove"
                " the file"
            )
        return Preferences().changed(stored)

    def save_preferences(self, preferences: Preferences) -> None:
        """Replace settings.json, whole or not at all. RunError when it cannot be written."""
        text = json.dumps({"schema": SETTINGS_SCHEMA, **asdict(preferences)}, indent=2)
        write_atomic(self.settings, (text + "\n").encode(), private=True)

    def forget(self, journal: Journal) -> Forgotten:
        """Wipe what is known about the person and prove it: `Journal.forget`, and every file that holds behaviour.

        Those are the personal part, the cache, and event files that were moved aside as damaged. Settings stay, so that
        somebody who paused taking part does not take part again. The ledger stays, because what earlier rounds gave
        away they have given away: a ledger at zero would promise a second budget for the same person. The log of what
        left the device stays with it; neither holds behaviour.
        """
        removed = []
        for path in (self.personal, self.cache, *set_aside(self.events)):
            if path.is_dir():
                shutil.rmtree(path)
            elif path.exists():
                path.unlink()
            else:
                continue
            removed.append(path.name)
        found = journal.forget()
        return Forgotten(found.before, found.after, found.searched, files=tuple(removed))


def check_name(name: str) -> None:
    """ConfigError for what is no name of a profile."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"profile: found {name[:60]!r}; expected 1 to 32 of a-z, 0-9, - and _, a letter or digit at both ends"
        )


def profiles(home: Path) -> list[str]:
    """Names of the profiles under HOME, in order."""
    folder = home.expanduser() / "profiles"
    return sorted(path.name for path in folder.glob("*") if path.is_dir() and _NAME.fullmatch(path.name))


def _make_private(path: Path) -> None:
    """Close a path to everybody else. A link is refused: what it leads to may be another person's."""
    if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):
        raise ConfigError(
            f"{path}: found a link; expected a file of this profile alone; replace it with a copy, or remove it"
        )
    path.chmod(0o700 if path.is_dir() else 0o600)
