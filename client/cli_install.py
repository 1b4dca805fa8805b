"""Commands that make a device out of a machine, and the way back: units, install, node, leave."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli_limits import AnyTime, Delta, Epsilon, Privacy, Secure, Trust, UserEpsilon
from client.cli_service import HOME, AsJson, Home, Who
from shared.terminal import emit_json

if TYPE_CHECKING:
    from client.install.units import Choices

Port = Annotated[int, typer.Option(min=1, max=65535, help="Port of the page on 127.0.0.1.")]
Root = Annotated[Path, typer.Option(help="Another root than /, for images and tests.", metavar="DIR")]


def add_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (install, units, node, leave):
        app.command()(command)


def install(
    invitation: Annotated[
        Path | None,
        typer.Argument(
            metavar="[INVITATION]", help="The server's invitation.json; without one this device only ranks."
        ),
    ] = None,
    joined: Annotated[
        Path | None,
        typer.Option("--from", metavar="FOLDER", help="A device's folder so far; keys and profile are moved."),
    ] = None,
    profile: Who = "default",
    port: Port = 8765,
    privacy: Privacy = None,
    trust: Trust = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
    user_epsilon: UserEpsilon = None,
    secure: Secure = None,
    any_time: AnyTime = False,
    root: Root = Path("/"),
    as_json: AsJson = False,
) -> None:
    """Install this device as two services under two users. Needs root; run it again after an update.

    Without systemd, users and folders are made all the same, and what to run in the foreground is printed.
    """
    from client.deployment import DeviceHome, Invitation
    from client.install.layout import Layout
    from client.install.setup import install as install_device

    done = install_device(
        Layout(root.resolve()),
        _choices(profile, port, any_time, _limits(privacy, trust, epsilon, delta, user_epsilon, secure)),
        invitation=None if invitation is None else Invitation.read(invitation),
        joined=None if joined is None else DeviceHome.at(joined),
    )
    foreground = [{"user": user, "command": shlex.join(command)} for user, command in done.foreground]
    if as_json:
        key = str(done.public_key) if done.public_key else None
        emit_json({"files": done.files, "public_key": key, "started": done.started, "foreground": foreground})
        return
    for name in done.files:
        sys.stdout.write(f"wrote {name}\n")
    if done.public_key:
        sys.stdout.write(f"public key, for the server's operator unless a token was used: {done.public_key}\n")
    if done.started:
        sys.stdout.write("systemd runs them; see systemctl status 'homerank-*'\n")
    for one in foreground:
        sys.stdout.write(f"run as {one['user']}: {one['command']}\n")


def units(
    out: Annotated[
        Path | None, typer.Option(help="Write them into this folder; printed otherwise.", metavar="DIR")
    ] = None,
    profile: Who = "default",
    port: Port = 8765,
    privacy: Privacy = None,
    trust: Trust = None,
    epsilon: Epsilon = None,
    delta: Delta = None,
    user_epsilon: UserEpsilon = None,
    secure: Secure = None,
    any_time: AnyTime = False,
    as_json: AsJson = False,
) -> None:
    """Show the files that `install` would write, and install nothing."""
    from client.install.units import written_files
    from shared.artifacts import write_atomic

    files = written_files(
        _choices(profile, port, any_time, _limits(privacy, trust, epsilon, delta, user_epsilon, secure))
    )
    if out is not None:
        for path, text in files.items():
            write_atomic(out / path.name, text.encode())
    if as_json:
        emit_json({"files": {str(path): text for path, text in files.items()}})
        return
    for path, text in files.items():
        sys.stdout.write(f"{out / path.name}\n" if out is not None else f"# {path}\n{text}\n")


def node(
    socket: Annotated[Path, typer.Option(help="The training socket of the service.", metavar="PATH")],
    home: Annotated[Path, typer.Option(help="Folder with keys and invitation.json.", metavar="FOLDER")],
    loopback: Annotated[
        str, typer.Option(help="127.0.0.1 or ::1: where the SuperNode meets its ClientApps.")
    ] = "127.0.0.1",
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for the server.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Take part in training for a service that another user runs, until Ctrl-C. Knows nothing of the person."""
    from client.deployment import DeviceHome, Invitation
    from client.deployment import join as take_part
    from client.install.identity import INVITATION
    from client.install.units import IPV4, IPV6
    from shared.errors import ConfigError

    if loopback not in (IPV4, IPV6):
        raise ConfigError(f"--loopback: found {loopback[:40]!r}; expected {IPV4} or {IPV6}")
    device = DeviceHome.at(home)
    invited = Invitation.read(device.folder / INVITATION)

    def report() -> None:
        if as_json:
            emit_json({"server": invited.address, "socket": str(socket)})
        sys.stderr.write(f"joined {invited.address}; leave with Ctrl-C\n")

    config = {"socket": str(socket)}
    take_part(device, invited, node_config=config, timeout=timeout, on_ready=report, host=loopback)


def leave(
    home: Home = HOME,
    installed: Annotated[
        bool, typer.Option("--installed", help="What `install` made, instead of a folder; needs root.")
    ] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Wipe the profiles too, with their ledgers.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    root: Root = Path("/"),
    as_json: AsJson = False,
) -> None:
    """Take no part any more: remove services, users, keys and certificate, and say what the server keeps.

    Profiles stay unless --forget is given; then their ledgers go too, and a device that joins again with the same
    history has a second budget for it.
    """
    from client.deployment import DeviceHome
    from client.install.layout import Layout
    from client.install.leaving import leave_home, leave_installation

    if not yes:
        what = "services, keys and everything recorded" if forget else "services and keys"
        typer.confirm(f"This removes {what}. Go on?", abort=True, err=True)
    if installed:
        left = leave_installation(Layout(root.resolve()), forget=forget)
    else:
        left = leave_home(DeviceHome.at(home), forget=forget)
    if as_json:
        emit_json({"removed": left.removed, "kept": left.kept, "server_keeps": left.server_keeps})
        return
    for name in left.removed:
        sys.stdout.write(f"removed {name}\n")
    for name in left.kept:
        sys.stdout.write(f"kept {name}; wipe it too with --forget\n")
    for sentence in left.server_keeps:
        sys.stdout.write(f"the server keeps {sentence}\n")


def _choices(profile: str, port: int, any_time: bool, limits: dict[str, object]) -> Choices:
    """What the owner chose; limits that were not named stay as the profile has them."""
    from client.install.units import Choices

    named = {name: value for name, value in limits.items() if value is not None}
    return Choices(named, profile=profile, port=port, any_time=any_time)


def _limits(
    privacy: str | None,
    trust: str | None,
    epsilon: float | None,
    delta: float | None,
    user_epsilon: float | None,
    secure: bool | None,
) -> dict[str, object]:
    """By the names of `Limits.of_owner`."""
    facts: dict[str, object] = {"mode": privacy, "trust": trust, "epsilon": epsilon, "delta": delta}
    return {**facts, "user_epsilon": user_epsilon, "secure": secure}
