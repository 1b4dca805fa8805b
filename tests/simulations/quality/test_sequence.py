"""SASRec: the loss against torch's own, what attention may see, and when training stops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from shared.errors import DataError
from simulations.evaluation import Case
from simulations.quality import sequence
from simulations.quality.base import Training
from simulations.quality.sequence import CatalogueCrossEntropy, Network, SASRec, Settings, fit_sasrec
from tests.simulations.quality.test_classical import case, ranks, training

TINY = Settings(dropout=0.0, width=8, length=5, batch=32, learning_rate=0.02, epochs=12)
ITEMS = 9


def cycle(*, users: int = 20, seed: int = 0) -> tuple[Training, list[Case]]:
    """Everybody walks round the catalogue from somewhere; the next step is the question."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(ITEMS, size=users).tolist()
    sequences = [[(start + step) % ITEMS for step in range(int(rng.integers(2, 8)))] for start in starts]
    cases = [case(user, seen, (seen[-1] + 1) % ITEMS) for user, seen in enumerate(sequences)]
    return training(*sequences, items=ITEMS, validation=cases), cases


@pytest.fixture(scope="module")
def fitted() -> SASRec:
    return fit_sasrec(cycle()[0], seed=0, grid=(TINY,))


@pytest.fixture
def network() -> Network:
    torch.manual_seed(0)
    return Network(ITEMS, TINY).eval()


# --- the loss ----------------------------------------------------------------------------------------------


def test_the_loss_and_its_gradients_are_those_of_torch() -> None:
    torch.manual_seed(0)
    states = torch.randn(300, 8, requires_grad=True)  # more than one piece, the last one not full
    table = torch.randn(50, 8, requires_grad=True)
    targets = torch.randint(50, (300,))
    found, expected = [], []
    for loss, into in (
        (CatalogueCrossEntropy.apply(states, table, targets), found),
        (F.cross_entropy(states @ table.T, targets), expected),
    ):
        (3 * loss).backward()
        into += [loss.detach(), states.grad, table.grad]
        states.grad = table.grad = None
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    states = torch.tensor([[200.0], [-200.0]])
    loss = CatalogueCrossEntropy.apply(states, torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 0]))
    assert loss.item() == pytest.approx((0 + 400) / 2)


def test_padding_is_no_target(network: Network) -> None:
    one, two = np.array([1, 2, 3, 4]), np.array([5, 6])
    both = network.loss([one, two]).item()
    assert both == pytest.approx((3 * network.loss([one]).item() + network.loss([two]).item()) / 4, rel=1e-5)


# --- what a state may depend on ----------------------------------------------------------------------------


def test_a_state_sees_nothing_later(network: Network) -> None:
    lengths = torch.tensor([4])
    first, _ = network(torch.tensor([[1, 2, 3, 4]]), lengths)
    changed, _ = network(torch.tensor([[1, 2, 7, 8]]), lengths)
    torch.testing.assert_close(first[:, :2], changed[:, :2])
    assert not torch.allclose(first[:, 2], changed[:, 2])
    earlier, _ = network(torch.tensor([[5, 2, 3, 4]]), lengths)
    assert not torch.allclose(first[:, 3], earlier[:, 3])


def test_a_state_does_not_depend_on_padding(network: Network) -> None:
    alone, _ = network(torch.tensor([[1, 2]]), torch.tensor([2]))
    padded, real = network(torch.tensor([[1, 2, 0, 0], [3, 4, 5, 6]]), torch.tensor([2, 4]))
    torch.testing.assert_close(alone[0], padded[0, :2])
    assert real.tolist() == [[True, True, False, False], [True] * 4]


def test_positions_count_back_from_the_newest_event(network: Network) -> None:
    """Two events hold places 1 and 0 however long the other sequences are; places 2 and up must not matter."""
    items, lengths = torch.tensor([[1, 2, 0], [3, 4, 5]]), torch.tensor([2, 3])
    before, _ = network(items, lengths)
    with torch.no_grad():
        network.places.weight[2:] += torch.randn(8)
    after, _ = network(items, lengths)
    torch.testing.assert_close(before[0, :2], after[0, :2])
    assert not torch.allclose(before[1], after[1])
    with torch.no_grad():
        network.places.weight[0] += torch.randn(8)
    newest, _ = network(items, lengths)
    torch.testing.assert_close(newest[1, :2], after[1, :2])  # place 0 is the last event, which these cannot see
    assert not torch.allclose(newest[1, 2], after[1, 2])


# --- training ----------------------------------------------------------------------------------------------


