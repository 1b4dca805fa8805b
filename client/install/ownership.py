"""Handing folders over as root, without being led elsewhere by whoever owned them before."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from client.install.accounts import Account
from shared.errors import DeploymentError

ROOT = Account(0, 0)


def take_folder(place: Path) -> bool:
    """Make a folder of root's, mode 0700, or find one; whether it is root's.

    DeploymentError where a link or a file is in its place. Its parents are root's on any sound system.
    """
    try:
        place.mkdir(parents=True, mode=0o700)
    except FileExistsError:
        if place.is_symlink() or not place.is_dir():
            raise DeploymentError(f"{place}: found a link or a file; expected a folder, or nothing") from None
    except OSError as error:
        raise DeploymentError(f"{place}: could not be made ({error.strerror})") from None
    return place.stat().st_uid == 0


def hand_over(place: Path, owner: Account) -> None:
    """Give a folder of root's to somebody, with all that is in it. It is closed to everybody while that happens."""
    place.chmod(0o700)
    for parent, folders, names in os.walk(place, topdown=False):
        for name in (*folders, *names):
            os.chown(Path(parent) / name, owner.user, owner.group, follow_symlinks=False)
    os.chown(place, owner.user, owner.group)


def take_back(place: Path) -> None:
    """Make somebody's folder root's, with all that is in it. Their processes must have ended."""
    os.chown(place, ROOT.user, ROOT.group, follow_symlinks=False)
    hand_over(place, ROOT)


def require_owner(place: Path, owner: Account) -> None:
    """DeploymentError when a folder is neither root's nor this owner's."""
    found = place.stat().st_uid
    if found not in (0, owner.user):
        raise DeploymentError(
            f"{place}: found a folder of user number {found}; expected one of root's or of number {owner.user}; move it"
            " away first"
        )


def barrier(path: Path) -> Path | None:
    """The first folder on the way to `path` that other users, or units without home folders, cannot enter."""
    real = path.resolve()  # an environment's interpreter is a link
    for part in (*reversed(path.absolute().parents), *reversed(real.parents)):
        closed = not stat.S_IMODE(part.stat().st_mode) & 0o001
        if closed or str(part) in ("/home", "/root", "/run/user"):
            return part
    return None
