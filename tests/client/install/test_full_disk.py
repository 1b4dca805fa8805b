"""A device whose disk is full goes on ranking, records and trains nothing, says so, and recovers when there is room."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from client.door import rounds, wire
from client.door.gate import ANY_TIME
from client.door.server import Door
from client.service.http import make_app
from client.service.person import Person
from client.service.training import DoorTraining
from tests.client.service.small_service import TOKEN, open_full, write_adapter
from tests.client.small_device import SHELF, question
from tests.client.small_door import InProcess, charges, person, refused

KEY = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def disk() -> Iterator[Path]:
    """A file system of 6 MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    folder = Path(tempfile.mkdtemp(prefix="homerank-", dir="/tmp"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def fill(folder: Path) -> Path:
    """Leave not one byte free."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(folder).f_bavail == 0
    return filler


def test_ranking_goes_on_and_nothing_else_does(disk: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "Worker", InProcess)
    profile = person(disk, "default")
    write_adapter(profile.adapter, catalogue=SHELF)
    owner = Person(profile, engine=open_full)
    policy = replace(ANY_TIME, min_seconds=0.0)
    with Door(profile, limits=owner.limits, policy=policy, on_adapter=owner.delivered) as door:
        service = TestClient(
            make_app(owner, token=TOKEN, training=DoorTraining(door)), base_url="http://127.0.0.1:1", headers=KEY
        )

        def slate() -> list[str]:
            answer = service.post("/v1/recommend", json={"k": 5})
            assert answer.status_code == 200
            return [one["item"] for one in answer.json()["slate"]]

        def train(number: int) -> str | None:
            manifest, content = question("train", round=number)
            return refused(wire.ask(door.path, content, timeout=60), manifest)

        before = slate()
        assert train(1) is None
        spent = charges(profile)
        assert len(spent) == 1
        filler = fill(disk)

        assert slate() == before
        assert service.get("/healthz").status_code == 200
        answer = service.post("/v1/events", json={"item": "i20"})
        assert answer.status_code == 400
        assert "nothing was written" in answer.json()["error"]
        assert "free the file or the disk" in answer.json()["error"]
        answer = service.patch("/v1/settings", json={"diversity": 0.5})
        assert answer.status_code == 503
        assert "Make room" in answer.json()["error"]
        assert service.get("/v1/settings").json()["diversity"] == 0
        assert train(2) == "failed"
        assert slate() == before
        assert len(service.get("/v1/history").json()) == 10

        filler.unlink()
        assert charges(profile)[:1] == spent
        assert service.post("/v1/events", json={"item": "i20"}).status_code == 200
        assert len(service.get("/v1/history").json()) == 11
        assert train(3) is None
        rounds_given = service.get("/v1/privacy").json()["rounds"]
        assert rounds_given == 2
        assert len(charges(profile)) in (2, 3)  # a charge whose answer could not be written down stays spent
    owner.close()
