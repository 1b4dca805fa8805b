"""Enrolled devices behind nginx, rounds that go on when anything is killed, and devices that get nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from client.door.sent import read_sent
from client.profile import Profile
from server.deployment import Deployment
from server.proxy import nginx_program
from server.rounds import Experiment, Loop
from server.running import running_server
from shared.artifacts import load_adapter
from shared.config import Config, to_toml
from shared.terminal import free_port, wait_until
from tests.server.people import Someone, three_people
from tests.server.programs import ROOT, program
from tests.server.test_end_to_end import command
from tests.server.test_proxy import NO_NGINX

NAMED = ("--name", "127.0.0.1", "--listen", "127.0.0.1")
#: Without content and popularity the start ranks nothing, so that three rounds are sure to improve on it.
LEARNABLE = ("model.gamma=0.0", "model.beta=0.0", "prior.half_lives=[]", "federation.server_learning_rate=0.05")
TAKES_PART = ("--privacy", "none", "--any-time")
NOT_LET_IN = "does not know this device"


def refusal(*arguments: str) -> str:
    """The one line with which a program refuses."""
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 2, done.stderr
    return done.stderr.splitlines()[-1]


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that it started."""
    return [process, *process.children(recursive=True)]


def device_at(home: Path) -> psutil.Process:
    """The `join` that this test started."""
    (found,) = [each for each in psutil.Process().children() if {"join", str(home)} <= set(each.cmdline())]
    return found


def kill_all(processes: list[psutil.Process]) -> None:
    """kill -9, all of them."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def rows(out: Path) -> list[tuple[str, int]]:
    """Phases and rounds that were released."""
    return [(row["phase"], row["round"]) for row in recorded(out) if row.get("released")]


def recorded(out: Path) -> list[dict[str, Any]]:
    """What the server wrote down of each exchange."""
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def asked_after(out: Path, row: tuple[str, int], *, device: Path, earlier: set[int]) -> bool:
    """Whether a ClientApp works at a device for the question after `row`. earlier: grows by those for the ones before.

    A ClientApp that is first seen when the row is there was started after it: it lives for seconds before it answers.
    """
    working = set()
    for process in family(device_at(device)):
        with suppress(psutil.Error):
            working |= {process.pid} if any("flwr-clientapp" in word for word in process.cmdline()[:2]) else set()
    if row in rows(out):
        return bool(working - earlier)
    earlier |= working
    return False


def recommended(homes: list[Path]) -> list[dict[str, Any]]:
    """What each device recommends now, as its command line says it."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda home: command("client", "recommend", "--home", str(home)), homes))


def slate(answer: dict[str, Any]) -> list[str]:
    """Ids of the items of a slate."""
    return [card["item"] for card in answer["slate"]]


def received_nothing(home: Path) -> bool:
    """Whether no server gave a device an adapter, a question or code."""
    profile, bundles = Profile.open(home), (home / "flower").rglob("*.py")
    return not profile.adapter.exists() and not read_sent(profile.sent)[0] and not any(bundles)


