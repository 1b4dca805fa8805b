"""Broken files, full disks, wrong clocks and spent budgets, injected, and what must come of it."""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from flwr.app import Context, Message
from flwr.app.message import message
from safetensors import safe_open

from client.app import app as client_app
from client.app import open_virtual_ledger
from client.door import rounds
from client.door.gate import ANY_TIME
from client.door.server import Door
from client.limits import Limits
from client.profile import Profile
from client.store import Store
from server.checkpoint import CHECKPOINT_SCHEMA
from shared import artifacts
from shared.artifacts import load_adapter, load_arrays, save_arrays
from shared.errors import BudgetError, PrivacyError, RunError
from shared.privacy.accounting import Release
from shared.protocol import Manifest
from simulations.runfolder import RunFolder
from simulations.session import recommend
from tests.client.small_door import InProcess
from tests.server import small_server
from tests.server.small_server import (
    EVERYTHING,
    USERS,
    Network,
    charges,
    first_asked,
    open_ledger,
    rows,
    same_end,
    server,
    start_run,
    whole_run,
)

pytestmark = pytest.mark.usefixtures("own_cache")


# --- files ---------------------------------------------------------------------------------------------------


def at_round_two(step: str, act: Callable[[], None]) -> small_server.OnStep:
    return lambda reached, asked: act() if (reached, asked.phase, asked.round) == (step, "train", 2) else None


