"""Fixtures of the simulation tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulations.tiny_runs import write_data


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve users, eight events each."""
    return write_data(tmp_path_factory.mktemp("data") / "tiny")
