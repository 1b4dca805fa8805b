"""The process that trains: it can be killed at any moment, and nobody waits for it but who asked."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import psutil
import pytest
from flwr.app import RecordDict

from client.door import wire
from client.door.gate import ANY_TIME, Policy
from client.door.sent import read_sent
from client.door.server import Door
from client.limits import Limits
from client.store import Store
from shared.protocol import Manifest, decode_reply
from shared.terminal import wait_until
from tests.client.small_device import EVENT, SHELF, TRAINING, question, tiny_runtime
from tests.client.small_door import charges, person, refused

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]

ROOT = Path(__file__).resolve().parents[2]
LAVISH = Limits("event", "aggregate", epsilon=1e9, delta=1e-5)
FAST = replace(ANY_TIME, min_seconds=0.0)
START = 120.0


def endless() -> tuple[Manifest, RecordDict]:
    """Training that takes minutes."""
    training = {**TRAINING, "local_steps": 10_000}
    return question("train", noise={**EVENT, "trust": "local"}, training=training)


def workers(parent: int | None = None) -> list[psutil.Process]:
    """Training processes that this one, or another one, has started."""
    found = psutil.Process(parent).children(recursive=True)
    return [process for process in found if "client.door.worker" in words(process)]


def words(process: psutil.Process) -> list[str]:
    """The command line, none of a process that has just ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@contextmanager
def training(door: Door) -> Iterator[Future[RecordDict]]:
    """A block in which the door trains: what it answers in the end."""
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(wire.ask, door.path, endless()[1], timeout=START)
        assert wait_until(lambda: charges(door.profile), timeout=START, pause=0.05)
        yield answer


def answers(door: Door) -> str | None:
    manifest, content = question("train")
    reply = wire.ask(door.path, content, timeout=START)
    code = refused(reply, manifest)
    if code is None:
        assert decode_reply(reply, manifest).is_finite()
    return code


def test_a_worker_that_is_killed_has_sent_nothing_and_spent_what_the_ledger_says(tmp_path: Path) -> None:
    profile = person(tmp_path)
    with Door(profile, limits=LAVISH, policy=FAST) as door:
        with training(door) as answer:
            (worker,) = workers()
            assert worker.nice() == psutil.Process().nice() + 10
            assert door.status().state == "training"

            store = Store(profile.events)  # the service ranks and records meanwhile
            history = store.history(0, SHELF)
            with store.transaction() as db:
                db.execute("INSERT INTO events VALUES (0, 99, 'i20', NULL, 1, 2, NULL)")
            store.close()
            from client.ranker import recommend

            started = monotonic()
            assert len(recommend(tiny_runtime(), history, k=3)) == 3
            assert monotonic() - started < 5
            assert not answer.done()

            worker.send_signal(signal.SIGKILL)
            assert refused(answer.result(START), endless()[0]) == "failed"
        ((_, row),), totals = read_sent(profile.sent)
        assert (row.refusal, row.computed, row.epsilon["event"] > 0) == ("failed", True, True)
        assert (totals.answers, totals.rounds) == (0, 0)
        assert len(charges(profile)) == 1

        # The next question starts another one, and the one after that finds the backbone loaded.
        assert answers(door) is None
        (again,) = workers()
        assert again.pid != worker.pid
        started = monotonic()
        assert answers(door) is None
        assert monotonic() - started < 3
        assert workers() == [again]
        assert len(charges(profile)) == 3
    assert not again.is_running()


def test_a_pause_ends_training_at_once(tmp_path: Path) -> None:
    with Door(person(tmp_path), limits=LAVISH, policy=FAST) as door, training(door) as answer:
        (worker,) = workers()
        started = monotonic()
        door.pause()
        assert not worker.is_running()
        assert refused(answer.result(10), endless()[0]) == "paused"
        assert monotonic() - started < 5
        assert [row.refusal for _, row in read_sent(door.profile.sent)[0]] == ["paused"]
        assert answers(door) == "paused"
        assert workers() == []


def test_closing_ends_training_at_once(tmp_path: Path) -> None:
    with Door(person(tmp_path), limits=LAVISH, policy=FAST) as door, training(door) as answer:
        door.close()
        assert workers() == []
        with pytest.raises(OSError, match=r"."):
            answers(door)
        assert refused(answer.result(10), endless()[0]) == "paused"


@pytest.mark.parametrize(("policy", "code"), [(replace(FAST, deadline=1.0), "failed"), (FAST, None)])
def test_nobody_waits_longer_than_the_deadline(policy: Policy, code: str | None, tmp_path: Path) -> None:
    """One second is too short even for the imports."""
    with Door(person(tmp_path), limits=LAVISH, policy=policy) as door:
        assert answers(door) == code
        assert len(charges(door.profile)) == (code is None)
        assert len(workers()) == (code is None)


def test_an_idle_worker_ends(tmp_path: Path) -> None:
    with Door(person(tmp_path), limits=LAVISH, policy=replace(FAST, idle_seconds=1.0)) as door:
        assert answers(door) is None
        assert wait_until(lambda: not workers(), timeout=10)
        assert wait_until(lambda: door.status().state == "idle", timeout=10)


SERVICE = """
import sys
from pathlib import Path
from time import sleep
from client.door.server import Door
from client.profile import Profile
from tests.client.test_door_process import FAST, LAVISH
with Door(Profile(Path(sys.argv[1])), limits=LAVISH, policy=FAST):
    sleep(600)
"""


def test_a_killed_service_takes_its_training_with_it(tmp_path: Path) -> None:
    profile = person(tmp_path)
    service = subprocess.Popen([sys.executable, "-c", SERVICE, str(profile.folder)], cwd=ROOT)
    try:
        path = tmp_path / "run" / "ana.sock"
        assert wait_until(path.exists, timeout=START)
        sleep(0.2)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(wire.ask, path, endless()[1], timeout=START)
            assert wait_until(lambda: charges(profile), timeout=START, pause=0.05)
            (worker,) = workers(service.pid)
            service.kill()
            with pytest.raises(ConnectionError):
                answer.result(10)
        assert wait_until(lambda: not worker.is_running(), timeout=10)
    finally:
        service.kill()
        service.wait()
    with Door(profile, limits=LAVISH, policy=FAST) as door:  # what was left behind is in nobody's way
        assert door.status().state == "idle"
        assert len(charges(profile)) == 1
