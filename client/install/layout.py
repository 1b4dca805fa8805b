"""Where an installed device lies, and who owns what.

::

    /etc/systemd/system/homerank-{device,node}.service   the units; root
    /etc/tmpfiles.d/homerank.conf                        has the socket's folder made at every start; root
    /etc/homerank/install.json                           what was made here; root alone
    /var/lib/homerank/                                   0700 homerank: profiles, with token, store and ledger
    /var/lib/homerank-node/                              0700 homerank-node: the node's key, certificate, bundles
    /run/homerank/                                       2750 homerank:homerank-train: the training socket

The SuperNode runs whatever a server ships. All that its user shares with the service is the group `homerank-train`,
which may enter the socket's folder and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from client.deployment import DeviceHome

SERVICE_USER = "homerank"
NODE_USER = "homerank-node"
SOCKET_GROUP = "homerank-train"
DEVICE_UNIT = "homerank-device.service"
NODE_UNIT = "homerank-node.service"

SERVICE_HOME = Path("/var/lib/homerank")
NODE_HOME = Path("/var/lib/homerank-node")
SOCKETS = Path("/run/homerank")
UNITS = Path("/etc/systemd/system")
TMPFILES = Path("/etc/tmpfiles.d/homerank.conf")
MANIFEST = Path("/etc/homerank/install.json")

#: Of the socket's folder. With the set-group-id bit the socket belongs to the group, whatever the service's own is.
SOCKETS_MODE = 0o2750


@dataclass(frozen=True)
class Layout:
    """The paths above, below `root`, which is another folder than `/` for images and tests."""

    root: Path = Path("/")

    def at(self, path: Path) -> Path:
        """Where a path of an installed device lies on this machine."""
        return self.root / path.relative_to("/")

    @property
    def manifest(self) -> Path:
        """What was made here."""
        return self.at(MANIFEST)

    @property
    def service_home(self) -> Path:
        """The person's side: profiles."""
        return self.at(SERVICE_HOME)

    @property
    def node(self) -> DeviceHome:
        """The SuperNode's side."""
        return DeviceHome(self.at(NODE_HOME))

    @property
    def is_this_machine(self) -> bool:
        """Whether programs that act on the running system may be called."""
        return self.root == Path("/")


def socket_of(profile: str) -> Path:
    """The training socket of a profile."""
    return SOCKETS / f"{profile}.sock"
