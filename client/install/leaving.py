"""Leaving: everything that was installed or joined goes; what others hold of this device is said."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from client.deployment import DeviceHome
from client.door.lock import default_socket, served_at
from client.door.sent import read_sent
from client.install import ownership
from client.install.accounts import Accounts
from client.install.identity import INVITATION
from client.install.layout import NODE_HOME, Layout
from client.install.manifest import Manifest
from client.install.systemd import Systemd
from client.profile import Profile, profiles
from client.service.running import exclusive
from shared.errors import DataError, DeploymentError


@dataclass(frozen=True)
class Left:
    """What went and what stays. removed, kept: paths and accounts. server_keeps: sentences for the person."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    server_keeps: tuple[str, ...]


def leave_installation(
    layout: Layout, *, forget: bool, accounts: Accounts | None = None, systemd: Systemd | None = None
) -> Left:
    """Stop and remove what `setup.install` made, and only that. Run again after a failure, it goes on.

    forget: wipe the profiles too, with their ledgers; otherwise they stay for root alone, because a number that no
    user has today may be somebody's tomorrow. Raises DeploymentError when not root, when nothing is installed, or while
    a process of one of the two users runs that systemd did not start.
    """
    if os.geteuid() != 0:
        raise DeploymentError("found no right to remove users and units; run homerank-client leave as root")
    manifest = Manifest.read(layout.manifest)
    if manifest is None:
        raise DeploymentError(f"{layout.manifest}: found nothing that was installed here")
    accounts, systemd = accounts or Accounts(layout), systemd or Systemd(layout)
    systemd.stop(manifest.units)
    for name in manifest.users if layout.is_this_machine else ():
        _check_ended(accounts, name)
    homes = [layout.at(Path(name)) for name in manifest.home]
    said = what_the_server_keeps(homes, known=str(NODE_HOME) in manifest.folders)

    removed, kept = [], []
    for name in manifest.files:
        path = layout.at(Path(name))
        if path != layout.manifest and path.exists():
            path.unlink()
            removed.append(name)
    systemd.reload()
    for name in manifest.folders:
        removed += [name] * _remove_tree(layout.at(Path(name)))
    for name, home in zip(manifest.home, homes, strict=True):
        if forget or not profiles(home):
            removed += [name] * _remove_tree(home)
        elif home.exists():
            ownership.take_back(home)
            kept.append(name)
    for name in manifest.users:
        accounts.remove_user(name)
        removed.append(f"user {name}")
    for name in manifest.groups:
        accounts.remove_group(name)
        removed.append(f"group {name}")
    manifest.path.unlink()
    with suppress(OSError):  # somebody else's file is in it
        manifest.path.parent.rmdir()
    return Left(tuple(removed), tuple(kept), said)


def leave_home(home: DeviceHome, *, forget: bool) -> Left:
    """The same for a device that ran in the foreground from one folder. Keys and certificate go, profiles as asked.

    Raises DeploymentError when a service of one of the profiles is running, or the folder is no device's.
    """
    identity = (home.private_key, home.public_key, home.ca, home.node_config, home.folder / INVITATION)
    people = home.folder / "profiles"
    if not any(path.exists() for path in (*identity, people)):
        raise DeploymentError(f"{home.folder}: found no device that has joined or recorded anything")
    opened = [Profile(people / name) for name in profiles(home.folder)]
    for profile in opened:
        if served_at(profile) is not None:
            raise DeploymentError(f"{profile.folder}: found a running service; end it, then leave")
        with exclusive(profile):
            pass
    said = what_the_server_keeps([home.folder], known=home.private_key.exists())
    removed = []
    for path in (*identity, home.log, *map(default_socket, opened)):
        if path.exists():
            path.unlink()
            removed.append(str(path))
    removed += [str(home.flower_home)] * _remove_tree(home.flower_home)
    if forget:
        removed += [str(people)] * _remove_tree(people)
    for folder in (home.log.parent, home.folder / "run", home.folder):
        with suppress(OSError):  # other files are in it
            folder.rmdir()
    return Left(tuple(removed), (str(people),) if people.exists() else (), said)


def what_the_server_keeps(homes: list[Path], *, known: bool) -> tuple[str, ...]:
    """What leaving cannot take back, in sentences. known: whether there is a key that a server may have."""
    answers = size = 0
    for home in homes:
        for name in profiles(home):
            log = Profile(home / "profiles" / name).sent
            if not log.is_file() or any(path.is_symlink() for path in (log, *log.parents[:2])):
                continue
            with suppress(DataError):  # a damaged log keeps nobody here
                totals = read_sent(log)[1]
                answers, size = answers + totals.answers, size + totals.bytes
    key = (
        "this device's public key, until the operator revokes it; nobody can use it without the private key, which is"
        " gone"
    )
    given = (
        f"the sums that {answers} answers of this device went into ({size:,} bytes in all, by its own log), and every"
        " adapter released from them: nobody can take a share out of a sum again, which is what its noise was for",
        "the entries of its ledger that say at what noise those sums were released; they name no device",
    )
    return (*([key] if known else []), *(given if known or answers else ()))


def _check_ended(accounts: Accounts, name: str) -> None:
    """DeploymentError while a process of that user runs: its files could change under our hands."""
    try:
        number = accounts.of(name).user
    except DeploymentError:  # an interrupted leaving has removed it
        return
    for process in psutil.process_iter(["pid", "uids"]):
        uids = process.info["uids"]
        if uids is not None and number in uids:
            raise DeploymentError(f"found process {process.pid} of user {name}; end it, then leave")


def _remove_tree(path: Path) -> bool:
    """Whether there was one. A link is removed, not followed."""
    if path.is_symlink():
        path.unlink()
        return True
    if not path.exists():
        return False
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise DeploymentError(f"{path}: could not be removed ({error.strerror}); leave again once it can") from None
    return True
