"""Copies of a deployment that can be put back, and a check that putting one back loses no release from the ledger.

A backup is one tar file, readable by its owner alone, because it holds the authority's key. Databases are copied with
SQLite's own backup, so a running server may go on. The order keeps the copies in step: checkpoints before the witness,
the witness before the ledger, the registry before Flower's database; each copy is thus of something that the copies
before it may rest on.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from server.deployment import Deployment
from server.evidence import heads_in, newest_known
from server.ledger import ServerLedger
from server.registry import Registry
from server.rounds import FILE as ROUNDS
from server.rounds import Experiment
from shared.errors import DeploymentError, PrivacyError
from shared.version import version

BACKUP_SCHEMA = 1
CONTENTS = "homerank-backup.json"

_PLAIN = (
    *("ca.pem", "ca.key", "server.pem", "server.key", "server.toml", "server.json", "invitation.json", ROUNDS),
    *("release.key", "release.pub", "publisher.json"),  # without the key nothing could be released any more
)
_TREES = ("releases",)
#: In this order, after everything else.
_DATABASES = ("ledger.witness", "ledger.sqlite", "registry.sqlite", "superlink.sqlite")
_RUN = "run"
#: Names in an experiment's folder that only a running process needs.
_LEFT_OUT = {"serverapp.lock", "stop"}


@dataclass(frozen=True)
class Contents:
    """What a backup says of itself. made: seconds UTC. rows: of the ledger. files: SHA-256 by name."""

    made: float
    rows: int
    version: str
    files: Mapping[str, str]


def back_up(deployment: Deployment, target: Path) -> Contents:
    """Write a backup; the file appears whole or not at all. The experiment that `rounds` keeps is part of it.

    Raises DeploymentError when something cannot be read or written, PrivacyError when the ledger is not in order: a
    backup of a broken ledger would be found out when it is needed.
    """
    target = target.expanduser().resolve()
    if target.is_dir() or not target.parent.is_dir():
        raise DeploymentError(f"{target}: expected the path of a new file in a folder that exists")
    partial = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with TemporaryDirectory(dir=deployment.folder, prefix=".backup-") as place:
            copies = Path(place)
            _copy_all(deployment, copies)
            rows = _verified_rows(copies)
            files = {name: _digest(copies / name) for name in _names_in(copies)}
            contents = Contents(time.time(), rows, version(), files)
            with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as raw:
                with tarfile.open(fileobj=raw, mode="w") as tar:
                    _add_facts(tar, {"schema": BACKUP_SCHEMA, **contents.__dict__})
                    for name in files:
                        tar.add(copies / name, arcname=name, recursive=False)
                raw.flush()
                os.fsync(raw.fileno())
        partial.replace(target)
    except (OSError, sqlite3.Error, tarfile.TarError) as error:
        raise DeploymentError(f"{target}: no backup was made ({error}); make room or mend what it names") from None
    finally:
        partial.unlink(missing_ok=True)
    return contents


def restore(backup: Path, folder: Path, *, keep_ledger: bool = False) -> Contents:
    """Put a backup in place of a deployment folder, or into one that does not exist; what was there is set aside.

    keep_ledger: keep the ledger and witness that are in the folder, which may know more releases than the backup. A run
    whose checkpoint is then older than the ledger cannot go on; its releases stay counted.

    | in the folder | result |
    |---|---|
    | nothing | restored |
    | a server that runs | DeploymentError |
    | a ledger, checkpoint or adapter that knows a release which the backup's ledger lacks | DeploymentError |
    | the same, with `keep_ledger` and a ledger in order that holds the backup's as its beginning | restored |
    | anything else | restored; the old folder lies beside it under another name |

    Devices that were shut out since the backup stay shut out, and tokens that were burnt stay burnt, if the registry in
    the folder can be read. Devices that enrolled since must enrol again.

    The backup is unpacked and verified beside the folder first: hashes, databases, the ledger's chain, and that every
    checkpoint and adapter in it rests on that ledger.
    """
    folder = folder.expanduser().resolve()
    if (folder / "server.json").exists() and Deployment.at(folder).answers():
        raise DeploymentError(f"a server of {folder} is running; stop it before restoring")
    staged = folder.with_name(f".{folder.name}.restoring.{os.getpid()}")
    try:
        staged.mkdir(parents=True, mode=0o700)
        contents = _unpack(backup.expanduser(), staged)
        _verified_rows(staged)
        if folder.exists() and any(folder.iterdir()):
            _refuse_to_forget(folder, staged, keep_ledger=keep_ledger)
            _keep_out(folder, staged)
            if keep_ledger:
                for name in ("ledger.sqlite", "ledger.witness"):
                    _copy_database(folder / name, staged / name)
        _settle_run(staged, folder)
        if folder.exists():
            folder.rename(folder.with_name(f"{folder.name}.before-restore-{time.strftime('%Y%m%d-%H%M%S')}"))
        staged.rename(folder)
    except (OSError, sqlite3.Error) as error:
        raise DeploymentError(f"{backup}: not restored ({error}); {folder} is as it was") from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return contents


def _copy_all(deployment: Deployment, copies: Path) -> None:
    """Everything in its order; see the module's docstring."""
    experiment = Experiment.of(deployment)
    if experiment and Path(experiment.folder).is_dir():
        skip = shutil.ignore_patterns(*_LEFT_OUT, "*.tmp")
        shutil.copytree(experiment.folder, copies / _RUN, ignore=skip)
    for name in _TREES:
        if (deployment.folder / name).is_dir():
            shutil.copytree(deployment.folder / name, copies / name, symlinks=False)
    for name in _PLAIN:
        if (deployment.folder / name).exists():
            shutil.copy2(deployment.folder / name, copies / name)
    for name in _DATABASES:
        if (deployment.folder / name).exists():
            _copy_database(deployment.folder / name, copies / name)


