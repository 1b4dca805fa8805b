"""Fixtures of the server tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from simulations.runfolder import RunFolder
from tests.server.small_server import USERS, whole_run
from tests.server.watched import deployed, released, watched_run
from tests.simulations.tiny_runs import write_data


@pytest.fixture(scope="session")
def six_users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: six users with eight events each."""
    return write_data(tmp_path_factory.mktemp("data") / "tiny", users=USERS, items=40)


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What `own_cache` is for one test, for the fixtures of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMERANK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="module")
def calm(six_users: Path, module_cache: None, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished private run in which nothing went wrong. Not to be changed."""
    return whole_run(tmp_path_factory.mktemp("calm"), six_users)


@pytest.fixture(scope="session")
def watched(six_users: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment folder after a private run with faults, and two releases. Not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMERANK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return released(deployed(watched_run(tmp_path_factory.mktemp("watched"), six_users)))


@pytest.fixture(scope="session")
def cut_short(six_users: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, ended by a crash after round 5. Not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMERANK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return deployed(watched_run(tmp_path_factory.mktemp("cut"), six_users, stop_after=5))
