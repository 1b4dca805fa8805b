"""The SuperNode's keys and invitation, written by the SuperNode's own user.

Its folder belongs to a user who runs what a server ships. Root must not write there: a link that waits under the name
of a file would have root write wherever it leads. So `make` starts this module as that user, and gives it what it needs
on standard input.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from client.deployment import INVITATION_SCHEMA, DeviceHome, Invitation, create_keys
from client.install.accounts import Account
from shared.artifacts import write_atomic
from shared.errors import DeploymentError
from shared.terminal import flower_environment

INVITATION = "invitation.json"
_SECONDS = 120.0


def make(node: DeviceHome, owner: Account, invitation: Invitation, *, python: Path, key: str = "") -> None:
    """Write invitation and keys into the node's folder as its owner.

    python: the interpreter that has homerank. key: a private key to keep, in OpenSSH form. Raises DeploymentError when
    it fails. Of root's environment nothing goes along but where programs and packages are: other processes of that user
    can read it.
    """
    known = flower_environment(node.flower_home)
    environment: dict[str, str] = {name: known[name] for name in ("PATH", "PYTHONPATH") if name in known}
    facts = {"folder": str(node.folder), "invitation": asdict(invitation), "key": key}
    done = subprocess.run(
        [str(python), "-P", "-m", "client.install.identity"],
        input=json.dumps(facts),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        user=owner.user,
        group=owner.group,
        extra_groups=[],
        umask=0o077,
        cwd="/",
        env=environment,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise DeploymentError(f"{node.folder}: the node's keys could not be made: {said[-1]}")


def main() -> None:
    """What `make` starts."""
    facts = json.load(sys.stdin)
    home = DeviceHome(Path(facts["folder"]))
    if facts["key"] and not home.private_key.exists():
        write_atomic(home.private_key, facts["key"].encode(), private=True)
    create_keys(home)
    known = {"schema": INVITATION_SCHEMA, **facts["invitation"]}
    write_atomic(home.folder / INVITATION, json.dumps(known, indent=1).encode())


if __name__ == "__main__":
    main()
