"""The two units as text: one serves the person, the other takes part in training for the server.

| | device | node |
|---|---|---|
| runs | the person's service: store, ledger, page, training door | Flower's SuperNode, and in it what a server ships |
| user | homerank | homerank-node, also in homerank-train |
| may write | /var/lib/homerank, /run/homerank | /var/lib/homerank-node |
| network | loopback only | anywhere but 127.0.0.1, where the page is |

The SuperNode talks to its own ClientApps over TCP, so it cannot be cut off from loopback as a whole: it uses ::1, and
the packet filter denies 127.0.0.1. Where that cannot be (no IPv6, or a server on this very machine) the page's token
alone keeps it out, and the unit says so.
"""

from __future__ import annotations

import shlex
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from client.install.layout import (
    DEVICE_UNIT,
    NODE_HOME,
    NODE_UNIT,
    NODE_USER,
    SERVICE_HOME,
    SERVICE_USER,
    SOCKET_GROUP,
    SOCKETS,
    SOCKETS_MODE,
    TMPFILES,
    UNITS,
    socket_of,
)
from client.limits import Limits
from client.profile import check_name
from client.service.owner import USUAL

IPV4, IPV6 = "127.0.0.1", "::1"

#: What both units are denied, whatever runs in them.
_HARDENED = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateMounts=yes
DevicePolicy=closed
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectProc=invisible
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
KeyringMode=private
RemoveIPC=yes
UMask=0077
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
"""
#: Options of `homerank-client serve` by the names of `Limits.of_owner`.
_OPTIONS = {"mode": "privacy", "trust": "trust", "epsilon": "epsilon", "delta": "delta"}
_OPTIONS |= {"user_epsilon": "user-epsilon", "secure": "secure-aggregation"}
_OFFLINE = ("HF_HUB_OFFLINE=1", "OMP_NUM_THREADS=1", "PYTHONUNBUFFERED=1")


@dataclass(frozen=True)
class Choices:
    """What the owner chose. ConfigError for a name that no profile can have, or limits that mean nothing.

    limits: those that the unit names, by the names of `Limits.of_owner`; the others stay as the profile has them. port:
    of the page. node: whether there is a SuperNode at all. node_host: where it meets its ClientApps. python: the
    interpreter that has homerank. memory_device, memory_node: bytes, as systemd writes them.
    """

    limits: Mapping[str, object] = field(default_factory=dict)
    profile: str = "default"
    port: int = 8765
    node: bool = True
    node_host: str = IPV6
    any_time: bool = False
    python: Path = field(default_factory=lambda: Path(sys.executable))
    memory_device: str = "3G"
    memory_node: str = "1G"

    def __post_init__(self) -> None:
        check_name(self.profile)
        Limits.of_owner(**(asdict(USUAL) | dict(self.limits)))

    @property
    def serve(self) -> list[str]:
        """The command line of the person's service."""
        command = ["serve", "--home", str(SERVICE_HOME), "--profile", self.profile, "--port", str(self.port)]
        command += ["--socket", str(socket_of(self.profile))]
        for name, value in self.limits.items():
            option = _OPTIONS[name]
            if isinstance(value, bool):
                command.append(f"--{option}" if value else f"--no-{option}")
            else:
                command += [f"--{option}", f"{value:g}" if isinstance(value, float) else str(value)]
        return self._program([*command, *(["--any-time"] if self.any_time else [])])

    @property
    def take_part(self) -> list[str]:
        """The command line of the SuperNode."""
        command = ["node", "--home", str(NODE_HOME), "--socket", str(socket_of(self.profile))]
        return self._program([*command, "--loopback", self.node_host])

    def _program(self, arguments: Sequence[str]) -> list[str]:
        return [str(self.python), "-P", "-m", "client", *arguments]


def written_files(choices: Choices) -> dict[Path, str]:
    """Every file that root owns, by path."""
    files = {
        UNITS / DEVICE_UNIT: device_unit(choices),
        TMPFILES: f"# Written by homerank-client install.\n"
        f"d {SOCKETS} {SOCKETS_MODE:o} {SERVICE_USER} {SOCKET_GROUP} -\n",
    }
    if choices.node:
        files[UNITS / NODE_UNIT] = node_unit(choices)
    return files


def device_unit(choices: Choices) -> str:
    """The unit of the person's service."""
    return f"""\
# Written by homerank-client install; `homerank-client leave` removes it.
[Unit]
Description=homerank: one person's recommender, on this machine only
After=systemd-tmpfiles-setup.service

[Service]
Type=exec
User={SERVICE_USER}
Group={SERVICE_USER}
ExecStart={_line(choices.serve)}
WorkingDirectory={SERVICE_HOME}
{_environment(f"HOME={SERVICE_HOME}", f"HOMERANK_CACHE={SERVICE_HOME}/cache")}
Restart=on-failure
RestartSec=10
SuccessExitStatus=143
Nice=5
MemoryMax={choices.memory_device}
TasksMax=256

{_HARDENED}ReadWritePaths={SERVICE_HOME} {SOCKETS}
InaccessiblePaths=-{NODE_HOME} -/run/dbus
# It never needs the network: rounds come in by the socket, the page by loopback.
RestrictAddressFamilies=AF_UNIX AF_INET
IPAddressAllow=localhost
IPAddressDeny=any

[Install]
WantedBy=multi-user.target
"""


def node_unit(choices: Choices) -> str:
    """The unit of the SuperNode."""
    apart = (
        f"# The page listens on {IPV4}; the SuperNode and its ClientApps meet on {IPV6}.\nIPAddressDeny={IPV4}\n"
        if choices.node_host == IPV6
        else f"# No packet filter: the SuperNode needs {IPV4} itself. The page's token keeps it out.\n"
    )
    return f"""\
# Written by homerank-client install; `homerank-client leave` removes it.
[Unit]
Description=homerank: takes part in training for the server
Requires={DEVICE_UNIT}
After={DEVICE_UNIT} network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
User={NODE_USER}
Group={NODE_USER}
SupplementaryGroups={SOCKET_GROUP}
ExecStart={_line(choices.take_part)}
WorkingDirectory={NODE_HOME}
{_environment(f"HOME={NODE_HOME}")}
Restart=on-failure
RestartSec=30
SuccessExitStatus=143
Nice=10
MemoryMax={choices.memory_node}
TasksMax=128

{_HARDENED}ReadWritePaths={NODE_HOME}
# Connecting to the socket takes no right to write in its folder.
InaccessiblePaths={SERVICE_HOME} -/run/dbus
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
{apart}
[Install]
WantedBy=multi-user.target
"""


def _line(words: Sequence[str]) -> str:
    """Words as systemd reads them: quoted as in a shell, and a per cent sign twice."""
    return shlex.join(words).replace("%", "%%")


def _environment(*own: str) -> str:
    """Environment lines; a checkout that is not installed is named, as for Flower's programs."""
    checkout = Path(__file__).resolve().parents[2]
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    path = () if str(checkout) in installed else (f"PYTHONPATH={checkout}",)
    return "\n".join(f"Environment={_line([pair])}" for pair in (*own, *_OFFLINE, *path))
