"""How many devices one server holds: thin devices (see benchmarks/thin.py) against a real nginx and SuperLink.

    PYTHONPATH=. python -m benchmarks.fleet

First so many devices wait for work, as they do most of the day; then a ServerApp sends one message to each of them and
takes the replies. Everything runs on 127.0.0.1 and ends by itself; the devices' side takes CPU of the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import ssl
import sys
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

import psutil
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink.federation import NoOpFederationManager

from benchmarks.processes import Meter, family
from benchmarks.thin import HEARTBEAT_INTERVAL, HEARTBEAT_SECONDS, POLL_SECONDS, Tally, ThinDevice
from server.deployment import initialise
from server.fleet import Fleet
from server.running import Server, running_server
from server.runs import run_rounds
from server.settings import ServerSettings
from shared.errors import DeploymentError
from shared.terminal import free_port

#: Requests of a waiting device in a second, when every answer comes at once.
IDLE_RATE = 1 / POLL_SECONDS + 2 / sum(HEARTBEAT_SECONDS)
#: No test may open more, whatever is asked for.
MOST_DEVICES = 4_000

SERVER_APP = '''
"""Sends one array to every device that is online, takes what comes back, and writes down how long that took."""

import json
from pathlib import Path
from time import monotonic, sleep

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    wanted, ids = int(context.run_config["devices"]), []
    while len(ids) < wanted:
        ids = list(grid.get_node_ids())
        sleep(0.5)
    array = ArrayRecord({"x": Array(np.zeros(int(context.run_config["entries"]), dtype=np.float32))})
    content = RecordDict({"arrays": array})
    started = monotonic()
    messages = [Message(content, dst_node_id=node, message_type="train") for node in ids[:wanted]]
    replies = list(grid.send_and_receive(messages, timeout=float(context.run_config["seconds"])))
    found = {"seconds": monotonic() - started, "replies": len(replies)}
    Path(context.run_config["out"]).write_text(json.dumps(found))
'''


def idle_row(devices: int, tally: Tally, meter: Meter, *, offline: int, log_rate: float) -> str:
    """One line of the first table."""
    cost, seconds = meter.read(), meter.seconds
    rate = tally.requests / seconds
    cells = (
        f"{devices:,}",
        f"{devices * IDLE_RATE:,.0f}",
        f"{rate:,.0f}",
        f"{tally.percentile(0.5):,.0f}",
        f"{tally.percentile(0.99):,.0f}",
        f"{sum(tally.errors.values())}",
        f"{offline}",
        f"{cost['nginx'].cpu:.2f}",
        f"{cost['SuperLink'].cpu:.2f}",
        f"{1000 * cost['SuperLink'].cpu / rate:.1f}",
        f"{cost['devices'].cpu:.2f}",
        f"{(cost['SuperLink'].written - log_rate) / 1000 / rate:.1f}",
        f"{cost['SuperLink'].rss / 1e6:,.0f}",
    )
    return f"| {' | '.join(cells)} |"


IDLE_HEAD = (
    "| devices | requests/s offered | answered | p50 ms | p99 ms | errors | called offline | nginx CPU | SuperLink CPU"
    " | SuperLink CPU ms a request | devices' CPU | kB written a request | SuperLink MB |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)
ROUND_HEAD = (
    "| devices | entries | replies | seconds | requests a device | kB down a device | kB up a device | p50 ms | p99 ms"
    " | errors | SuperLink CPU |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


class Load:
    """Registered devices, of which some live at a time. Owns the event loop's tasks; `end` stops them all."""

    def __init__(self, server: Server) -> None:
        self.server, self.deployment = server, server.deployment
        self.tally = Tally()
        self._tls = ssl.create_default_context(cafile=str(self.deployment.ca))
        self.devices: list[ThinDevice] = []
        database = str(self.deployment.folder / "superlink.sqlite")
        self._state = LinkStateFactory(database, NoOpFederationManager(), ObjectStoreFactory(database)).state()
        self._tasks: list[asyncio.Task[None]] = []

    def register(self, count: int) -> float:
        """Have Flower know so many devices in all; seconds that each one takes the way an operator does it.

        The first eight come in over the control interface. That takes long, so the others are written into its
        database by its own code, with the same owner.
        """
        new = [ec.generate_private_key(ec.SECP256R1()) for _ in range(count - len(self.devices))]
        started = monotonic()
        with Fleet(self.deployment) as fleet:
            for key in new[:8]:
                text = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
                self._add(key, int(fleet.register(text) or 0))
        seconds = (monotonic() - started) / 8
        owner = self._state.get_node_info()[0]
        for key in new[8:]:
            encoded = public_key_to_bytes(key.public_key())
            self._add(key, self._state.create_node(owner.owner_aid, owner.owner_name, encoded, HEARTBEAT_INTERVAL))
        return seconds

    def _add(self, key: ec.EllipticCurvePrivateKey, node: int) -> None:
        if not node:
            raise DeploymentError("Flower did not take a new key")
        self.devices.append(ThinDevice(key, node, port=self.deployment.public_port, tls=self._tls))

    async def grow(self, count: int, *, ramp: float) -> None:
        """Bring so many to life, the new ones over `ramp` seconds; wait until they are active or twice that is over."""
        new = self.devices[len(self._tasks) : count]
        for number, device in enumerate(new):
            self._tasks.append(asyncio.create_task(device.live(self.tally, delay=ramp * number / max(1, len(new)))))
        deadline = monotonic() + 2 * ramp
        while monotonic() < deadline and not all(device.active for device in new):
            await asyncio.sleep(0.2)

    def meter(self) -> Meter:
        """Of the server's processes and of this one."""
        superlink, *others = self.server.children
        return Meter(
            {
                "SuperLink": [psutil.Process(superlink.pid)],
                "nginx": family(others[-1].pid),
                "devices": [psutil.Process()],
            }
        )

    def log_size(self) -> int:
        """Bytes of the SuperLink's log, which are no writes of its database."""
        return self.deployment.superlink_log.stat().st_size

    def offline(self) -> int:
        """How many of those that live Flower calls offline."""
        with Fleet(self.deployment) as fleet:
            online = sum(node.status == "online" for node in fleet.nodes())
        return len(self._tasks) - online

    async def end(self) -> None:
        """Stop every device."""
        for task in self._tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)