@contextmanager
def started_server(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`start`, to be killed."""
    words = [sys.executable, "-m", "server", "start", str(folder), "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            assert json.loads(process.stdout.readline())["proxied"] is True
            yield process
        finally:
            if process.poll() is None:
                kill_all(family(psutil.Process(process.pid)))


@pytest.fixture
def people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[Someone]:
    """Three people, real ones where the data is."""
    found, told = three_people(tmp_path)
    with capsys.disabled():
        print(f"\n{told}")
    return found


@pytest.mark.slow
@pytest.mark.skipif(nginx_program() is None, reason=NO_NGINX)
def test_rounds_end_well_though_server_device_and_loop_are_killed(
    tmp_path: Path, people: list[Someone], own_cache: Path
) -> None:
    """The whole deployment: TLS, enrolment and authentication behind nginx, the default backbone, a process for each.

    Histories, catalogue and backbone are real where MovieLens 100K is; only the start is not the default, `LEARNABLE`.
    """
    folder, out = tmp_path / "deployment", tmp_path / "out"
    homes = [tmp_path / f"home {number}" for number in range(5)]
    invitation = homes[0] / "invitation.json"
    command("server", "init", str(folder), *NAMED, "--port", str(free_port()))
    settings = [part for setting in (*LEARNABLE, "privacy.mode=none") for part in ("--set", setting)]
    begin = ["server", "rounds", "start", str(folder), "--catalogue", str(people[0].folder / "items.csv")]
    begin += ["--devices", "3", "--rounds", "3", "--out", str(out), *settings, "--json"]

    with ExitStack() as devices:
        with started_server(folder) as first:
            given = command("server", "enroll", str(folder), "--count", "4")
            joins = [["client", "join", given["url"], "--token", token] for token in given["tokens"]]
            for home, join, someone, ends in zip(homes, joins, people, (130, 130, -signal.SIGKILL), strict=False):
                joining = [*join, "--home", str(home), "--data", str(someone.folder), *TAKES_PART]
                devices.enter_context(program(*joining, expect=ends))
            command(*joins[3], "--home", str(homes[3]), "--keys-only")
            listed = command("server", "devices", str(folder))["devices"]
            assert [device["state"] for device in listed] == ["online", "online", "online", "registered"]
            command("server", "revoke", str(folder), "4")
            before = recommended(homes[:3])

            loop = subprocess.Popen([sys.executable, "-m", *begin], stdout=subprocess.PIPE, cwd=ROOT)
            devices.callback(loop.kill)
            assert wait_until(lambda: ("train", 1) in rows(out), timeout=300)
            kill_all(family(psutil.Process(first.pid)))  # in round 2
            assert first.wait(timeout=60) == -signal.SIGKILL
        with program("server", "start", str(folder), expect=143):
            in_hand = partial(asked_after, out, ("train", 2), device=homes[2], earlier=set())
            assert wait_until(in_hand, timeout=300)
            kill_all(family(device_at(homes[2])))  # in round 3, with its question in hand
            os.kill(loop.pid, signal.SIGKILL)
            loop.communicate()
            assert json.loads((folder / "rounds.json").read_text())["state"] == "running"

            # one that was shut out, and one that nobody registered
            for home in homes[3:]:
                data = ["--data", str(people[0].folder), *TAKES_PART]
                assert NOT_LET_IN in refusal("client", "join", str(invitation), "--home", str(home), *data)

            ended = command("server", "rounds", "resume", str(folder))
            assert (ended["state"], ended["round"], ended["rounds"]) == ("finished", 3, 3)
            listed = command("server", "devices", str(folder))["devices"]
            assert [device["state"] for device in listed] == ["online", "online", "offline", "revoked"]

            # The killed device comes back after the end, and takes the adapter that it missed as a release.
            kept = Profile.open(homes[2])
            assert not kept.adapter.exists()
            again = ["client", "join", str(invitation), "--home", str(homes[2]), *TAKES_PART]
            devices.enter_context(program(*again, expect=130))
            command("server", "publish", str(folder), "--run", str(out))
            pin = ["--pin", str(folder / "publisher.json")]
            assert command("client", "update", *pin, "--home", str(homes[2]))["new"] is True
            listed = command("server", "devices", str(folder))["devices"]
            assert [device["state"] for device in listed] == ["online", "online", "online", "revoked"]
            after = recommended(homes[:3])
            devices.close()

    released = rows(out)
    assert [row for row in released if row[0] == "train"] == [("train", 1), ("train", 2), ("train", 3)]
    assert len(released) == len(set(released))
    shipped, _, facts = load_adapter(out / "adapter")
    assert facts["outcome"]["shipped"] == "adapter"
    for home, someone, earlier, now in zip(homes, people, before, after, strict=False):
        assert load_adapter(Profile.open(home).adapter)[0] == shipped
        assert earlier["adapter"] == {}
        assert (now["adapter"]["run"], now["adapter"]["round"]) == (facts["run"], "3")
        assert any(card["parts"]["adapter"] for card in now["slate"])
        assert len(set(slate(now))) == 10
        assert not set(slate(now)) & someone.seen
        assert slate(now) != slate(earlier)

    # What the killed device had in hand it never answered: the server knows of no reply, the device's books of none.
    (third,) = [row for row in recorded(out) if row["phase"] == "train" and row["round"] == 3]
    assert (third["accepted"], third["refused"]) == (2, {"no-answer": 1})
    log, totals = read_sent(kept.sent)
    assert {(row.phase, row.round) for _, row in log} == {("popularity", 0), ("train", 1), ("train", 2)}
    assert totals.answers == len(log)
    assert kept.open_ledger().releases(0) == []
    assert ("train", 3) in {(row.phase, row.round) for _, row in read_sent(Profile.open(homes[0]).sent)[0]}
    assert all(received_nothing(home) for home in homes[3:])


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
