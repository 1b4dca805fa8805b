"""The command that keeps a device's adapter up to date, with or without taking part in training."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli_service import HOME, AsJson, Home, Who, reaching
from shared.terminal import emit_json

if TYPE_CHECKING:
    from client.updates import Install, Update


def add_commands(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(update)


def update(
    url: Annotated[str, typer.Option(help="The https address of the releases; else the pinned one.")] = "",
    pin: Annotated[
        Path | None, typer.Option(help="The publisher.json of the server's operator: trust its key.", metavar="FILE")
    ] = None,
    back: Annotated[bool, typer.Option("--back", help="Rank with the adapter before this one again.")] = False,
    home: Home = HOME,
    profile: Who = "default",
    as_json: AsJson = False,
) -> None:
    """Fetch the newest adapter over HTTPS, verify it, and rank with it; what was there stays if anything is wrong.

    The first time: --pin FILE. A service that runs for this profile changes to it without a pause.
    """
    from client.profile import Profile
    from client.publisher import Publisher, pinned
    from client.publisher import pin as trust
    from client.updates import go_back, own_backbone
    from client.updates import update as bring_up_to_date
    from shared.errors import ConfigError

    opened = Profile.open(home, profile)
    if back and (url or pin):
        raise ConfigError("--back fetches nothing; leave out --url and --pin")
    install = _installer(home, profile)
    if back:
        told = go_back(opened, install=install)
        if as_json:
            emit_json({"back": told})
        else:
            sys.stdout.write(f"the adapter before ranks again: {told}\n")
        return
    if pin is not None:
        trust(opened, Publisher.read(pin, url=url))
    publisher = pinned(opened, url=url)
    _tell(bring_up_to_date(opened, publisher, install=install, backbone_of=own_backbone), as_json=as_json)


def _installer(home: Path, profile: str) -> Install:
    """Through the running service, or the same in this process."""

    def install(folder: Path) -> None:
        from client.service.errands import import_folder

        with reaching(home, profile) as service:
            import_folder(service, folder, what="adapter", user=None)

    return install


def _tell(done: Update, *, as_json: bool) -> None:
    release = done.release
    if as_json:
        facts: dict[str, object] = {"version": done.version, "before": done.before, "new": done.new}
        if release is not None:
            facts |= {"name": release.name, "created": release.created, "bytes": release.size}
            facts |= {"origin": release.origin, "seconds": round(done.seconds, 3), "privacy": done.statement}
        emit_json(facts)
    elif release is None:
        sys.stdout.write(f"release {done.version} is the newest and installed\n")
    else:
        when = datetime.fromtimestamp(release.created, UTC).strftime("%Y-%m-%d %H:%M UTC")
        sys.stdout.write(f"installed release {done.version} after {done.before} ({release.name}, {when})\n")
        sys.stdout.write(f"{release.size:,} bytes in {done.seconds:.1f} s; the adapter before stays, see --back\n")
        sys.stdout.write(done.statement + "\n")
