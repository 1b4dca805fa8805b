"""docs/deploy.md between two machines: network namespaces with one cable between them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.deployment import DeviceHome
from server.deployment import Deployment
from server.proxy import nginx_program
from shared.terminal import wait_until
from tests.server.programs import ROOT
from tests.server.test_proxy import NO_NGINX

SERVER, DEVICE, PORT = "10.231.77.1", "10.231.77.2", "8443"


def network(*words: str) -> subprocess.CompletedProcess[str]:
    """One call of `ip`."""
    return subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20)


def has_namespaces() -> bool:
    """Whether this machine lets us make network namespaces."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    made = network("netns", "add", f"hr-try-{os.getpid()}").returncode == 0
    return made and network("netns", "del", f"hr-try-{os.getpid()}").returncode == 0


class Machine:
    """A network namespace with one address and nothing else."""

    def __init__(self, name: str) -> None:
        self.name = name
        assert network("netns", "add", name).returncode == 0
        network("-n", name, "link", "set", "lo", "up")

    def words(self, *arguments: str) -> list[str]:
        """A program of ours on this machine."""
        return ["ip", "netns", "exec", self.name, sys.executable, *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(self.words(*arguments), capture_output=True, text=True, cwd=ROOT, timeout=120)

    def command(self, *arguments: str) -> Any:
        """Run a homerank program with --json; its object."""
        done = self.run("-m", *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def opens(self, port: int) -> bool:
        """Whether this machine gets through to a port of the server."""
        script = (
            f"import socket, sys; s = socket.socket(); s.settimeout(3); sys.exit(s.connect_ex(({SERVER!r}, {port})))"
        )
        return self.run("-c", script).returncode == 0


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    """The server's and the device's, with a cable between them."""
    if not has_namespaces():
        pytest.skip("network namespaces need root and iproute2")
    made = [Machine(f"hr-{role}-{os.getpid()}") for role in ("server", "device")]
    try:
        ends = [f"hr{role}{os.getpid()}" for role in "sd"]
        network(
            "link",
            "add",
            ends[0],
            "netns",
            made[0].name,
            "type",
            "veth",
            "peer",
            "name",
            ends[1],
            "netns",
            made[1].name,
        )
        for machine, end, address in zip(made, ends, (SERVER, DEVICE), strict=True):
            network("-n", machine.name, "addr", "add", f"{address}/24", "dev", end)
            assert network("-n", machine.name, "link", "set", end, "up").returncode == 0
        yield made[0], made[1]
    finally:
        for machine in made:
            network("netns", "del", machine.name)


@pytest.mark.slow
@pytest.mark.skipif(nginx_program() is None, reason=NO_NGINX)
def test_a_device_joins_from_another_machine_and_sees_one_port(
    tmp_path: Path, machines: tuple[Machine, Machine]
) -> None:
    here, there = machines
    folder, home, data = tmp_path / "d", DeviceHome.at(tmp_path / "device"), tmp_path / "data"
    data.mkdir()
    (data / "items.csv").write_text("item,title,text\ntea-1,Tea,Green leaf tea\ncup-7,Cup,\n")
    (data / "events.csv").write_text("user,item\nana,tea-1\nana,cup-7\n")
    made = here.command("server", "init", str(folder), "--name", SERVER)
    assert made["address"] == f"{SERVER}:{PORT}"
    server = subprocess.Popen(
        here.words("-m", "server", "start", str(folder), "--json"), stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    node: subprocess.Popen[str] | None = None
    try:
        assert server.stdout is not None
        assert json.loads(server.stdout.readline())["proxied"] is True
        given = here.command("server", "enroll", str(folder))
        script = (
            "import sys; from pathlib import Path; from client.deployment import DeviceHome;"
            " from client.enrolment import enrol; enrol(sys.argv[1], sys.argv[2], DeviceHome.at(Path(sys.argv[3])))"
        )
        enrolled = there.run("-c", script, given["url"], given["tokens"][0], str(home.folder))
        assert enrolled.returncode == 0, enrolled.stderr
        join = ["client", "join", str(home.folder / "invitation.json"), "--home", str(home.folder), "--data", str(data)]
        node = subprocess.Popen(there.words("-m", *join, "--json"), stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert node.stdout is not None
        assert json.loads(node.stdout.readline())["joined"] is True
        assert [each["state"] for each in here.command("server", "devices", str(folder))["devices"]] == ["online"]
        deployment = Deployment.at(folder)
        ports = (deployment.public_port, deployment.port, deployment.door)
        assert [there.opens(port) for port in ports] == [True, False, False]

        # a new certificate is served at once, and the device takes it
        before = (folder / "server.pem").read_bytes()
        assert here.command("server", "renew", str(folder))["reloaded"] is True
        fetch = (
            "import ssl, sys;"
            " sys.stdout.write(ssl.get_server_certificate((sys.argv[1], int(sys.argv[2])), ca_certs=sys.argv[3]))"
        )
        renewed = (folder / "server.pem").read_bytes()
        assert renewed != before

        def served() -> bool:
            pem = there.run("-c", fetch, SERVER, PORT, str(home.ca)).stdout
            return bool(pem) and ssl.PEM_cert_to_DER_cert(pem) == ssl.PEM_cert_to_DER_cert(renewed.decode())

        assert wait_until(served, timeout=10)
        assert here.run("-m", "server", "doctor", str(folder), "--json").returncode == 0

        # shut out: the next request is refused, and the SuperNode ends
        assert here.command("server", "revoke", str(folder), "1")["revoked"] is True
        assert wait_until(lambda: node is not None and node.poll() is not None, timeout=60)
        states = [each["state"] for each in here.command("server", "devices", str(folder))["devices"]]
        assert states == ["revoked"]
    finally:
        for process in (node, server):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=60)
