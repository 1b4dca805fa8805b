"""A device's folder and its SuperNode: keys, the server's certificate, and the process that takes part.

::

    HOME/
      device.key, device.pub    the device's identity (NIST P-256); the key has mode 0600 and never leaves
      ca.pem                    certificate of the deployment, from the invitation
      node.toml                 what the ClientApp finds in `context.node_config`: where the training socket is
      profiles/, run/           the person's data, and that socket (`client.profile`, `client.door`)
      flower/                   FLWR_HOME: where Flower unpacks the bundle the server sends
      logs/supernode.log
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING

from shared.errors import DeploymentError
from shared.terminal import Child, flower_environment, flower_program, free_port, wait_until

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from client.profile import Profile

#: Values Flower can carry in a node configuration.
NodeValue = bool | int | float | str

INVITATION_SCHEMA = 1


@dataclass(frozen=True)
class DeviceHome:
    """The paths of one device's folder."""

    folder: Path

    @classmethod
    def at(cls, folder: Path) -> DeviceHome:
        """The device at `folder`, made absolute: Flower's processes run in other working directories."""
        return cls(folder.expanduser().resolve())

    @property
    def private_key(self) -> Path:
        """OpenSSH private key, mode 0600."""
        return self.folder / "device.key"

    @property
    def public_key(self) -> Path:
        """OpenSSH public key; the operator of the server registers it."""
        return self.folder / "device.pub"

    @property
    def ca(self) -> Path:
        """Certificate of the deployment this device joined."""
        return self.folder / "ca.pem"

    @property
    def node_config(self) -> Path:
        """TOML file with the node configuration."""
        return self.folder / "node.toml"

    @property
    def flower_home(self) -> Path:
        """FLWR_HOME of the device's processes."""
        return self.folder / "flower"

    @property
    def log(self) -> Path:
        """What the SuperNode and the ClientApps wrote."""
        return self.folder / "logs" / "supernode.log"


@dataclass(frozen=True)
class Invitation:
    """What a device must know about a server: `address` is host:port, `ca` a PEM certificate."""

    address: str
    ca: str

    @classmethod
    def read(cls, path: Path) -> Invitation:
        """Read the file `homerank-server start` writes. Raises DeploymentError for anything else."""
        path = path.expanduser()
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DeploymentError(
                f"{path}: {error.strerror}; expected the invitation.json of a running server"
            ) from error
        except ValueError as error:
            raise DeploymentError(f"{path} is not JSON; expected an invitation.json") from error
        if not isinstance(facts, dict) or facts.get("schema") != INVITATION_SCHEMA:
            raise DeploymentError(
                f"{path} is not an invitation this version reads; expected schema {INVITATION_SCHEMA}"
            )
        address, ca = facts.get("address"), facts.get("ca")
        if not (isinstance(address, str) and re.fullmatch(r"[\w.:\[\]-]+:\d+", address)):
            raise DeploymentError(f"{path}: found address {address!r}; expected host:port")
        if not (isinstance(ca, str) and "BEGIN CERTIFICATE" in ca):
            raise DeploymentError(f"{path}: found no CA certificate; expected PEM text under 'ca'")
        return cls(address, ca)


