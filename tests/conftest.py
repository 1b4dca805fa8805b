"""Fixtures every test folder may use."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says something of the machine, not of the code; a machine may be busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def data_folder(name: str) -> Path:
    """Where a real data folder is looked for: under HOMERANK_DATA, else `../shared/data`. It need not be there."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("HOMERANK_DATA") or default) / name


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Find a real data folder, see `data_folder`; skip without it."""

    def find(name: str) -> Path:
        folder = data_folder(name)
        if not folder.is_dir():
            pytest.skip(f"no real data at {folder}; set HOMERANK_DATA to a folder that holds {name}")
        return folder

    return find


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Item vectors go to a folder of this test session, not to the user's cache."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("HOMERANK_CACHE", str(folder))
    return folder