def test_a_full_disk_at_the_checkpoint_leaves_the_old_one_and_the_run_goes_on(
    six_users: Path, tmp_path: Path, calm: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(tmp_path, six_users)

    def no_space(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill() -> None:
        monkeypatch.setattr(artifacts.os, "fsync", no_space)

    with pytest.raises((OSError, RunError), match="No space left"):
        server(run, on_step=at_round_two("released", fill)).run(Network(run))
    monkeypatch.undo()
    assert not list(run.path.rglob("*.tmp"))
    again = server(run)
    assert again.state.round == 1
    assert charges(run)[-1] == ("train", 2)
    again.run(Network(run))
    assert same_end(run, calm)
    assert charges(run) == EVERYTHING


def test_a_ledger_that_cannot_be_written_releases_nothing(six_users: Path, tmp_path: Path, calm: RunFolder) -> None:
    run = start_run(tmp_path, six_users)
    ledger, steps = open_ledger(run), list[str]()

    def fill() -> None:
        ledger._chain._db.execute("PRAGMA max_page_count = 1")
        ledger._chain._db.execute("PRAGMA query_only = ON")  # a page may have room left; a full disk has none

    def on_step(step: str, asked: Manifest) -> None:
        steps.append(f"{step} {asked.phase} {asked.round}")
        at_round_two("asked", fill)(step, asked)

    with pytest.raises(PrivacyError, match=r"could not be written .* nothing is released"):
        server(run, on_step=on_step, ledger=ledger).run(Network(run))
    assert steps[-1] == "asked train 2"
    assert charges(run) == EVERYTHING[:2]
    again = server(run)
    assert again.state.round == 1
    again.run(Network(run))
    assert same_end(run, calm)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def of_newer_schema(path: Path) -> None:
    with safe_open(str(path), framework="numpy") as handle:
        facts = json.loads(handle.metadata()["state"])
    save_arrays(path, load_arrays(path), metadata={"state": json.dumps({**facts, "schema": 99})})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, r"no usable checkpoint .* start a new run in another folder"),
        (
            of_newer_schema,
            f"schema 99, this version reads {CHECKPOINT_SCHEMA}; continue it with the version that wrote it",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_refused_with_the_remedy(
    damage: Callable[[Path], None], said: str, calm: RunFolder, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(calm.path, copy)
    damage(copy / "checkpoint.safetensors")
    run = RunFolder(copy, calm.config, calm.catalogue, calm.users, calm.test, calm.facts)
    with pytest.raises(RunError, match=said):
        server(run)


@pytest.mark.parametrize(
    ("what", "said"), [("backup", r"ledger is behind.*newest ledger file is put back"), ("nothing", "ledger is lost")]
)
def test_a_checkpoint_ahead_of_its_ledger_does_not_go_on(what: str, said: str, six_users: Path, tmp_path: Path) -> None:
    """Ledger and witness are put back together, so only the checkpoint knows better."""
    run, backup = start_run(tmp_path / "run", six_users), tmp_path / "backup"
    backup.mkdir()
    files = [run.path / f"server-ledger.{ending}" for ending in ("sqlite", "sqlite-wal", "sqlite-shm", "witness")]
    files += [run.path / f"server-ledger.witness-{ending}" for ending in ("wal", "shm")]

    def keep() -> None:
        for path in filter(Path.exists, files):
            shutil.copy(path, backup / path.name)

    ledger = open_ledger(run)
    server(run, on_step=at_round_two("asked", keep), ledger=ledger).run(Network(run))
    ledger.close()
    for path in files:
        path.unlink(missing_ok=True)
        if what == "backup" and (backup / path.name).exists():
            shutil.copy(backup / path.name, path)
    with pytest.raises(PrivacyError, match=said):
        server(run)


# --- clocks --------------------------------------------------------------------------------------------------


def test_clocks_that_jump_change_nothing(
    six_users: Path, tmp_path: Path, calm: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten days forwards, ten days back, at every look at the clock: ours, and Flower's when it dates a message."""
    seconds, date, looks = time.time, message.now, list[int]()

    def skew() -> float:
        looks.append(1)
        return (-1) ** len(looks) * 10 * 86400.0

    monkeypatch.setattr(time, "time", lambda: seconds() + skew())
    monkeypatch.setattr(message, "now", lambda: date() + timedelta(seconds=skew()))
    assert same_end(whole_run(tmp_path, six_users), calm)
    assert len(looks) > USERS


# --- budgets and devices -------------------------------------------------------------------------------------


def test_devices_whose_budget_is_spent_stop_training_and_go_on_ranking(six_users: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path, six_users)
    ledger = open_virtual_ledger(run.path)

    def spend(step: str, asked: Manifest) -> None:
        if (step, asked.phase, asked.round) == ("recorded", "train", 1):
            for device in range(USERS):
                spent = [Release("train", 0.5, unit=unit) for unit in ("event", "user")]
                ledger.charge(device, spent, key="before", budgets={"event": 99.0, "user": 99.0}, delta=1e-5)

    server(run, on_step=spend).run(Network(run))
    assert [row["refused"] for row in rows(run)[1:]] == [{"budget": 4}] * 2
    assert charges(run) == EVERYTHING[:2]
    outcome = load_adapter(run.path / "adapter")[2]["outcome"]
    assert outcome["shipped"] == "start"
    assert "too few devices answered the comparison (6 budget)" in outcome["reason"]
    with pytest.raises(BudgetError, match=r"event-level epsilon .* its limit is 8\.000.*goes on ranking"):
        ledger.charge(0, [Release("train", 9.0)], key="after", budgets={"event": 8.0}, delta=1e-5)
    assert len(recommend(run.path, user=run.users[0], k=5)["recommendations"]) == 5


class RealDevices(ExitStack):
    """The ClientApp as real devices run it: each behind a door of its own, with noise from the operating system."""

    def __init__(self, run: RunFolder, folder: Path) -> None:
        super().__init__()
        limits = Limits("both", "aggregate", epsilon=8.0, delta=1e-5)
        self._doors = {}
        for device in range(run.devices):
            profile = Profile.open(folder, str(device + 1))
            shutil.copy(run.path / "items.jsonl", profile.catalogue)
            events = run.store()._db.execute("SELECT * FROM events WHERE device = ?", (device,)).fetchall()
            store = Store(profile.events)
            store.replace([(0, *event[1:]) for event in events])
            store.close()
            policy = replace(ANY_TIME, min_seconds=0.0)
            self._doors[device + 1] = self.enter_context(Door(profile, limits=limits, policy=policy))

    def home(self, node: int) -> Path:
        return self._doors[node].profile.folder

    def __call__(self, message: Message, context: Context) -> Message:
        context.node_config = {"socket": str(self._doors[context.node_id].path)}
        return client_app(message, context)


def lose_the_ledger(home: Path) -> None:
    for path in home.glob("ledger.sqlite*"):
        path.unlink()


def damage_the_events(home: Path) -> None:
    for path in home.glob("events.sqlite*"):
        path.write_bytes(b"not a database" * 100)


@pytest.mark.parametrize("fault", [lose_the_ledger, damage_the_events])
def test_a_device_with_a_damaged_file_refuses_and_the_others_go_on(
    fault: Callable[[Path], None], six_users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "Worker", InProcess)
    run = start_run(tmp_path, six_users)
    ill = first_asked(run, 2)
    with RealDevices(run, tmp_path / "homes") as devices:

        def fall_ill(step: str, asked: Manifest) -> None:
            if (step, asked.phase, asked.round) == ("recorded", "train", 1):
                fault(devices.home(ill))

        server(run, on_step=fall_ill).run(Network(run, app=devices))
    assert [row["refused"] for row in rows(run)[:2]] == [{}, {"failed": 1}]
    assert [row["released"] for row in rows(run)] == [True, True, True]
    assert charges(run) == EVERYTHING