async def wait_idle(load: Load, devices: int, *, seconds: float) -> str:
    """Measure waiting devices for so many seconds; a row."""
    load.tally.begin()
    meter, log = load.meter(), load.log_size()
    await asyncio.sleep(seconds)
    log_rate = (load.log_size() - log) / meter.seconds
    offline = await asyncio.to_thread(load.offline)
    return idle_row(devices, load.tally, meter, offline=offline, log_rate=log_rate)


async def one_round(load: Load, folder: Path, *, entries: int, seconds: float) -> str:
    """One message to each device that lives, and its reply; a row."""
    devices, out = len(load._tasks), folder / "round.json"
    out.unlink(missing_ok=True)
    config = {"devices": devices, "entries": entries, "seconds": seconds, "out": str(out)}
    load.tally.begin()
    meter = load.meter()
    await asyncio.to_thread(
        run_rounds,
        load.deployment.folder,
        run_config=config,
        components=("asking:app", "client.app:app"),
        timeout=seconds + 60,
    )
    found, tally = json.loads(out.read_text()), load.tally
    work = {name: times for name, times in tally.milliseconds.items() if name not in ("send-node-heartbeat",)}
    asked = sum(len(times) for name, times in work.items() if name != "pull-messages") + found["replies"]
    cells = (
        f"{devices:,}",
        f"{entries:,}",
        f"{found['replies']:,}",
        f"{found['seconds']:.1f}",
        f"{asked / devices:.1f}",
        f"{tally.down / devices / 1000:.1f}",
        f"{tally.up / devices / 1000:.1f}",
        f"{tally.percentile(0.5):,.0f}",
        f"{tally.percentile(0.99):,.0f}",
        f"{sum(tally.errors.values())}",
        f"{meter.read()['SuperLink'].cpu:.2f}",
    )
    return f"| {' | '.join(cells)} |"


async def measure(chosen: argparse.Namespace, server: Server, folder: Path) -> None:
    """Print both tables."""
    load, began = Load(server), monotonic()
    try:
        rounds: list[str] = []
        print(IDLE_HEAD, flush=True)
        each = await asyncio.to_thread(load.register, max(chosen.devices))
        print(
            f"registered {len(load.devices)} devices; over the control interface {1000 * each:.0f} ms each",
            file=sys.stderr,
        )
        for devices in chosen.devices:
            if monotonic() - began > chosen.limit:
                print(f"stopped: {chosen.limit:.0f} s are over", file=sys.stderr)
                break
            await load.grow(devices, ramp=max(POLL_SECONDS, devices / chosen.joins))
            print(await wait_idle(load, devices, seconds=chosen.seconds), flush=True)
            if devices in chosen.rounds:
                rounds.append(await one_round(load, folder, entries=chosen.entries, seconds=chosen.limit / 3))
            if load.tally.errors:
                print(f"errors with {devices} devices: {dict(load.tally.errors)}", file=sys.stderr)
        print("\n".join(["", ROUND_HEAD, *rounds]), flush=True)
    finally:
        await load.end()


def main() -> None:
    """Start a server, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, nargs="+", default=[50, 100, 200, 400, 1000])
    parser.add_argument("--rounds", type=int, nargs="*", default=[50, 100], help="at which of these a round is run")
    parser.add_argument("--entries", type=int, default=150_000, help="floats in a message, each way")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement of waiting devices")
    parser.add_argument("--joins", type=float, default=25.0, help="devices that come online in a second")
    parser.add_argument("--limit", type=float, default=170.0, help="seconds after which no stage begins")
    chosen = parser.parse_args()
    if max(chosen.devices) > MOST_DEVICES:
        parser.error(f"at most {MOST_DEVICES} devices")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}, load {os.getloadavg()[0]:.1f}\n")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "asking.py").write_text(SERVER_APP)
        os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        initialise(folder / "d", ServerSettings(names=("127.0.0.1",), listen="127.0.0.1"))
        with running_server(folder / "d", port=free_port(), timeout=120) as server:
            asyncio.run(measure(chosen, server, folder))


if __name__ == "__main__":
    main()
