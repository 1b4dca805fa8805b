"""A real deployment on one machine: seconds and bytes of a round, what an idle device costs, how fast a message starts.

    PYTHONPATH=. python -m benchmarks.deployment --devices 3
    PYTHONPATH=. python -m benchmarks.deployment --devices 10 --rounds 3

Everything is a process of its own, as `docs/deploy-device.md` has it: nginx, SuperLink and enrolment app; for each
device a service (store, page, training door, worker) and a SuperNode, which reaches nginx through a port that counts
bytes. People and items are made up and small. Without --backbone minilm the backbone is a tiny random one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from time import monotonic, perf_counter, sleep

import numpy as np
import psutil
from flwr.app import RecordDict

from benchmarks.devices import ROOT, Device, role_of, start_devices
from benchmarks.processes import Meter
from benchmarks.relay import Passed, Relays
from client.door import wire
from client.door.lock import default_socket
from client.door.sent import read_sent
from server.aggregation import trained_names
from server.budget import quantile_weight
from server.deployment import initialise
from server.journal import JOURNAL, Journal
from server.running import running_server
from server.settings import ServerSettings
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_catalogue
from shared.config import load_config
from shared.errors import DeploymentError
from shared.noise import Noise
from shared.protocol import Manifest, encode_request
from shared.runtime import public_settings, runtime_for
from shared.terminal import Child, free_port

#: Seconds between the last round and the measurement of idle devices.
SETTLE = 8.0

THIN = """
import sys
from pathlib import Path
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from client.app import app
from client.door import wire
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
message = Message(wire.unpack(Path(sys.argv[2]).read_bytes()), dst_node_id=7, message_type="train")
message.metadata.__dict__["_message_id"] = "m"
node = {"socket": sys.argv[1]}
reply = app(message, Context(run_id=1, node_id=7, node_config=node, state=RecordDict(), run_config={}))
sys.exit("refusal" in reply.content.config_records.get("config", {}))
"""


@dataclass(frozen=True)
class Step:
    """One exchange: its line in the journal, and what had passed through each device's port when it was there."""

    row: dict[str, object]
    passed: list[Passed]


def follow(loop: Child, journal: Journal, relays: Relays, *, timeout: float) -> list[Step]:
    """The exchanges of a run, until it ends."""
    steps: list[Step] = []
    deadline = monotonic() + timeout
    while loop.exit_code is None and monotonic() < deadline:
        rows = [row for row in journal.rows() if row["event"] == "exchange"]
        steps += [Step(row, [passed.copy() for passed in relays.passed]) for row in rows[len(steps) :]]
        sleep(0.1)
    if loop.exit_code != 0:
        raise DeploymentError(f"the rounds did not end well: {loop.tail()}")
    return steps


