"""Real devices for a benchmark: made-up people, and two programs for each, as `docs/deploy-device.md` has it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.processes import family
from benchmarks.relay import Relays
from client.deployment import DeviceHome
from client.door.lock import default_socket
from client.enrolment import INVITATION, enrol
from client.portability import import_data
from client.profile import Profile
from server.deployment import Deployment
from shared.errors import DeploymentError
from shared.terminal import Child, wait_until

ROOT = Path(__file__).resolve().parents[1]
ITEMS, EVENTS = 200, 30
#: Which processes of a device are which, by a word of their command line; the first that fits.
ROLES = {
    "worker": "client.door.worker",
    "ClientApp": "flwr-clientapp",
    "SuperExec": "flower-superexec",
    "SuperNode": "flower-supernode",
    "service": "serve",
    "starter": "node",
}


def role_of(words: Sequence[str]) -> str:
    """What a device's process is, from its command line."""
    line = " ".join(words)
    return next((role for role, word in ROLES.items() if word in line), "other")


def write_people(folder: Path, devices: int) -> list[Path]:
    """A data folder for each device: its person's clicks on random items of one catalogue, one a minute."""
    chance, folders = random.Random(0), []
    items = "\n".join(["item,title,text", *(f"i{n},Thing {n},a thing of group {n % 9}" for n in range(ITEMS))])
    for device in range(devices):
        target = folder / f"data {device}"
        target.mkdir()
        clicks = [f"p,i{item},{60 * step},click" for step, item in enumerate(chance.sample(range(ITEMS), EVENTS))]
        (target / "events.csv").write_text("\n".join(["user,item,timestamp,kind", *clicks]) + "\n")
        (target / "items.csv").write_text(items + "\n")
        folders.append(target)
    return folders


@dataclass
class Device:
    """One device: its folder and its two programs."""

    home: DeviceHome
    programs: list[Child] = field(default_factory=list)

    @property
    def profile(self) -> Profile:
        """The person's."""
        return Profile.open(self.home.folder)

    def begin(self, stack: ExitStack, name: str, *arguments: str) -> None:
        """Start one of its programs; it ends with the stack."""
        command = [sys.executable, "-m", "client", *arguments, "--home", str(self.home.folder)]
        log = self.home.folder / "logs" / f"{name}.log"
        self.programs.append(stack.enter_context(Child(command, log=log, env=os.environ, cwd=ROOT)))

    def processes(self) -> list[psutil.Process]:
        """All of them."""
        return [process for child in self.programs for process in family(child.pid)]


def await_line(devices: list[Device], number: int, line: str, *, timeout: float) -> None:
    """Wait until program `number` of every device has written something. DeploymentError with its log otherwise."""
    for device in devices:
        child = device.programs[number]
        wait_until(lambda child=child: line in child.tail(200) or child.exit_code is not None, timeout=timeout)
        if line not in child.tail(200):
            raise DeploymentError(f"{child.log} does not say {line!r}: {child.tail()}")


def start_devices(stack: ExitStack, folder: Path, deployment: Deployment, relays: Relays) -> list[Device]:
    """Enrol and start them, each behind its own counting port."""
    count = len(relays.ports)
    script = [sys.executable, "-m", "server", "enroll", str(deployment.folder), "--count", str(count), "--json"]
    given = json.loads(subprocess.run(script, stdout=subprocess.PIPE, cwd=ROOT, check=True).stdout)
    devices = [Device(DeviceHome.at(folder / f"d{number}")) for number in range(count)]
    people = write_people(folder, count)
    for device, token, port, data in zip(devices, given["tokens"], relays.ports, people, strict=True):
        enrol(given["url"], token, device.home)
        invitation = device.home.folder / INVITATION
        facts = json.loads(invitation.read_text())
        invitation.write_text(json.dumps({**facts, "address": f"127.0.0.1:{port}"}))
        import_data(device.profile, data)
        device.begin(stack, "service", "serve", "--port", "0", "--privacy", "none", "--any-time")
    await_line(devices, 0, "leave with Ctrl-C", timeout=150)
    for device in devices:
        device.begin(stack, "node", "node", "--timeout", "150", "--socket", str(default_socket(device.profile)))
    await_line(devices, 1, "joined", timeout=150)
    return devices