def create_keys(home: DeviceHome) -> Path:
    """Make the device's key pair, or keep the one that is there. Returns the path of the public key.

    The public half is derived from the private one each time, so the two always match. Raises
    DeploymentError when the private key file is damaged or of another kind.
    """
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    home.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if home.private_key.exists():
        key = _read_private_key(home.private_key)
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        with os.fdopen(os.open(home.private_key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(pem)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    home.public_key.write_bytes(public + b"\n")
    return home.public_key


def _read_private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Load an existing device key."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise DeploymentError(
            f"{path} is not an OpenSSH private key without a passphrase; restore it, or remove it "
            "for a new identity, which must be registered anew"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeploymentError(f"{path} holds another kind of key; expected a NIST elliptic curve key")
    return key


def adopt_earlier_files(home: DeviceHome, profile: Profile) -> None:
    """Move what an earlier version kept in HOME itself into the profile; nothing where there is nothing.

    The ledger goes first: a device that forgot what it spent would have a second budget.
    """
    moves = {"ledger": profile.ledger, "witness": profile.witness, "catalogue": profile.catalogue}
    earlier = {"ledger": "ledger.sqlite", "witness": "device.witness", "catalogue": "items.jsonl"}
    moves |= {"adapter": profile.adapter, "events": profile.events}
    earlier |= {"adapter": "adapter", "events": "device.sqlite"}
    for name, target in moves.items():
        for suffix in ("", "-wal", "-shm"):
            source = home.folder / (earlier[name] + suffix)
            if source.exists() and not (place := target.with_name(target.name + suffix)).exists():
                source.rename(place)


@contextmanager
def running_node(
    home: DeviceHome,
    invitation: Invitation,
    *,
    node_config: Mapping[str, NodeValue],
    timeout: float = 60.0,
    host: str = "127.0.0.1",
) -> Iterator[Child]:
    """Run this device's SuperNode for the length of a `with` block; it is connected when the block begins.

    node_config: becomes `context.node_config` in the ClientApp; give absolute paths.
    timeout: seconds until the server must have accepted the device. host: where the SuperNode waits for its ClientApps.

    Leaving the block ends the SuperNode and the ClientApp it may be running. Raises DeploymentError when the
    server does not answer in time or refuses the device's key.
    """
    import tomli_w

    create_keys(home)
    home.ca.write_text(invitation.ca)
    home.node_config.write_text(tomli_w.dumps(dict(node_config)))
    home.flower_home.mkdir(exist_ok=True, mode=0o700)
    command = [flower_program("flower-supernode"), *_supernode_options(home, invitation, host)]
    with Child(command, log=home.log, env=flower_environment(home.flower_home), cwd=home.folder) as node:
        wait_until(lambda: node.exit_code is not None or _accepted(home), timeout=timeout)
        if not _accepted(home):
            raise _why_not(node, home, invitation, timeout)
        yield node


def join(
    home: DeviceHome,
    invitation: Invitation,
    *,
    node_config: Mapping[str, NodeValue],
    timeout: float = 60.0,
    on_ready: Callable[[], None] = lambda: None,
    host: str = "127.0.0.1",
) -> None:
    """Take part until interrupted. See `running_node`; `on_ready` is called once the server has accepted.

    Raises DeploymentError also when the SuperNode ends on its own.
    """
    with running_node(home, invitation, node_config=node_config, timeout=timeout, host=host) as node:
        on_ready()
        while node.exit_code is None:
            sleep(0.5)
        raise DeploymentError(f"the connection to {invitation.address} ended; end of {node.log}:\n{node.tail()}")


def _supernode_options(home: DeviceHome, invitation: Invitation, host: str) -> list[str]:
    """Command line of the SuperNode. The node configuration travels as a file, so no path needs quoting."""
    return [
        *("--root-certificates", str(home.ca)),
        *("--superlink", invitation.address),
        *("--auth-supernode-private-key", str(home.private_key)),
        *("--node-config", str(home.node_config)),
        *("--host", host),
        *("--port", str(free_port())),
    ]


def _accepted(home: DeviceHome) -> bool:
    """Flower logs the node id once the server has accepted the device."""
    return "SuperNode ID:" in home.log.read_text(encoding="utf-8", errors="replace")


def _why_not(node: Child, home: DeviceHome, invitation: Invitation, timeout: float) -> DeploymentError:
    """Say what kept a device from joining."""
    if node.exit_code is None:
        return DeploymentError(
            f"no server accepted this device at {invitation.address} within {timeout:.0f} s; "
            f"is it running? End of {node.log}:\n{node.tail(5)}"
        )
    log = node.tail(40)
    if "CERTIFICATE_VERIFY_FAILED" in log:
        return DeploymentError(
            f"what answers at {invitation.address} is not the server of this invitation (its certificate has "
            "another authority); ask the server's operator for the current invitation.json"
        )
    if "Failed to activate SuperNode" in log:
        return DeploymentError(
            f"the server at {invitation.address} does not know this device; register its key where the "
            f"server runs: homerank-server register DIR {home.public_key}. If it was killed a moment ago, "
            "the server takes it for connected until a minute has passed; join again then"
        )
    return DeploymentError(f"the device could not join {invitation.address}; end of {node.log}:\n{log}")