def _copy_database(source: Path, target: Path) -> None:
    """A consistent copy of a database that may be written meanwhile, without journal files of its own."""
    target.unlink(missing_ok=True)
    address = f"{source.resolve().as_uri()}?mode=ro"
    with closing(sqlite3.connect(address, uri=True)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
        new.execute("PRAGMA journal_mode = DELETE")
    target.chmod(0o600)


def _verified_rows(folder: Path) -> int:
    """Rows of the ledger in a folder of copies, after every check. PrivacyError or DeploymentError when one fails."""
    for name in _DATABASES:
        if (folder / name).exists():
            with closing(sqlite3.connect(folder / name)) as db:
                found = db.execute("PRAGMA quick_check").fetchone()[0]
            if found != "ok":
                raise DeploymentError(f"{name}: found a damaged database ({found}); use another backup")
    if not (folder / "ledger.sqlite").exists():
        raise DeploymentError(f"{folder.name}: found no ledger; expected one in every deployment")
    ledger = ServerLedger(folder / "ledger.sqlite", witness=folder / "ledger.witness")
    try:
        for head in heads_in(folder):
            ledger.require(head)
        rows = ledger.head().seq
    finally:
        ledger.close()
    for name in ("ledger.sqlite", "ledger.witness"):  # opening them may leave journals behind
        with closing(sqlite3.connect(folder / name)) as db:
            db.execute("PRAGMA journal_mode = DELETE")
    return rows


def _unpack(backup: Path, target: Path) -> Contents:
    """Take a backup apart: plain files under plain names, each with the hash that the backup names."""
    try:
        with tarfile.open(backup, "r:") as tar:
            members = {member.name: member for member in tar.getmembers()}
            first = members.pop(CONTENTS, None)
            stream = tar.extractfile(first) if first and first.isfile() else None
            facts = json.loads(stream.read()) if stream else {}
            if facts.get("schema") != BACKUP_SCHEMA:
                raise DeploymentError(
                    f"{backup}: found backup schema {facts.get('schema')!r}; expected {BACKUP_SCHEMA}, a file that"
                    " `homerank-server backup` wrote"
                )
            files = dict(facts["files"])
            if set(members) != set(files):
                raise DeploymentError(f"{backup}: its files are not those it names; use another backup")
            for name, member in members.items():
                _extract(tar, member, target / _plain_name(name))
                if _digest(target / name) != files[name]:
                    raise DeploymentError(f"{backup}: {name} is damaged; use another backup")
            return Contents(float(facts["made"]), int(facts["rows"]), str(facts["version"]), files)
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DeploymentError(f"{backup}: found no readable backup ({error})") from None


def _plain_name(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name:
        raise DeploymentError(f"found the name {name!r} in a backup; expected one inside the folder")
    return name


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """One plain file; links and devices have no place in a backup."""
    stream = tar.extractfile(member) if member.isfile() else None
    if stream is None:
        raise DeploymentError(f"found {member.name!r} in a backup, which is no plain file; use another backup")
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, member.mode & 0o700 | 0o600), "wb") as file:
        shutil.copyfileobj(stream, file)
        file.flush()
        os.fsync(file.fileno())
    target.chmod(member.mode & 0o755)


def _refuse_to_forget(folder: Path, staged: Path, *, keep_ledger: bool) -> None:
    """DeploymentError when anything in the folder rests on a release that the ledger to be used would not know."""
    source = folder if keep_ledger else staged
    try:
        with closing(ServerLedger(source / "ledger.sqlite", witness=source / "ledger.witness")) as ledger:
            for head in [*heads_in(folder), *newest_known(folder), *heads_in(staged), *newest_known(staged)]:
                ledger.require(head)
    except PrivacyError as error:
        remedy = (
            "put the newest ledger into the folder, or restore without --keep-ledger"
            if keep_ledger
            else "use a newer backup, or --keep-ledger to restore everything but the ledger"
        )
        raise DeploymentError(
            f"{folder} knows releases that the restored ledger would not: {error}. Nothing was changed; {remedy}"
        ) from None


def _keep_out(folder: Path, staged: Path) -> None:
    """Whoever was shut out since the backup stays out; `start` tells Flower. An unreadable registry says nothing."""
    try:
        with (
            closing(Registry(folder / "registry.sqlite")) as newer,
            closing(Registry(staged / "registry.sqlite")) as own,
        ):
            own.carry_over(newer)
    except DeploymentError:
        return


def _settle_run(staged: Path, folder: Path) -> None:
    """The experiment of a backup lies in the folder itself from now on; it is not running."""
    path = staged / ROUNDS
    if path.exists():
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        state = "finished" if facts.get("state") == "finished" else "stopped"
        path.write_text(json.dumps({"folder": str(folder / _RUN), "state": state, "run": ""}), encoding="utf-8")


def _names_in(folder: Path) -> Iterator[str]:
    """Plain files, the databases last and in their order."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    yield from sorted(names, key=lambda name: _DATABASES.index(name) if name in _DATABASES else -1)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add_facts(tar: tarfile.TarFile, facts: Mapping[str, Any]) -> None:
    content = json.dumps(facts, indent=1).encode()
    member = tarfile.TarInfo(CONTENTS)
    member.size, member.mode, member.mtime = len(content), 0o600, int(time.time())
    tar.addfile(member, io.BytesIO(content))
