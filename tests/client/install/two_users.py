"""A service and an attacker beside it, each under a user number of its own, with the modes that `install` sets."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest

from client.door import wire
from client.install.accounts import Account
from client.install.layout import SOCKETS_MODE
from client.install.ownership import hand_over
from client.profile import Profile
from shared.adapter import AdapterState
from tests.client.service.small_service import write_adapter
from tests.client.small_device import EVENT, SHELF, global_state, question, tiny_runtime
from tests.client.small_door import person

ROOT = Path(__file__).resolve().parents[3]
SERVICE, NODE, NOBODY = Account(64001, 64001), Account(64002, 64002), Account(64003, 64003)
SOCKET_GROUP = 64010
#: Two rounds of `train` fit, a third does not (one is about 2.0, two about 3.0, three about 3.7 at delta 1e-5).
EPSILON = 3.2


def environment(home: Path) -> dict[str, str]:
    """Of both users' processes."""
    path = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    given = {"PATH": os.defpath, "PYTHONPATH": path, "HOME": str(home), "HOMERANK_CACHE": str(home)}
    offline = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    return {**given, **offline, "PYTHONDONTWRITEBYTECODE": "1"}


@cache
def python() -> str:
    """An interpreter that other users may run, of this version; skips with the reason where there is none."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to run two processes under two users")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for program in (sys.executable, which(version, path="/usr/local/bin:/usr/bin")):
        if program is None:
            continue
        command = [program, "-P", "-c", "import client.profile, torch, flwr"]
        with suppress(PermissionError):
            done = subprocess.run(
                command,
                env=environment(Path("/tmp")),
                cwd="/",
                capture_output=True,
                user=NODE.user,
                group=NODE.group,
                extra_groups=[],
            )
            if done.returncode == 0:
                return program
    pytest.skip(f"found no {version} that other users can run and that finds {ROOT} and what it needs")


@dataclass
class Place:
    """Folders for two users. home: the service's. sockets: of the training socket. own: the attacker's."""

    base: Path

    @property
    def home(self) -> Path:
        return self.base / "home"

    @property
    def socket(self) -> Path:
        return self.base / "run" / "default.sock"

    @property
    def own(self) -> Path:
        return self.base / "node"

    @property
    def profile(self) -> Profile:
        return Profile(self.home / "profiles" / "default")


@contextmanager
def place() -> Iterator[Place]:
    """A profile with ten events and a small adapter, owned as an installed device's would be."""
    base = Path(tempfile.mkdtemp(prefix="homerank-", dir="/tmp"))
    try:
        base.chmod(0o755)
        found = Place(base)
        profile = person(found.home, "default")
        write_adapter(profile.adapter, catalogue=SHELF)
        for folder in (found.own, base / "cache"):
            folder.mkdir()
        hand_over(found.home, SERVICE)
        hand_over(base / "cache", SERVICE)
        hand_over(found.own, NODE)
        found.socket.parent.mkdir()
        os.chown(found.socket.parent, SERVICE.user, SOCKET_GROUP)
        found.socket.parent.chmod(SOCKETS_MODE)
        yield found
    finally:
        shutil.rmtree(base)


@contextmanager
def service(found: Place, *options: str) -> Iterator[dict[str, Any]]:
    """A running service of its own user: what it says of itself, and its process id."""
    command = [python(), "-P", "-m", "client", "serve", "--home", str(found.home), "--port", "0", "--json"]
    command += ["--socket", str(found.socket), "--any-time", "--epsilon", f"{EPSILON}", *options]
    log = (found.base / "service.log").open("wb")
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=log,
        env=environment(found.base / "cache"),
        cwd=found.home,
        user=SERVICE.user,
        group=SERVICE.group,
        extra_groups=[],
        umask=0o077,
    )
    try:
        assert process.stdout is not None
        facts = json.loads(process.stdout.readline())
        yield {**facts, "pid": process.pid, "port": int(facts["url"].rsplit(":", 1)[1])}
        assert process.poll() is None, "the service ended"
    finally:
        process.terminate()
        process.wait(60)
        log.close()


def attack(found: Place, served: dict[str, Any], groups: Sequence[int] = (SOCKET_GROUP,)) -> dict[str, Any]:
    """What the hostile bundle reports, run as the SuperNode's user."""
    spec, report = found.own / "spec.json", found.own / "report.json"
    spec.write_text(json.dumps(instructions(found.home, found.socket, served["pid"], served["port"])))
    spec.chmod(0o644)
    done = subprocess.run(
        [python(), "-P", "-m", "tests.client.install.hostile", str(spec), str(report)],
        env=environment(found.own),
        cwd=found.own,
        user=NODE.user,
        group=NODE.group,
        extra_groups=list(groups),
        timeout=600,
        check=False,
    )
    assert done.returncode == 0
    facts: dict[str, Any] = json.loads(report.read_text())
    return facts


def instructions(home: Path, socket: Path, pid: int, port: int) -> dict[str, Any]:
    """What the attacker knows."""
    return {
        "home": str(home),
        "profile": str(home / "profiles" / "default"),
        "socket": str(socket),
        "pid": pid,
        "port": port,
        "questions": {name: base64.b64encode(data).decode() for name, data in questions().items()},
    }


def questions() -> dict[str, bytes]:
    """Packed questions by name; only `train` and `another adapter` are what an honest server could ask."""
    runtime = tiny_runtime()
    start = global_state(runtime)
    poisoned = AdapterState({name: np.full_like(array, np.nan) for name, array in start.arrays.items()})
    strange = AdapterState({name: array[..., :1] for name, array in start.arrays.items()})
    asked = {
        "train": question("train"),
        "for the events": question("train", reply={"events": (24,)}),
        "for everything that was done": question("train", reply={"events": (10_000_000,)}),
        "without noise": question("train", noise={**EVENT, "event": {"multiplier": 1e-9, "clip": 2.0}}),
        "without protection": question("train", noise=None),
        "for raw counts": question("popularity", noise=None),
        "a poisoned adapter": question("install", state=poisoned),
        "an adapter of other shapes": question("install", state=strange),
        "another adapter": question("install", outcome="adapter", privacy={}),
    }
    return {name: wire.pack(content) for name, (_, content) in asked.items()}
