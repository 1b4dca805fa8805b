"""The server's folder, its processes, and two devices that really join over TLS."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import tomllib
from contextlib import suppress
from pathlib import Path
from time import sleep

import psutil
import pytest
from cryptography import x509

from client.deployment import DeviceHome, Invitation, create_keys, running_node
from server import certificates, runs
from server.certificates import create_certificates
from server.deployment import Deployment, prepare
from server.running import running_server
from server.runs import prepare_run, register, run_rounds, write_bundle
from shared.artifacts import load_catalogue
from shared.config import load_config
from shared.errors import DeploymentError, RunError
from shared.terminal import Child, flower_environment, run_cli, wait_until
from tests.server.programs import ROOT, program

# --- certificates ------------------------------------------------------------------------------------------


def handshake(folder: Path, trusted: Path, hostname: str) -> None:
    """A TLS handshake in memory: the server of `folder`, a client that trusts `trusted`."""
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.load_cert_chain(folder / "server.pem", folder / "server.key")
    left, right = socket.socketpair()

    def serve() -> None:
        try:
            accepting.wrap_socket(left, server_side=True).close()
        except (ssl.SSLError, OSError):
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        context = ssl.create_default_context(cafile=str(trusted))
        with context.wrap_socket(right, server_hostname=hostname):
            pass
    finally:
        right.close()
        thread.join(timeout=5)


@pytest.mark.parametrize("hostname", ["localhost", "127.0.0.1"])
def test_a_client_that_trusts_the_ca_trusts_the_server(tmp_path: Path, hostname: str) -> None:
    create_certificates(tmp_path)
    handshake(tmp_path, tmp_path / "ca.pem", hostname)


def test_another_ca_or_another_name_is_refused(tmp_path: Path) -> None:
    create_certificates(tmp_path / "a")
    create_certificates(tmp_path / "b")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "a", tmp_path / "b" / "ca.pem", "localhost")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path / "a", tmp_path / "a" / "ca.pem", "example.org")


def test_keys_are_private_and_files_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "deployment"
    create_certificates(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("ca.key", "server.key"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    create_certificates(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_server_certificate_near_its_end_is_renewed_by_the_same_ca(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "_SERVER_DAYS", 29)
        create_certificates(tmp_path)
    old, ca = (tmp_path / "server.pem").read_bytes(), (tmp_path / "ca.pem").read_bytes()
    create_certificates(tmp_path)
    new = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    assert (tmp_path / "server.pem").read_bytes() != old
    assert (tmp_path / "ca.pem").read_bytes() == ca
    new.verify_directly_issued_by(x509.load_pem_x509_certificate(ca))


def test_half_a_pair_and_a_foreign_key_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        create_certificates(tmp_path / name)
    shutil.copy(tmp_path / "b" / "ca.key", tmp_path / "a" / "ca.key")
    with pytest.raises(DeploymentError, match="does not belong"):
        create_certificates(tmp_path / "a")
    (tmp_path / "b" / "ca.key").unlink()
    with pytest.raises(DeploymentError, match=r"ca\.key is missing"):
        create_certificates(tmp_path / "b")


# --- the folder --------------------------------------------------------------------------------------------


def test_prepare_keeps_the_port_and_gives_away_nothing_secret(tmp_path: Path) -> None:
    first = prepare(tmp_path / "d")
    assert prepare(tmp_path / "d") == first == Deployment.at(tmp_path / "d")
    invitation = json.loads(first.invitation.read_text())
    assert invitation == {"schema": 1, "address": f"127.0.0.1:{first.port}", "ca": first.ca.read_text()}
    assert "PRIVATE" not in first.invitation.read_text()
    config = tomllib.loads((first.flower_home / "config.toml").read_text())
    assert config["superlink"]["homerank"] == {
        "address": first.address,
        "root-certificates": str(first.ca),
    }


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DeploymentError, match=f"port {port} .* --port"):
            prepare(tmp_path, port=port)


def test_commands_say_what_is_missing(tmp_path: Path) -> None:
    key = create_keys(DeviceHome.at(tmp_path / "device"))
    with pytest.raises(DeploymentError, match="is not a homerank deployment"):
        register(tmp_path / "nowhere", key)
    prepare(tmp_path / "d")
    with pytest.raises(DeploymentError, match=r"no server answers at .* homerank-server start"):
        register(tmp_path / "d", key)
    with pytest.raises(DeploymentError, match="no server answers"):
        run_rounds(tmp_path / "d", run_config={})
    with pytest.raises(DeploymentError, match="not a readable OpenSSH public key"):
        register(tmp_path / "d", tmp_path / "d" / "ca.pem")


def test_the_bundle_names_the_apps_and_holds_no_code(tmp_path: Path) -> None:
    config = {"rounds": 3, "share": 0.5, "secure": False, "out": '/a "b"/c'}
    bundle = write_bundle(tmp_path / "app", run_config=config, components=("server.app:app", "client.app:app"))
    assert [path.name for path in bundle.iterdir()] == ["pyproject.toml"]
    flower = tomllib.loads((bundle / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert flower["config"] == config
    assert flower["components"] == {"serverapp": "server.app:app", "clientapp": "client.app:app"}


def test_a_second_run_at_once_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    monkeypatch.setattr(Deployment, "answers", lambda self: True)
    with (tmp_path / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DeploymentError, match="is in progress"):
            run_rounds(tmp_path, run_config={})


@pytest.mark.parametrize("value", [None, [1], float("nan"), float("inf")])
def test_a_setting_flower_cannot_carry_is_refused(tmp_path: Path, value: object) -> None:
    with pytest.raises(DeploymentError, match="run setting 'x'"):
        write_bundle(tmp_path, run_config={"x": value}, components=("a:b", "a:b"))  # type: ignore[dict-item]


# --- child processes ---------------------------------------------------------------------------------------


def child(tmp_path: Path, *command: str) -> Child:
    return Child(command, log=tmp_path / "child.log", env=os.environ, cwd=tmp_path)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_stop_ends_what_ignores_sigterm_and_what_it_started(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 60 & echo $!; wait; sleep 60"
    with child(tmp_path, "/bin/sh", "-c", script) as stubborn:
        lines: list[str] = []
        assert wait_until(lambda: lines.extend(stubborn.new_lines()) or lines, timeout=5)
        stubborn.stop(grace=0.3)
    assert stubborn.exit_code == -signal.SIGKILL
    assert wait_until(lambda: gone(int(lines[0])), timeout=5)


def test_a_descendant_in_its_own_session_is_stopped_too(tmp_path: Path) -> None:
    script = "import subprocess, time; p = subprocess.Popen(['sleep', '60'], start_new_session=True); "
    script += "print(p.pid, flush=True); time.sleep(60)"
    with child(tmp_path, sys.executable, "-c", script) as parent:
        lines: list[str] = []
        assert wait_until(lambda: lines.extend(parent.new_lines()) or lines, timeout=10)
    assert wait_until(lambda: gone(int(lines[0])), timeout=5)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, time; from pathlib import Path; from shared.terminal import Child; "
        "c = Child(['sleep', '60'], log=Path('c.log'), env=os.environ, cwd=Path('.')); "
        "print(c.pid, flush=True); time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    sleep(0.3)
    parent.kill()
    parent.communicate()
    assert wait_until(lambda: gone(pid), timeout=5)


def test_flower_state_stays_out_of_the_users_home(tmp_path: Path) -> None:
    environment = flower_environment(tmp_path)
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert environment["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert environment["HF_HUB_OFFLINE"] == "1"


# --- the command line --------------------------------------------------------------------------------------


ITEMS = "item,title,text\ntea-1,Tea,Green leaf tea\ncup-7,Cup,\n"


def invoke(*arguments: str) -> int:
    from server.cli import app

    with pytest.raises(SystemExit) as exit_:
        run_cli(app, "homerank-server", arguments)
    return int(exit_.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["strat"], "Did you mean 'start', 'status'? (see homerank-server --help)"),
        (["enrol", "d"], "Did you mean 'enroll'? (see homerank-server --help)"),
        (["start", "--prot", "1", "d"], "Did you mean '--port'? (see homerank-server start --help)"),
        (["start"], "Missing argument 'DIR'"),
        (["run", "nowhere"], "Missing option '--catalogue'"),
        (["run", "nowhere", "--catalogue", "items.csv"], "is not a homerank deployment"),
        (["run", "nowhere", "--catalogue", "items.csv", "--rounds", "0"], "0 is not in the range"),
        (["run", "there", "--catalogue", "items.csv", "--config", "no.toml"], "no.toml: found no readable file"),
        (["run", "there", "--catalogue", "no.csv"], "no.csv"),
        (["run", "there", "--catalogue", "items.csv", "--set", "model.blcks=1"], "Did you mean 'model.blocks'?"),
        (["run", "there", "--catalogue", "items.csv"], "no server answers at"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path / "there")
    (tmp_path / "items.csv").write_text(ITEMS)
    assert invoke(*arguments) == 2
    assert not (tmp_path / "nowhere").exists()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("homerank-server: ")
    assert message in captured.err


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "run_rounds", interrupted)
    prepare(tmp_path / "d")
    (tmp_path / "items.csv").write_text(ITEMS)
    assert invoke("run", str(tmp_path / "d"), "--catalogue", str(tmp_path / "items.csv")) == 130


def test_a_run_goes_on_in_its_folder_only_with_the_same_settings_and_catalogue(tmp_path: Path) -> None:
    items, out = tmp_path / "items.csv", tmp_path / "run"
    items.write_text(ITEMS)
    prepare_run(out, catalogue=items, config=None, assignments=["federation.rounds=2"])
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert load_config(out / "config.toml").privacy.mode == "event"
    assert [item.title for item in load_catalogue(out / "items.jsonl").items] == ["Tea", "Cup"]
    prepare_run(out, catalogue=items, config=out / "config.toml", assignments=[])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    with pytest.raises(RunError, match="other settings or another catalogue; choose another --out"):
        prepare_run(out, catalogue=items, config=None, assignments=["federation.rounds=3"])
    items.write_text(ITEMS + "pot-3,Pot,\n")
    with pytest.raises(RunError, match="another catalogue"):
        prepare_run(out, catalogue=items, config=None, assignments=["federation.rounds=2"])


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, server.cli, client.cli; "
        "print(sorted({'flwr', 'torch', 'cryptography', 'numpy', 'psutil', 'httpx'} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "[]", done.stderr


# --- everything together -----------------------------------------------------------------------------------

TINY_SERVER = """
import json
import time

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    settings = context.run_config
    if settings["fail"]:
        raise RuntimeError("the tiny app fails on purpose")
    while len(nodes := list(grid.get_node_ids())) < settings["nodes"]:
        time.sleep(0.5)
    weights = np.zeros(1000, np.float32)
    for _ in range(settings["rounds"]):
        content = {"w": ArrayRecord({"w": Array(weights)})}
        messages = [Message(RecordDict(content), dst_node_id=node, message_type="train") for node in nodes]
        replies = list(grid.send_and_receive(messages, timeout=120))
        weights = np.mean([reply.content["w"]["w"].numpy() for reply in replies], axis=0)
        print("round done", float(weights[0]), flush=True)
    with open(settings["out"], "w") as file:
        json.dump({"weight": float(weights[0]), "nodes": len(nodes)}, file)
