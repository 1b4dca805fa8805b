"""Which items are proposed: those with the best score, of those that may be shown."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from client import candidates, cells
from client.candidates import Proposer, Wanted

ITEMS = 4_000
COUNT = 60
Floats = NDArray[np.float32]


def drawn(seed: int, *, groups: int = 80) -> tuple[Floats, Floats, Floats]:
    """Vectors in groups, codes in other groups, popularity."""
    generator = np.random.default_rng(seed)
    tables = []
    for width in (12, 6):
        centres = generator.standard_normal((groups, width), dtype=np.float32)
        noise = 0.2 * generator.standard_normal((ITEMS, width), dtype=np.float32)
        tables.append(centres[generator.integers(0, groups, ITEMS)] + noise)
    return tables[0], tables[1], generator.standard_normal(ITEMS).astype(np.float32)


def cubed(q: Floats) -> Floats:
    return q**3


@pytest.fixture(autouse=True)
def few_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "WHOLE", 100)


@pytest.mark.parametrize("shown", [1.0, 0.3], ids=["all", "some"])
@pytest.mark.parametrize("prior", [True, False])
def test_the_best_of_the_whole_score_are_proposed(prior: bool, shown: float) -> None:
    taste, codes, popularity = drawn(0)
    generator = np.random.default_rng(1)
    allowed = generator.random(ITEMS) < shown
    proposer = Proposer(taste, codes if prior else None)
    for _ in range(10):
        z, f = generator.standard_normal(12).astype(np.float32), generator.standard_normal(6).astype(np.float32)
        wanted = Wanted(z, popularity, f, cubed) if prior else Wanted(z, popularity)
        found = proposer.propose(wanted, count=COUNT, allowed=None if shown == 1 else allowed)
        assert len(set(found.tolist())) == COUNT
        assert allowed[found].all()
        total = taste @ z + popularity + (cubed(codes @ f) if prior else 0)
        best = np.argsort(np.where(allowed, -total, np.inf))
        assert set(best[: COUNT // 2].tolist()) <= set(found.tolist())


def test_when_few_may_be_shown_all_of_them_are_proposed() -> None:
    taste, codes, popularity = drawn(0)
    allowed = np.zeros(ITEMS, dtype=np.bool_)
    allowed[[7, 3, 2_000]] = True
    found = Proposer(taste, codes).propose(Wanted(taste[0], popularity), count=2, allowed=allowed)
    assert found.tolist() == [3, 7, 2_000]


def test_in_cells_the_best_of_each_part_are_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "SCANNED", 1_000)
    monkeypatch.setattr(cells, "SHARES", (0.3,))
    taste, codes, popularity = drawn(2)
    proposer = Proposer(taste, codes)
    assert proposer.bytes > taste.size + codes.size
    allowed = np.random.default_rng(1).random(ITEMS) < 0.5
    wanted = Wanted(taste[5], popularity, codes[9], cubed)
    for may in (np.ones(ITEMS, dtype=np.bool_), allowed):
        found = proposer.propose(wanted, count=COUNT, allowed=may)
        assert may[found].all()
        assert len(found) == len(set(found.tolist())) <= 6 * COUNT
        for values, share in ((popularity, 1.0), (taste @ taste[5], 0.9), (codes @ codes[9], 0.9)):
            best = np.argsort(np.where(may, -values, np.inf))[: COUNT // 2]
            assert np.isin(best, found).mean() >= share


def test_a_person_without_a_past_gets_the_popular_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "SCANNED", 1_000)
    monkeypatch.setattr(cells, "SHARES", (0.3,))
    taste, codes, popularity = drawn(2)
    nothing = np.zeros(12, dtype=np.float32)
    found = Proposer(taste, codes).propose(Wanted(nothing, popularity), count=3)
    assert found.tolist() == sorted(np.argsort(-popularity)[:3].tolist())
    flat = Proposer(taste, codes).propose(Wanted(nothing, np.zeros(ITEMS, dtype=np.float32)), count=3)
    assert flat.tolist() == [0, 1, 2]
