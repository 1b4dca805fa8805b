"""Enrolled devices behind nginx, rounds that go on when anything is killed, and devices that get nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic

import psutil
import pytest

from server.deployment import Deployment
from server.proxy import nginx_program
from server.rounds import Experiment, Loop
from server.running import running_server
from shared.artifacts import load_adapter
from shared.config import Config, to_toml
from shared.terminal import free_port, wait_until
from tests.server.programs import ROOT, program
from tests.server.test_end_to_end import LEARNABLE, NAMES, command, write_person
from tests.server.test_proxy import NO_NGINX

NAMED = ("--name", "127.0.0.1", "--listen", "127.0.0.1")


def enrolled(home: Path, url: str, token: str) -> None:
    """Enrol a device in a process of its own."""
    script = (
        "import sys; from pathlib import Path; from client.deployment import DeviceHome;"
        " from client.enrolment import enrol; enrol(sys.argv[1], sys.argv[2], DeviceHome.at(Path(sys.argv[3])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, url, token, str(home)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr


def refusal(*arguments: str) -> str:
    """The one line with which a program refuses."""
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 2, done.stderr
    return done.stderr.splitlines()[-1]


def superlink_of(folder: Path) -> psutil.Process:
    """The SuperLink of a deployment."""
    for process in psutil.process_iter():
        words = process.cmdline() if process.status() != psutil.STATUS_ZOMBIE else []
        if any("flower-superlink" in word for word in words) and str(folder / "superlink.sqlite") in words:
            return process
    raise AssertionError("no SuperLink")


def rows(out: Path) -> list[tuple[str, int]]:
    """Phases and rounds that were released."""
    path = out / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(row["phase"], row["round"]) for row in found if row.get("released")]


@pytest.mark.slow
@pytest.mark.skipif(nginx_program() is None, reason=NO_NGINX)
def test_rounds_end_well_though_server_device_and_loop_are_killed(tmp_path: Path) -> None:
    folder, out = tmp_path / "deployment", tmp_path / "out"
    homes = [tmp_path / f"home {number}" for number in range(5)]
    people = [
        write_person(tmp_path / "ana", NAMES[0], [*range(0, 10), 10]),
        write_person(tmp_path / "ben", NAMES[1], [*range(8, 18), 5]),
        write_person(tmp_path / "cleo", "cleo-the-third", [*range(4, 14), 3]),
    ]
    command("server", "init", str(folder), *NAMED, "--port", str(free_port()))
    settings = [part for setting in (*LEARNABLE, "privacy.mode=none") for part in ("--set", setting)]
    begin = ["server", "rounds", "start", str(folder), "--catalogue", str(people[0] / "items.csv"), "--devices", "3"]
    begin += ["--rounds", "3", "--out", str(out), *settings, "--json"]

    first = subprocess.Popen(
        [sys.executable, "-m", "server", "start", str(folder), "--json"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert first.stdout is not None
    assert json.loads(first.stdout.readline())["proxied"] is True
    given = command("server", "enroll", str(folder), "--count", "4")
    for home, token in zip(homes, given["tokens"], strict=False):
        enrolled(home, given["url"], token)
    listed = command("server", "devices", str(folder))
    assert [device["state"] for device in listed["devices"]] == ["registered"] * 4
    command("server", "revoke", str(folder), "4")

    # a device that was shut out, and one that nobody registered
    data = ["--data", str(people[0]), "--privacy", "none"]
    invitation = str(homes[0] / "invitation.json")
    for home in homes[3:]:
        assert "does not know this device" in refusal("client", "join", invitation, "--home", str(home), *data)

    joins = [
        [
            "client",
            "join",
            str(home / "invitation.json"),
            "--home",
            str(home),
            "--privacy",
            "none",
            "--any-time",
            "--data",
            str(person),
        ]
        for home, person in zip(homes, people, strict=False)
    ]
    third = subprocess.Popen([sys.executable, "-m", *joins[2]], cwd=ROOT)
    with program(*joins[0], expect=130), program(*joins[1], expect=130):
        loop = subprocess.Popen([sys.executable, "-m", *begin], stdout=subprocess.PIPE, cwd=ROOT)
        assert wait_until(lambda: ("train", 1) in rows(out), timeout=500)
        superlink_of(folder).send_signal(signal.SIGKILL)
        assert first.wait(timeout=60) == 2  # `start` ends when one of its processes does
        with program("server", "start", str(folder), expect=143):
            before = len(rows(out))
            assert wait_until(lambda: len(rows(out)) > before, timeout=500)
            for process in (*psutil.Process(third.pid).children(recursive=True), psutil.Process(third.pid)):
                process.kill()
            third.wait()
            os.kill(loop.pid, signal.SIGKILL)
            loop.communicate()
            assert json.loads((folder / "rounds.json").read_text())["state"] == "running"
            started = monotonic()
            ended = command("server", "rounds", "resume", str(folder))
            assert monotonic() - started < 400
            status = command("server", "devices", str(folder))
    assert (ended["state"], ended["round"], ended["rounds"]) == ("finished", 3, 3)
    assert [device["state"] for device in status["devices"]] == ["online", "online", "offline", "revoked"]
    released = rows(out)
    assert [row for row in released if row[0] == "train"] == [("train", 1), ("train", 2), ("train", 3)]
    assert len(released) == len(set(released))
    shipped = load_adapter(out / "adapter")[0]
    assert all(load_adapter(home / "adapter")[0] == shipped for home in homes[:2])
    assert not any((home / "adapter").exists() for home in homes[3:])


STUBBORN_SERVER = """
import time
from pathlib import Path

from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    starts = Path(context.run_config["out"]) / "starts"
    with starts.open("a") as file:
        file.write("started\\n")
    while len(starts.read_text().splitlines()) < 3:
        time.sleep(0.5)
"""


def server_app_of(deployment: Deployment) -> psutil.Process | None:
    """The ServerApp that works for a deployment's SuperLink, if one does."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if any("flwr-serverapp" in word for word in words[:2]) and deployment.address in words:
                return process
    return None


def has_lines(path: Path, count: int) -> bool:
    """Whether a file is there and has so many lines."""
    return path.exists() and len(path.read_text().splitlines()) == count


@pytest.mark.slow
def test_a_server_app_that_is_killed_twice_is_started_a_third_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, out = tmp_path / "installed", tmp_path / "out"
    installed.mkdir()
    out.mkdir()
    (installed / "stubborn.py").write_text(STUBBORN_SERVER)
    (out / "config.toml").write_text(to_toml(Config()))
    monkeypatch.setenv("PYTHONPATH", str(installed))
    lines: list[str] = []
    loop = Loop(components=("stubborn:app", "client.app:app"), on_line=lines.append, timeout=500)
    with running_server(tmp_path / "d", timeout=120) as server:
        thread = threading.Thread(target=loop.run, args=(server.deployment, Experiment(str(out), "running")))
        thread.start()
        for killed in (1, 2):
            assert wait_until(partial(has_lines, out / "starts", killed), timeout=200)
            process = server_app_of(server.deployment)
            assert process is not None
            process.kill()
        thread.join(timeout=300)
        assert not thread.is_alive()
        known = Experiment.of(server.deployment)
    assert known is not None
    assert known.state == "finished"
    assert sum("going on at the last committed round" in line for line in lines) == 2