def round_rows(steps: list[Step], devices: list[Device]) -> list[str]:
    """One line for each exchange but the first: seconds since the one before, bytes of a device in that time."""
    lines = []
    logs = [read_sent(device.profile.sent)[0] for device in devices]
    for before, step in pairwise(steps):
        phase, number = step.row["phase"], step.row["round"]
        passed = [now.minus(then) for now, then in zip(step.passed, before.passed, strict=True)]
        sent = [row.bytes for log in logs for _, row in log if (row.phase, row.round) == (phase, number)]
        seconds = float(str(step.row["time"])) - float(str(before.row["time"]))
        cells = (
            f"{phase} {number}",
            f"{seconds:.1f}",
            f"{step.row.get('accepted', '-')}",
            json.dumps(refused) if (refused := step.row.get("refused")) else "-",
            f"{statistics.mean(one.down for one in passed) / 1000:.1f}",
            f"{statistics.mean(one.up for one in passed) / 1000:.1f}",
            f"{statistics.mean(sent) / 1000:.1f}" if sent else "-",
            f"{statistics.mean(one.links for one in passed):.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


ROUND_HEAD = (
    "| exchange | seconds since the one before | accepted | refused | kB down a device | kB up a device"
    " | kB of the answer itself | connections |\n|---|---|---|---|---|---|---|---|"
)
IDLE_HEAD = "| process of an idle device | CPU s a minute | RSS MB |\n|---|---|---|"


def idle_rows(devices: list[Device], relays: Relays, *, seconds: float) -> list[str]:
    """What a device that has nothing to do costs, mean of all, with the backbone still in its worker."""
    groups: dict[str, list[psutil.Process]] = {}
    for device in devices:
        for process in device.processes():
            with suppress(psutil.Error):  # a ClientApp that has just ended
                groups.setdefault(role_of(process.cmdline()), []).append(process)
    before, meter = [passed.copy() for passed in relays.passed], Meter(groups)
    sleep(seconds)
    cost, count, minutes = meter.read(), len(devices), meter.seconds / 60
    passed = [now.minus(then) for now, then in zip(relays.passed, before, strict=True)]
    lines = [f"| {role} | {60 * one.cpu / count:.2f} | {one.rss / count / 1e6:.0f} |" for role, one in cost.items()]
    total = sum(one.rss for one in cost.values()) / count / 1e6
    lines.append(f"| together | {sum(60 * one.cpu for one in cost.values()) / count:.2f} | {total:.0f} |")
    down, up = (statistics.mean(getattr(one, way) for one in passed) / minutes for way in ("down", "up"))
    return [*lines, "", f"An idle device takes {down / 1000:.1f} kB and sends {up / 1000:.1f} kB in a minute."]


def training_question(out: Path) -> RecordDict:
    """A training message like those of the run in `out`, of another run."""
    config, catalogue = load_config(out / "config.toml"), load_catalogue(out / "items.jsonl")
    runtime = runtime_for(config, catalogue)
    start = AdapterState({**runtime.start.arrays, POPULARITY: np.zeros(len(catalogue), dtype=np.float32)})
    clip = config.privacy.user_clip
    names = trained_names(config.federation.aggregation, round_number=1, names=list(runtime.start))
    settings = {
        **public_settings(config),
        "noise": Noise("none", "aggregate", "device", 1).to_dict(),
        "training": {
            **config.to_dict()["training"],
            "update_clip": clip,
            "quantile_weight": quantile_weight(config, clip),
        },
    }
    manifest = Manifest(
        run="benchmark",
        round=1,
        phase="train",
        backbone=runtime.backbone.digest,
        catalogue=catalogue.fingerprint,
        shapes=start.shapes,
        reply={name: runtime.start.shapes[name] for name in names},
        settings=settings,
    )
    return encode_request(manifest, start)


def start_rows(device: Device, out: Path, folder: Path, *, tries: int) -> list[str]:
    """Seconds from the start of a ClientApp's process to its end, and those in which the worker computed."""
    question, path = training_question(out), default_socket(device.profile)
    (folder / "question").write_bytes(wire.pack(question))
    whole, asked = [], []
    for _ in range(tries):
        sleep(1.2)  # the door answers once a second
        began = perf_counter()
        reply = wire.ask(path, question)
        asked.append(perf_counter() - began)
        if "refusal" in reply["config"]:
            raise DeploymentError(f"the door refused: {reply['config']['refusal']}")
        sleep(1.2)
        began = perf_counter()
        words = [sys.executable, "-c", THIN, str(path), str(folder / "question")]
        subprocess.run(words, cwd=ROOT, check=True, timeout=60)
        whole.append(perf_counter() - began)
    thin = statistics.median(whole) - statistics.median(asked)
    return [
        "| a training message with a warm worker | median s | slowest s |\n|---|---|---|",
        f"| the whole process of the ClientApp | {statistics.median(whole):.2f} | {max(whole):.2f} |",
        f"| of that, the worker's answer | {statistics.median(asked):.2f} | {max(asked):.2f} |",
        f"| the thin app by itself | {thin:.2f} | |",
    ]


def measure(chosen: argparse.Namespace, folder: Path) -> None:
    """Start everything, run the rounds, print the tables."""
    began = monotonic()
    initialise(folder / "s", ServerSettings(names=("127.0.0.1",), listen="127.0.0.1"))
    with ExitStack() as stack:
        server = stack.enter_context(running_server(folder / "s", port=free_port(), timeout=120))
        relays = stack.enter_context(Relays(server.deployment.public_port, chosen.devices))
        devices = start_devices(stack, folder, server.deployment, relays)
        print(f"{len(devices)} devices have joined after {monotonic() - began:.0f} s\n", flush=True)
        out = folder / "out"
        settings = ("privacy.mode=none", f"model.backbone={chosen.backbone}", "prior.half_lives=[]", *chosen.set)
        command = [sys.executable, "-m", "server", "rounds", "start", str(server.deployment.folder)]
        command += ["--catalogue", str(folder / "data 0" / "items.csv"), "--devices", str(chosen.devices)]
        command += ["--rounds", str(chosen.rounds), "--out", str(out)]
        command += [part for setting in settings for part in ("--set", setting)]
        loop = stack.enter_context(Child(command, log=folder / "rounds.log", env=os.environ, cwd=ROOT))
        steps = follow(loop, Journal(server.deployment.folder / JOURNAL), relays, timeout=chosen.limit)
        print("\n".join([ROUND_HEAD, *round_rows(steps, devices), ""]), flush=True)
        sleep(SETTLE)
        print("\n".join([IDLE_HEAD, *idle_rows(devices, relays, seconds=chosen.idle), ""]), flush=True)
        print("\n".join(start_rows(devices[0], out, folder, tries=chosen.tries)), flush=True)
    print(f"\nall of it took {monotonic() - began:.0f} s")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--backbone", default="tiny-bert", help="tiny-bert, or minilm")
    parser.add_argument("--set", action="append", default=[], help="further settings of the run", metavar="KEY=VALUE")
    parser.add_argument("--idle", type=float, default=30.0, help="seconds for which the devices are left alone")
    parser.add_argument("--tries", type=int, default=5, help="starts of the thin app")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for the rounds")
    chosen = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}, load {os.getloadavg()[0]:.1f}")
    folder = Path(mkdtemp(prefix="hr-"))  # short: the path of a local socket has a limit
    try:
        measure(chosen, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