"""

TINY_CLIENT = """
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    with open(context.node_config["socket"] + ".seen", "a") as file:
        file.write("seen\\n")
    weights = message.content["w"]["w"].numpy() + context.run_config["step"]
    return Message(RecordDict({"w": ArrayRecord({"w": Array(weights)})}), reply_to=message)
"""


def server_apps(address: str) -> list[psutil.Process]:
    """ServerApps that work for the server at this address."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if "flwr-serverapp" in command and address in command:
                found.append(process)
    return found


@pytest.fixture
def tiny_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Two modules on PYTHONPATH, outside any bundle, as installed packages would be."""
    package = tmp_path / "installed"
    package.mkdir()
    (package / "tinyserver.py").write_text(TINY_SERVER)
    (package / "tinyclient.py").write_text(TINY_CLIENT)
    monkeypatch.setenv("PYTHONPATH", str(package))
    return "tinyserver:app", "tinyclient:app"


@pytest.mark.slow
def test_two_devices_run_two_rounds(tmp_path: Path, tiny_app: tuple[str, str]) -> None:
    folder, out = tmp_path / "a deployment", tmp_path / "out.json"
    config = {"rounds": 2, "nodes": 2, "step": 0.5, "fail": False, "out": str(out)}
    data = tmp_path / "data"
    data.mkdir()
    (data / "items.csv").write_text(ITEMS)
    (data / "events.csv").write_text("user,item\nana,tea-1\nana,cup-7\n")
    with program("server", "start", str(folder), expect=143) as ready:
        devices = [tmp_path / "device 0", tmp_path / "device 1"]

        def join(home: Path, *options: str) -> list[str]:
            return ["client", "join", ready["invitation"], "--home", str(home), *options]

        refused = subprocess.run(
            [sys.executable, "-m", *join(devices[0], "--data", str(data))],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
        )
        assert refused.returncode == 2
        imported, why = refused.stderr.splitlines()
        assert imported.startswith("imported 2 events; they stay in ")
        assert "does not know this device; register its key" in why

        for home in devices:
            register(folder, create_keys(DeviceHome.at(home)))
        with pytest.raises(DeploymentError, match="is registered already"):
            register(folder, DeviceHome.at(devices[0]).public_key)

        lines: list[str] = []
        second = join(devices[1], "--data", str(data))
        with program(*join(devices[0]), expect=130), program(*second, expect=130):
            run_rounds(folder, run_config=config, components=tiny_app, timeout=240, on_line=lines.append)
            assert json.loads(out.read_text()) == {"weight": 1.0, "nodes": 2}
            for home in devices:
                assert (home / "run" / "default.sock.seen").read_text() == "seen\nseen\n"
            assert sum("round done" in line for line in lines) == 2

            with pytest.raises(DeploymentError, match=r"finished:failed.*the tiny app fails on purpose"):
                run_rounds(folder, run_config=config | {"fail": True}, components=tiny_app, timeout=120)

        with pytest.raises(DeploymentError, match="did not end within 8 s"):
            run_rounds(folder, run_config=config, components=tiny_app, timeout=8)
        assert wait_until(lambda: not server_apps(Deployment.at(folder).address), timeout=10)
        with pytest.raises(DeploymentError, match="is already running"):
            prepare(folder)
        assert "PRIVATE KEY" not in Deployment.at(folder).superlink_log.read_text()
    assert not Deployment.at(folder).answers()


@pytest.mark.slow
def test_a_device_that_was_killed_is_told_when_it_can_come_back(tmp_path: Path) -> None:
    """The server takes it for connected until its heartbeats are missed, and lets nobody in twice."""
    device = DeviceHome.at(tmp_path / "device")
    with running_server(tmp_path / "deployment", timeout=120) as server:
        register(server.deployment.folder, create_keys(device))
        invitation = Invitation.read(server.deployment.invitation)
        with running_node(device, invitation, node_config={"socket": "nowhere"}) as node:
            os.killpg(node.pid, signal.SIGKILL)
            assert wait_until(lambda: node.exit_code is not None, timeout=10)
        with (
            pytest.raises(DeploymentError, match=r"killed a moment ago.* a minute has passed; join again then"),
            running_node(device, invitation, node_config={"socket": "nowhere"}),
        ):
            pass