@given(size=st.integers(2, 40), length=st.integers(1, 12), seed=st.integers(0, 99))
def test_every_event_but_the_first_is_a_target_once(size: int, length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pieces = list(sequence._pieces(np.arange(size), length=length, rng=rng))
    assert [event for piece in pieces for event in piece[1:].tolist()] == list(range(1, size))
    assert all(2 <= len(piece) <= length + 1 and (np.diff(piece) == 1).all() for piece in pieces)


def test_an_epoch_holds_everything_in_batches_of_like_length() -> None:
    rng = np.random.default_rng(0)
    sequences = [np.arange(100 * user, 100 * user + size) for user, size in enumerate(rng.integers(2, 14, size=50))]
    batches = list(sequence._batches(sequences, settings=TINY, rng=rng))
    targets = [event for batch in batches for piece in batch for event in piece[1:].tolist()]
    assert sorted(targets) == sorted(event for one in sequences for event in one[1:].tolist())
    assert len(batches) > 4
    assert all(sum(len(piece) - 1 for piece in batch) <= TINY.batch + TINY.length for batch in batches)
    spread = [max(map(len, batch)) - min(map(len, batch)) for batch in batches]
    assert np.mean(spread) <= 2


def test_the_next_step_of_a_walk_is_found(fitted: SASRec) -> None:
    _, cases = cycle(seed=1)
    assert set(ranks(fitted, cases)) == {1}


def test_training_stops_after_its_patience_and_keeps_the_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    data, cases = cycle()
    told = [0.1, 0.5]

    def quality(ranker: SASRec, asked: Sequence[Case]) -> float:
        ranker.scores(asked)  # as the real one: puts the network into evaluation mode
        return told.pop(0)

    monkeypatch.setattr(sequence, "validation_ndcg", quality)
    two = fit_sasrec(data, seed=0, grid=(Settings(**{**vars(TINY), "epochs": 2}),))
    told += [0.1, 0.5, 0.3, 0.5, 0.4, 0.9]
    stopped = fit_sasrec(data, seed=0, grid=(Settings(**{**vars(TINY), "patience": 3}),))
    assert told == [0.9]  # asked five times
    assert stopped.chosen == {"dropout": 0.0, "width": 8, "epochs": 2}
    assert stopped.scores(cases).tolist() == two.scores(cases).tolist()


def test_the_grid_is_decided_on_validation() -> None:
    idle = Settings(**{**vars(TINY), "learning_rate": 1e-6, "width": 4, "epochs": 1})
    assert fit_sasrec(cycle()[0], seed=0, grid=(idle, TINY)).chosen["width"] == 8


def test_a_seed_gives_the_same_network_and_leaves_the_global_stream_alone() -> None:
    data, cases = cycle()
    short: Any = (Settings(**{**vars(TINY), "epochs": 2, "dropout": 0.3}),)
    torch.manual_seed(5)
    first = fit_sasrec(data, seed=3, grid=short).scores(cases)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert drawn == torch.rand(1)
    assert fit_sasrec(data, seed=3, grid=short).scores(cases).tolist() == first.tolist()
    assert fit_sasrec(data, seed=4, grid=short).scores(cases).tolist() != first.tolist()


def test_without_two_events_in_a_row_there_is_nothing_to_learn() -> None:
    with pytest.raises(DataError, match="two positive training events"):
        fit_sasrec(training([1], [], items=3), seed=0)


# --- ranking -----------------------------------------------------------------------------------------------


def test_scores_are_finite_and_do_not_depend_on_who_else_asks(fitted: SASRec) -> None:
    _, cases = cycle()
    together = fitted.scores(cases)
    assert together.shape == (20, ITEMS)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    alone = np.concatenate([fitted.scores([one]) for one in cases])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_only_the_newest_events_are_read(fitted: SASRec) -> None:
    short, long = fitted.scores([case(0, [1, 2, 3, 4, 5]), case(0, [8, 7, 1, 2, 3, 4, 5])])
    np.testing.assert_allclose(short, long, rtol=1e-5, atol=1e-6)
    assert not np.allclose(short, fitted.scores([case(0, [2, 1, 3, 4, 5])])[0], atol=1e-4)


def test_an_empty_history_is_ranked_by_popularity(fitted: SASRec) -> None:
    data, _ = cycle()
    counts = np.bincount(np.concatenate([one.items for one in data.histories]), minlength=ITEMS)
    assert fitted.scores([case(0, [1]), case(0, [])])[1].tolist() == counts.tolist()
