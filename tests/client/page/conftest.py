"""One browser for each file of tests of the page, and one service on the small world's catalogue for all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.profile import Preferences
from shared.catalogue import Catalogue
from simulations.world import make_world
from tests.client.page.browser import call, chromium, needs_chromium, served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="session")
def shelf() -> Catalogue:
    """96 items of four domains."""
    return make_world(0, users=1, items_per_domain=24).interactions.catalogue


@pytest.fixture(scope="session")
def vectors_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache of item vectors for all services of these tests."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMERANK_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def service(shelf: Catalogue, vectors_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One service for all tests on the small world; it takes long to start."""
    needs_chromium()
    with served(tmp_path_factory.mktemp("home"), catalogue=shelf) as address:
        yield address


@pytest.fixture
def link(service: str) -> str:
    """The page of a person of whom nothing is known, and who chose nothing."""
    call(service, "POST", "/v1/forget", {"confirm": "forget everything"})
    start = vars(Preferences())
    call(service, "PATCH", "/v1/settings", start)
    return service
