"""The greedy terms and rules against their definitions, by brute force and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.diversity import Calibration, Cap, Dpp, Mmr, TailShare, arrange

SEEDS = st.integers(0, 10_000)


def unit_rows(seed: int, count: int = 7, width: int = 4) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_without_stages_relevance_ranks_and_ties_go_to_the_earlier() -> None:
    found = arrange(np.array([1.0, 3.0, 3.0, 2.0]), places=2, stages=[])
    assert found.order == [1, 2, 3, 0]
    assert found.taken == 2


def test_mmr_by_hand() -> None:
    likeness = np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]])
    relevance = np.array([1.0, 0.8, 0.5])
    found = arrange(relevance, places=3, stages=[Mmr(likeness, weight=0.5)])
    assert found.order == [0, 2, 1]  # at the second place 0.8 - 0.45 loses to 0.5 - 0
    assert found.figures[0][1] == pytest.approx({"likeness": 0.9})
    assert found.figures[0][0] == {}
    assert arrange(relevance, places=3, stages=[Mmr(likeness, weight=0.3)]).order == [0, 1, 2]


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_mmr_takes_the_argmax_of_its_definition(seed: int) -> None:
    rows = unit_rows(seed)
    relevance = np.random.default_rng(seed + 1).normal(size=len(rows))
    order = arrange(relevance, places=5, stages=[Mmr(rows @ rows.T, weight=0.7)]).order
    for place in range(5):
        above = rows[order[:place]]
        value = {
            i: relevance[i] - 0.7 * (max(rows[i] @ above.T) if place else 0)
            for i in range(len(rows))
            if i not in order[:place]
        }
        assert value[order[place]] == pytest.approx(max(value.values()))


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_dpp_takes_the_item_with_the_largest_determinant(seed: int) -> None:
    rows, weight = unit_rows(seed, width=6), 0.6
    relevance = np.random.default_rng(seed + 1).normal(size=len(rows))
    quality = np.exp(relevance / (2 * weight))
    kernel = quality[:, None] * (1 + rows @ rows.T) / 2 * quality[None]
    order = arrange(relevance, places=5, stages=[Dpp(rows @ rows.T, weight=weight)]).order
    for place in range(5):
        volume = {}
        for i in set(range(len(rows))) - set(order[:place]):
            chosen = [*order[:place], i]
            volume[i] = np.linalg.slogdet(kernel[np.ix_(chosen, chosen)])[1]
        assert volume[order[place]] == pytest.approx(max(volume.values()), abs=1e-6)


def test_dpp_puts_an_exact_copy_last() -> None:
    rows = np.array([[1.0, 0], [1, 0], [0, 1]])
    found = arrange(np.array([1.0, 0.99, 0.0]), places=3, stages=[Dpp(rows @ rows.T, weight=0.1)])
    assert found.order == [0, 2, 1]
    assert found.figures[0][1]["volume"] == pytest.approx(0)


@given(SEEDS)
@settings(max_examples=40, deadline=None)
def test_calibration_takes_the_argmax_of_the_divergence(seed: int) -> None:
    generator = np.random.default_rng(seed)
    tags = generator.random((8, 4)) < 0.4
    shares = tags / np.maximum(tags.sum(1, keepdims=True), 1)  # several tags, or none
    wanted = np.append(generator.dirichlet(np.ones(3)), 0.0)  # one that the person never turned to
    relevance = generator.normal(size=8)
    order = arrange(relevance, places=4, stages=[Calibration(shares, wanted, weight=2.0)]).order
    for place in range(4):
        value = {}
        for i in set(range(8)) - set(order[:place]):
            total = shares[[*order[:place], i]].sum(0)
            mixed = 0.99 * total / max(total.sum(), 1e-12) + 0.01 * wanted
            value[i] = relevance[i] - 2.0 * (wanted[:3] * np.log(wanted[:3] / mixed[:3])).sum()
        assert value[order[place]] == pytest.approx(max(value.values()))


def test_calibration_by_hand_gives_two_tastes_their_shares() -> None:
    shares = np.array([[1, 0]] * 6 + [[0, 1]] * 6, dtype=float)
    wanted = np.array([2 / 3, 1 / 3])
    found = arrange(np.linspace(1, 0, 12), places=6, stages=[Calibration(shares, wanted, weight=50.0)])
    assert shares[found.order[:6]].sum(0).tolist() == [4, 2]


@given(SEEDS, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_every_prefix_has_its_share_of_the_tail_as_long_as_the_tail_lasts(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    tail = generator.random(12) < 0.5
    found = arrange(generator.normal(size=12), places=12, stages=[TailShare(tail, share=share)])
    assert sorted(found.order) == list(range(12))
    for size in range(1, 13):
        needed = min(int(share * size + 1e-9), int(tail.sum()))
        assert tail[found.order[:size]].sum() >= needed


@given(SEEDS, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_no_group_gets_more_than_its_cap_and_the_slate_is_as_long_as_that_allows(seed: int, most: int) -> None:
    generator = np.random.default_rng(seed)
    groups = generator.random((10, 3)) < 0.4
    found = arrange(generator.normal(size=10), places=10, stages=[Cap(groups, most=most)])
    chosen, left = found.order[: found.taken], found.order[found.taken :]
    assert groups[chosen].sum(0).max() <= most
    full = groups[chosen].sum(0) == most
    assert all(groups[item, full].any() for item in left)
