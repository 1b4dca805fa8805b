"""Installing a device: users, folders, keys, units. Run twice, it does what is missing and no more."""

from __future__ import annotations

import os
import shutil
import socket
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from client.deployment import DeviceHome, Invitation
from client.install import identity, ownership
from client.install.accounts import Account, Accounts
from client.install.layout import (
    MANIFEST,
    NODE_HOME,
    NODE_USER,
    SERVICE_HOME,
    SERVICE_USER,
    SOCKET_GROUP,
    SOCKETS,
    SOCKETS_MODE,
    Layout,
)
from client.install.manifest import Manifest
from client.install.systemd import Systemd
from client.install.units import IPV4, IPV6, Choices, written_files
from client.profile import Profile
from client.service.running import exclusive
from shared.artifacts import write_atomic
from shared.errors import DeploymentError

_LOCAL = ("localhost", "127.", "[::1]", "::1")


@dataclass(frozen=True)
class Installed:
    """What an installation comes to.

    files: written by root. public_key: to be registered by the server's operator, None without a node. started:
    whether systemd runs the units now. foreground: otherwise, what to run instead, and as which user.
    """

    files: tuple[str, ...]
    public_key: Path | None
    started: bool
    foreground: tuple[tuple[str, list[str]], ...]


def install(
    layout: Layout,
    choices: Choices,
    *,
    invitation: Invitation | None = None,
    joined: DeviceHome | None = None,
    accounts: Accounts | None = None,
    systemd: Systemd | None = None,
) -> Installed:
    """Make everything a device needs below `layout`. Only root can.

    invitation: of the server to take part with; None for a device that only ranks, unless `joined` or an earlier
    installation has one. joined: the folder so far of somebody who ran both programs themselves. Its keys and its
    profile are *moved*: a key that exists twice is no identity, and a ledger that exists twice is a second budget.

    Raises DeploymentError when not root, when something of others stands where a file or folder is to be, when homerank
    lies where the two users or the units cannot read it, or when a service of that profile is running.
    """
    if os.geteuid() != 0:
        raise DeploymentError("found no right to make users and units; run homerank-client install as root")
    _check_program(choices.python)
    accounts, systemd = accounts or Accounts(layout), systemd or Systemd(layout)
    invitation = invitation or _earlier_invitation(layout, joined)
    choices = replace(choices, node=invitation is not None)
    if invitation is not None and not can_be_apart(invitation):
        choices = replace(choices, node_host=IPV4)
    manifest = Manifest.read(layout.manifest) or Manifest(layout.manifest)
    files = written_files(choices)
    for path in files:
        if layout.at(path).exists() and str(path) not in manifest.files:
            raise DeploymentError(f"{layout.at(path)}: found a file that homerank did not write; move it away first")

    manifest.note("files", str(MANIFEST))
    _make_accounts(accounts, manifest, node=choices.node)
    service = accounts.of(SERVICE_USER)
    _make_service_home(layout, manifest, service, joined, choices.profile)
    manifest.note("folders", str(SOCKETS))
    ownership.take_folder(layout.at(SOCKETS))
    os.chown(layout.at(SOCKETS), service.user, accounts.group(SOCKET_GROUP))
    layout.at(SOCKETS).chmod(SOCKETS_MODE)
    if invitation is not None:
        _make_node_home(layout, manifest, accounts.of(NODE_USER), invitation, joined, choices.python)

    for path, text in files.items():
        manifest.note("files", str(path))
        write_atomic(layout.at(path), text.encode())
        layout.at(path).chmod(0o644)
    units = sorted(path.name for path in files if path.suffix == ".service")
    for unit in units:
        manifest.note("units", unit)
    systemd.start(units)
    foreground = [(SERVICE_USER, choices.serve), *([(NODE_USER, choices.take_part)] if choices.node else [])]
    return Installed(
        files=tuple(str(path) for path in files),
        public_key=layout.node.public_key if choices.node else None,
        started=systemd.runs,
        foreground=() if systemd.runs else tuple(foreground),
    )


def can_be_apart(invitation: Invitation) -> bool:
    """Whether the SuperNode can do without 127.0.0.1: this machine has ::1, and the server is another machine."""
    if invitation.address.startswith(_LOCAL):
        return False
    try:
        with closing(socket.socket(socket.AF_INET6, socket.SOCK_STREAM)) as probe:
            probe.bind((IPV6, 0))
    except OSError:
        return False
    return True


def _check_program(python: Path) -> None:
    """The two users, and units that see no home folders, must be able to read homerank."""
    for path in (python, Path(__file__)):
        closed = ownership.barrier(path)
        if closed is not None:
            raise DeploymentError(
                f"{path}: found homerank below {closed}, where its own users cannot go; install it elsewhere, for"
                " example: python3 -m venv /opt/homerank"
            )


def _earlier_invitation(layout: Layout, joined: DeviceHome | None) -> Invitation | None:
    for home in (joined, layout.node):
        if home is not None and (home.folder / identity.INVITATION).exists():
            return Invitation.read(home.folder / identity.INVITATION)
    return None


def _make_accounts(accounts: Accounts, manifest: Manifest, *, node: bool) -> None:
    for name in accounts.missing_groups():
        manifest.note("groups", name)
        accounts.make_group(name)
    for name in accounts.missing_users(node=node):
        manifest.note("users", name)
        accounts.make_user(name)
    if node and NODE_USER not in accounts.members(SOCKET_GROUP):
        raise DeploymentError(
            f"found a user {NODE_USER} outside group {SOCKET_GROUP}, so it could not reach the training socket; run"
            f" usermod --append --groups {SOCKET_GROUP} {NODE_USER}"
        )


def _make_service_home(
    layout: Layout, manifest: Manifest, owner: Account, joined: DeviceHome | None, profile: str
) -> None:
    """The person's folder. Once it is the service's, root writes nothing into it any more."""
    home = layout.service_home
    manifest.note("home", str(SERVICE_HOME))
    fresh = ownership.take_folder(home)
    ownership.require_owner(home, owner)
    source = None if joined is None else joined.folder / "profiles" / profile
    if joined is not None and source is not None and source.is_dir():
        target = home / "profiles" / profile
        if not fresh or target.exists():
            raise DeploymentError(
                f"{source}: found a profile to bring along, and an installed device; expected one of them: leave first,"
                " or export the one and import it into the other"
            )
        with exclusive(Profile.open(joined.folder, profile)):
            target.parent.mkdir(exist_ok=True, mode=0o700)
            shutil.move(source, target)
    if fresh:
        ownership.hand_over(home, owner)


def _make_node_home(
    layout: Layout,
    manifest: Manifest,
    owner: Account,
    invitation: Invitation,
    joined: DeviceHome | None,
    python: Path,
) -> None:
    """The SuperNode's folder with its keys."""
    node = layout.node
    manifest.note("folders", str(NODE_HOME))
    if ownership.take_folder(node.folder):
        ownership.hand_over(node.folder, owner)
    ownership.require_owner(node.folder, owner)
    key = ""
    if joined is not None and joined.private_key.exists():
        key = joined.private_key.read_text(encoding="ascii")
    identity.make(node, owner, invitation, python=python, key=key)
    if joined is not None and key:
        for path in (joined.private_key, joined.public_key, joined.folder / identity.INVITATION):
            with suppress(FileNotFoundError):
                path.unlink()
