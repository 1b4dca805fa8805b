"""BPR-MF: what it learns, what it does with people and events it was not trained on, and life without the library."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from shared.errors import ConfigError
from simulations.quality.factors import BprFactors, Settings, fit_bpr
from tests.simulations.quality.test_classical import case, checkerboard, ranks, training

#: Enough for data of a few dozen events.
QUICK = (Settings(learning_rate=0.1, regularization=0.01, epochs=100, width=4),)


@pytest.fixture(scope="module")
def fitted() -> BprFactors:
    pytest.importorskip("implicit", reason="BPR-MF needs implicit: pip install 'homerank[bench]'")
    data, _ = checkerboard()
    return fit_bpr(data, seed=0, grid=QUICK)


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "implicit.cpu.bpr", None)
    with pytest.raises(ConfigError, match=r'pip install "homerank\[bench\]"'):
        fit_bpr(training([0, 1], items=2), seed=0)


def test_taste_is_found_on_a_checkerboard(fitted: BprFactors) -> None:
    _, cases = checkerboard()
    assert set(ranks(fitted, cases)) == {1}
    assert fitted.chosen == {"learning_rate": 0.1, "regularization": 0.01, "epochs": 100}


def test_scores_are_finite_and_do_not_depend_on_who_else_asks(fitted: BprFactors) -> None:
    _, cases = checkerboard()
    together = fitted.scores(cases)
    assert together.shape == (24, 12)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    assert together[3].tolist() == fitted.scores([cases[3]])[0].tolist()


def test_the_same_seed_gives_the_same_factors(fitted: BprFactors) -> None:
    data, cases = checkerboard()
    assert fit_bpr(data, seed=0, grid=QUICK).scores(cases).tolist() == fitted.scores(cases).tolist()
    assert fit_bpr(data, seed=1, grid=QUICK).scores(cases).tolist() != fitted.scores(cases).tolist()


def test_people_without_training_events_get_popularity() -> None:
    pytest.importorskip("implicit", reason="BPR-MF needs implicit: pip install 'homerank[bench]'")
    data = training([0, 1], [1, 2], [], items=4)
    ranker = fit_bpr(data, seed=0, grid=QUICK)
    assert ranker.scores([case(2, [0]), case(77, [])]).tolist() == [[1, 2, 1, 0]] * 2


def test_a_history_as_it_was_in_training_is_ranked_with_the_learned_factor(fitted: BprFactors) -> None:
    user = 4
    learned = fitted.items @ fitted.users[user]
    np.testing.assert_allclose(fitted.scores([case(user, fitted.own[user].tolist())])[0], learned, rtol=1e-5)


def test_events_since_training_move_the_person_and_not_the_items(fitted: BprFactors) -> None:
    """User 0 has consumed even items only. After odd ones, the odd items that are left gain on the even one."""
    known = fitted.own[0].tolist()
    (left,) = set(range(0, 12, 2)) - set(known)
    items, users = fitted.items.copy(), fitted.users.copy()
    before = fitted.scores([case(0, known)])[0]
    after = fitted.scores([case(0, [*known, 1, 3, 5, 7])])[0]
    assert after[9] - after[left] > before[9] - before[left] + 0.1
    assert fitted.items.tolist() == items.tolist()
    assert fitted.users.tolist() == users.tolist()
    again = fitted.scores([case(3, [1]), case(0, [*known, 1, 3, 5, 7])])[1]
    assert again.tolist() == after.tolist()  # the draws are a person's own


def test_a_person_who_has_seen_everything_keeps_the_learned_factor(fitted: BprFactors) -> None:
    scores = fitted.scores([case(0, list(range(12)))])[0]
    np.testing.assert_allclose(scores, fitted.items @ fitted.users[0], rtol=1e-5)


def test_settings_are_chosen_on_validation() -> None:
    pytest.importorskip("implicit", reason="BPR-MF needs implicit: pip install 'homerank[bench]'")
    data, _ = checkerboard()
    idle = Settings(learning_rate=1e-6, regularization=0.01, epochs=1, width=4)
    assert fit_bpr(data, seed=0, grid=(idle, *QUICK)).settings == QUICK[0]
