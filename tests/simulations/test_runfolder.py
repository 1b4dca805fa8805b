"""What a run folder's store holds of a source: events with their values, and attributes when the model reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.store import History
from shared.config import merge
from shared.schema import EventKind
from simulations.runfolder import prepare
from tests.simulations.tiny_runs import tiny_config


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MovieLens 1M in small: two people, five films each, of whom one says who she is."""
    folder = tmp_path_factory.mktemp("ratings")
    films = "".join(f"{film}::Film {film} (1995)::Drama\n" for film in range(1, 6))
    (folder / "movies.dat").write_text(films, encoding="latin-1")
    rows = [f"{user}::{film}::{(film + user) % 5 + 1}::{1000 * film}\n" for user in (1, 2) for film in range(1, 6)]
    (folder / "ratings.dat").write_text("".join(rows), encoding="latin-1")
    (folder / "users.dat").write_text("2::F::25::7::90210\n", encoding="latin-1")
    return folder


def histories(data: Path, out: Path, *context: str) -> list[History]:
    config = merge(tiny_config(data), {"model": {"context": context}})
    run = prepare(config, out)
    store = run.store()
    found = [store.history(device, run.catalogue) for device in range(run.devices)]
    store.close()
    return found


def test_ratings_reach_the_devices_and_the_test_item_does_not(ratings: Path, tmp_path: Path) -> None:
    first, second = histories(ratings, tmp_path / "run", "value")
    assert first.values.tolist() == [3.0, 4.0, 5.0, 1.0]
    assert second.values.tolist() == [4.0, 5.0, 1.0, 2.0]
    assert first.kinds.tolist() == [EventKind.RATING] * 4
    assert first.times.tolist() == [1000.0, 2000.0, 3000.0, 4000.0]


def test_attributes_are_stored_only_for_a_model_that_reads_them(ratings: Path, tmp_path: Path) -> None:
    assert [past.attributes for past in histories(ratings, tmp_path / "a", "kind")] == [{}, {}]
    found = histories(ratings, tmp_path / "b", "attributes")
    assert [past.attributes for past in found] == [{}, {"gender": "women", "age": "25-34"}]
