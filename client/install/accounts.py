"""Users and groups of an installed device, made and removed with the system's own programs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from client.install.layout import NODE_HOME, NODE_USER, SERVICE_HOME, SERVICE_USER, SOCKET_GROUP, Layout
from shared.errors import DeploymentError

_SECONDS = 60.0


@dataclass(frozen=True)
class Account:
    """Numbers of a user: its own, and its group's."""

    user: int
    group: int


def call(command: Sequence[str]) -> None:
    """Run a program of the system. DeploymentError with its last words when it fails or is not there."""
    program = which(command[0], path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        raise DeploymentError(f"found no program {command[0]!r}; install it, or run both programs in the foreground")
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise DeploymentError(f"{' '.join(command)} failed: {said[-1]}")


class Accounts:
    """The accounts below a layout's root."""

    def __init__(self, layout: Layout, *, run: Callable[[Sequence[str]], None] = call) -> None:
        self._layout, self._run = layout, run
        self._prefix = [] if layout.is_this_machine else ["--prefix", str(layout.root)]

    def missing_groups(self) -> list[str]:
        """Groups that a device needs and that are not there yet."""
        return [name for name in (SOCKET_GROUP,) if name not in self._rows("group")]

    def missing_users(self, *, node: bool) -> list[str]:
        """Users that are not there yet; node: with a SuperNode."""
        wanted = (SERVICE_USER, NODE_USER) if node else (SERVICE_USER,)
        return [name for name in wanted if name not in self._rows("passwd")]

    def make_group(self, name: str) -> None:
        """A system group."""
        self._run(["groupadd", *self._prefix, "--system", name])

    def make_user(self, name: str) -> None:
        """A system user that nobody logs in as, with a group of its own."""
        home = NODE_HOME if name == NODE_USER else SERVICE_HOME
        also = ["--groups", SOCKET_GROUP] if name == NODE_USER else []
        about = ["--home-dir", str(home), "--no-create-home", "--shell", "/usr/sbin/nologin", "--user-group"]
        self._run(["useradd", *self._prefix, "--system", *about, *also, name])

    def remove_user(self, name: str) -> None:
        """Remove a user and its own group, if they are there."""
        if name in self._rows("passwd"):
            self._run(["userdel", *self._prefix, name])
        self.remove_group(name)  # `userdel` does it only where the system's settings say so

    def remove_group(self, name: str) -> None:
        """Remove a group, if it is there."""
        if name in self._rows("group"):
            self._run(["groupdel", *self._prefix, name])

    def of(self, name: str) -> Account:
        """A user's numbers. DeploymentError when there is no such user."""
        row = self._rows("passwd").get(name)
        if row is None:
            raise DeploymentError(f"found no user {name!r}; run homerank-client install as root")
        return Account(int(row[2]), int(row[3]))

    def group(self, name: str) -> int:
        """A group's number. DeploymentError when there is no such group."""
        row = self._rows("group").get(name)
        if row is None:
            raise DeploymentError(f"found no group {name!r}; run homerank-client install as root")
        return int(row[2])

    def members(self, name: str) -> list[str]:
        """Names of the users that a group lists."""
        row = self._rows("group").get(name)
        return [] if row is None or not row[3] else row[3].split(",")

    def _rows(self, file: str) -> dict[str, list[str]]:
        """The lines of /etc/passwd or /etc/group by name: system accounts are local ones."""
        path = self._layout.at(Path("/etc") / file)
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise DeploymentError(f"{path}: found no list of accounts ({error.strerror})") from None
        rows = [line.split(":") for line in lines if line.count(":") >= 3]
        return {row[0]: row for row in rows}
