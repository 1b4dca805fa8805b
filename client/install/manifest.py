"""What an installation made, written down before it is made, so that an interrupted one can be removed too."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from shared.artifacts import write_atomic
from shared.errors import DeploymentError

SCHEMA = 1


@dataclass
class Manifest:
    """files: single files of root's. folders: removed with all that is in them. home: the person's, kept or wiped.

    users, groups: made here, in this order. units: names known to systemd. Paths are those of the installed device,
    without the root that it may lie under.
    """

    path: Path
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    home: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """What stands there, None when nothing was ever installed. DeploymentError when it cannot be used."""
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DeploymentError(f"{path}: found no usable list of what was installed ({error})") from None
        if not isinstance(facts, dict) or facts.pop("schema", None) != SCHEMA:
            raise DeploymentError(
                f"{path}: found another list; expected schema {SCHEMA}; use the version that wrote it"
            )
        names = set(cls.__dataclass_fields__) - {"path"}
        good = set(facts) == names and all(
            isinstance(values, list) and all(isinstance(value, str) for value in values) for values in facts.values()
        )
        paths = [*facts["files"], *facts["folders"], *facts["home"]] if good else []
        if not good or any(not value.startswith("/") or ".." in Path(value).parts for value in paths):
            raise DeploymentError(f"{path}: found a damaged list of what was installed; remove what it names by hand")
        return cls(path, **facts)

    def note(self, kind: str, value: str) -> None:
        """Write down, on the disk, that `value` is about to be made. RunError when it cannot be."""
        values: list[str] = getattr(self, kind)
        if value not in values:
            values.append(value)
            self.save()

    def save(self) -> None:
        """Replace the file."""
        facts = {"schema": SCHEMA, **asdict(self)}
        del facts["path"]
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        write_atomic(self.path, (json.dumps(facts, indent=2) + "\n").encode(), private=True)
