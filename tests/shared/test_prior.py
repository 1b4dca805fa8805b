"""The one-round prior: features, moments and matrix against loops, clips by brute force, a chain that it finds."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.samples import stack_windows
from client.store import History
from shared.adapter import AdapterState
from shared.errors import AdapterError
from shared.items import ItemTable
from shared.layout import MOMENTS, PriorLayout
from shared.prior import BALANCE, history_features, soften, solve_prior, window_moments
from shared.schema import EventKind
from shared.sections import Prior
from shared.vectors import ItemVectors
from shared.windows import IGNORE, Windows
from tests.tiny_models import CODED, LENGTH, MANY, item_table, random_windows

LAYOUT = PriorLayout((0.5, 3.0), (40, 6), 20)


def exact_table(items: int) -> ItemTable:
    """A catalogue whose codes are one direction an item."""
    flat = np.zeros((items, 2), dtype=np.float32)
    return ItemTable(ItemVectors(plain=flat, token=flat, output=flat, codes=np.eye(items, dtype=np.float32)))


def clicks(items: list[int]) -> History:
    count = len(items)
    return History(
        items=np.array(items),
        times=np.arange(count, dtype=np.float64),
        kinds=np.full(count, int(EventKind.CLICK)),
        roles=np.zeros(count, dtype=np.int64),
        values=np.full(count, np.nan),
    )


def features_by_hand(windows: Windows, table: ItemTable, layout: PriorLayout) -> np.ndarray:
    """(B, L, F) with loops over every pair of events."""
    codes = table.codes.double().numpy()
    size, length = windows.items.shape
    found = np.zeros((size, length, layout.features))
    for row in range(size):
        for now in range(length):
            start = 0
            for half_life, width in zip(layout.half_lives, layout.widths, strict=True):
                for past in range(now + 1):
                    liked, skipped = windows.content[row, past], windows.seen[row, past] & ~windows.content[row, past]
                    weight = 0.5 ** ((now - past) / half_life) * (float(liked) - layout.skip_penalty * float(skipped))
                    found[row, now, start : start + width] += weight * codes[windows.items[row, past], :width]
                start += width
    return found


def pairs_by_hand(windows: Windows, table: ItemTable, layout: PriorLayout) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each window the rows that regression works on: features (n, F) and codes of what followed (n, k)."""
    features = features_by_hand(windows, table, layout)
    codes = table.codes.double().numpy()[:, : layout.output]
    found = []
    for row in range(len(windows)):
        known = [place for place in range(windows.items.shape[1]) if windows.targets[row, place] != IGNORE]
        after = [codes[int(windows.targets[row, place])] for place in known]
        found.append((features[row][known], np.array(after).reshape(-1, layout.output)))
    return found


def moments_by_hand(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The weighted triangle row by row, then products, in one vector."""
    size = before.shape[1]
    triangle = [BALANCE * float(before[:, i] @ before[:, j]) for i in range(size) for j in range(i, size)]
    products = [float(before[:, i] @ after[:, j]) for i in range(size) for j in range(after.shape[1])]
    return np.array(triangle + products)


def packed(moments: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([moments[name].ravel() for name in MOMENTS]).astype(np.float64)


def moments_of(windows: Windows, *, clip: float = math.inf, layout: PriorLayout = LAYOUT) -> np.ndarray:
    return packed(window_moments(windows, item_table(CODED, items=MANY), layout, clip=clip))


# --- features ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip_penalty", [0.0, 0.4])
def test_features_are_decayed_sums_of_codes_over_events_that_count(skip_penalty: float) -> None:
    table, windows = item_table(CODED, items=MANY), random_windows(7, seed=3)
    layout = dataclasses.replace(LAYOUT, skip_penalty=skip_penalty)
    assert int((windows.real & ~windows.content & ~windows.seen).sum()) > 0  # some events do not count
    assert int((windows.real & ~windows.content & windows.seen).sum()) > 0  # and some are skips
    found = history_features(windows, table, layout)
    assert found.shape == (7, LENGTH, 46)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), features_by_hand(windows, table, layout), atol=1e-6)


def test_features_do_not_look_ahead_nor_at_padding() -> None:
    table, windows = item_table(CODED, items=MANY), random_windows(5, seed=1)
    before = history_features(windows, table, LAYOUT)
    later = dataclasses.replace(windows, items=windows.items.clone(), content=windows.content.clone())
    later.items[:, 3:], later.content[:, 3:] = 0, True
    assert torch.equal(history_features(later, table, LAYOUT)[:, :3], before[:, :3])
    assert not torch.equal(history_features(later, table, LAYOUT)[:, 3:], before[:, 3:])
    padded = dataclasses.replace(windows, items=torch.where(windows.real, windows.items, 9))
    assert torch.equal(history_features(padded, table, LAYOUT), before)


def test_a_layout_is_cut_to_the_directions_there_are() -> None:
    settings = Prior(half_lives=(1.0, 2.0, 3.0), widths=(5, 100, 44), output=1536, skip_penalty=0.3)
    layout = PriorLayout.of(settings, available=44)
    assert layout.skip_penalty == 0.3
    assert (layout.half_lives, layout.widths, layout.output) == ((1.0, 2.0, 3.0), (5, 44, 44), 44)
    assert layout.features == 93
    assert layout.shapes == {"prior_features": (93 * 94 // 2,), "prior_targets": (93, 44)}
    usual = PriorLayout.of(Prior(half_lives=(1.0, 2.0), output=7), available=44)
    assert (usual.widths, usual.output) == ((7, 7), 7)  # as many as are predicted


# --- moments -----------------------------------------------------------------------------------------------


def test_moments_are_those_of_the_regressions_rows_summed_over_windows() -> None:
    table, windows = item_table(CODED, items=MANY), random_windows(6, seed=2)
    found = window_moments(windows, table, LAYOUT)
    assert {name: array.shape for name, array in found.items()} == LAYOUT.shapes
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    expected = sum(moments_by_hand(*pair) for pair in pairs_by_hand(windows, table, LAYOUT))
    np.testing.assert_allclose(packed(found), expected, atol=1e-4)
    assert np.linalg.norm(expected) > 1


def test_each_window_is_clipped_by_itself_over_both_moments_together() -> None:
    """The clip lies in the middle of the norms, so that some windows are clipped and some are not."""
    table, windows = item_table(CODED, items=MANY), random_windows(6, seed=2)
    alone = [moments_by_hand(*pair) for pair in pairs_by_hand(windows, table, LAYOUT)]
    norms = [float(np.linalg.norm(vector)) for vector in alone]
    clip = float(np.median(norms))
    assert sum(norm > clip for norm in norms) == 3
    expected = sum(vector * min(1.0, clip / max(norm, 1e-12)) for vector, norm in zip(alone, norms, strict=True))
    np.testing.assert_allclose(moments_of(windows, clip=clip), expected, atol=1e-5 * clip)
    np.testing.assert_allclose(moments_of(windows, clip=2 * max(norms)), sum(alone), atol=1e-4)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 5), clip=st.floats(1e-3, 30.0), gone=st.integers(0, 4))
def test_one_window_moves_the_moments_by_at_most_the_clip(seed: int, count: int, clip: float, gone: int) -> None:
    windows = random_windows(count, seed=seed)
    gone = gone % count
    rest = windows.pick(torch.tensor([row for row in range(count) if row != gone], dtype=torch.long))
    moved = np.linalg.norm(moments_of(windows, clip=clip) - moments_of(rest, clip=clip))
    assert moved <= clip * (1 + 1e-4)
    whole = np.linalg.norm(moments_of(windows.pick(torch.tensor([gone]))))
    assert moved == pytest.approx(min(clip, whole), rel=1e-3, abs=1e-5)  # the bound is reached, not padded


@pytest.mark.parametrize("clip", [math.inf, 1.0])
def test_no_windows_and_windows_without_targets_have_moments_of_zero(clip: float) -> None:
    table = item_table(CODED, items=MANY)
    lonely = random_windows(2)
    lonely = dataclasses.replace(lonely, targets=torch.full_like(lonely.targets, IGNORE))
    for windows in (random_windows(0), lonely):
        found = window_moments(windows, table, LAYOUT, clip=clip)
        assert {name: array.shape for name, array in found.items()} == LAYOUT.shapes
        assert not packed(found).any()


def test_moments_keep_no_gradient_and_change_no_window() -> None:
    table, windows = item_table(CODED, items=MANY), random_windows(3)
    copy = windows.items.clone()
    window_moments(windows, table, LAYOUT)
    assert torch.equal(windows.items, copy)
    assert not table.codes.requires_grad


# --- the matrix --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
def test_the_matrix_is_ridge_regressions(ridge: float) -> None:
    """By least squares on the rows themselves with sqrt(lambda) I below them, after a trip through one packed array."""
    table, windows = item_table(CODED, items=MANY), random_windows(30, seed=8)
    rows = pairs_by_hand(windows, table, LAYOUT)
    before, after = (np.concatenate([pair[part] for pair in rows]) for part in (0, 1))
    padding = np.sqrt(ridge) * np.eye(LAYOUT.features)
    expected = np.linalg.lstsq(
        np.concatenate([before, padding]), np.concatenate([after, np.zeros((LAYOUT.features, LAYOUT.output))])
    )[0]
    sent = AdapterState(window_moments(windows, table, LAYOUT))
    received = AdapterState.unpack(sent.pack(), LAYOUT.shapes).arrays
    found = solve_prior(received[MOMENTS[0]], received[MOMENTS[1]], ridge=ridge)
    assert found.shape == (LAYOUT.features, LAYOUT.output)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


@pytest.mark.parametrize("triangle", [9, 11, 0])
def test_moments_that_do_not_belong_together_are_refused(triangle: int) -> None:
    with pytest.raises(AdapterError, match="do not fit together"):
        solve_prior(np.zeros(triangle), np.zeros((4, 2)), ridge=1.0)
    assert not solve_prior(np.zeros(10), np.zeros((4, 2)), ridge=1.0).any()


def noisy(size: int, std: float, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What devices with 500 rows in very different directions send, with noise; and the true matrix (size, 3)."""
    generator = np.random.default_rng(seed)
    before = generator.normal(size=(500, size)) * np.geomspace(3.0, 0.03, size)
    truth = generator.normal(size=(size, 3))
    after = before @ truth
    triangle = BALANCE * (before.T @ before)[np.triu_indices(size)]
    return (
        triangle + std * generator.normal(size=triangle.shape),
        before.T @ after + std * generator.normal(size=(size, 3)),
        truth,
    )


def test_with_noise_the_solution_stays_bounded_where_noise_alone_is_left() -> None:
    """Inverse of what was solved with, from targets that are the identity: symmetric, positive, at most 1 / damping."""
    size, std, ridge = 12, 40.0, 0.5
    triangle, _, _ = noisy(size, std)
    square = np.zeros((size, size))
    square[np.triu_indices(size)] = triangle
    square += np.triu(square, 1).T
    assert np.linalg.eigvalsh(square / BALANCE).min() < -ridge  # ridge regression alone would divide by this
    inverse = solve_prior(triangle, np.eye(size), ridge=ridge, noise_std=std).astype(np.float64)
    np.testing.assert_allclose(inverse, inverse.T, atol=1e-6)
    values = np.linalg.eigvalsh(inverse)
    assert values.min() > 0
    assert values.max() <= (1 + 1e-5) / (ridge + 2 * std / BALANCE * math.sqrt(size))


def test_with_noise_what_stands_out_of_it_is_found_and_nothing_is_made_up() -> None:
    size = 12
    exact, targets, truth = noisy(size, 0.0)
    np.testing.assert_allclose(solve_prior(exact, targets, ridge=1e-6), truth, atol=1e-3)
    still = solve_prior(exact, targets, ridge=1e-6, noise_std=1e-9)
    np.testing.assert_allclose(still, truth, atol=1e-2)  # little noise: nearly the same
    error = []
    for std in (0.1, 3.0, 30.0):
        found = np.array([solve_prior(*noisy(size, std, seed=n)[:2], ridge=1e-6, noise_std=std) for n in range(20)])
        true = np.array([noisy(size, std, seed=n)[2] for n in range(20)])
        error.append(float(np.abs(found[:, 0] - true[:, 0]).mean()))  # the strongest direction
        assert np.linalg.norm(found) < 1.1 * np.linalg.norm(true)
    assert error[0] < 0.01
    assert error == sorted(error)
    assert error[2] < 0.2
    naive = [solve_prior(*noisy(size, 30.0, seed=n)[:2], ridge=1e-6) for n in range(20)]
    assert np.linalg.norm(naive) > 2 * np.linalg.norm(true)


def test_a_chain_is_found_where_codes_are_exact() -> None:
    """Item i is followed by a in 3 of 4 cases, else by b. With a short half-life, q is close to the true transition."""
    items, generator = 8, np.random.default_rng(4)
    transition = np.zeros((items, items))
    for item in range(items):
        often, seldom = generator.choice([other for other in range(items) if other != item], 2, replace=False)
        transition[item, often], transition[item, seldom] = 0.75, 0.25
    pieces = []
    for _ in range(300):
        walk = [int(generator.integers(items))]
        for _ in range(11):
            walk.append(int(generator.choice(items, p=transition[walk[-1]])))
        pieces.append(clicks(walk))
    table, layout = exact_table(items), PriorLayout((0.05,), (items,), items)
    matrix = solve_prior(
        *window_moments(stack_windows(pieces, length=12, with_targets=True), table, layout).values(), ridge=1e-3
    )
    np.testing.assert_allclose(matrix, transition, atol=0.06)
    now = stack_windows([clicks([5, 2])], length=12, with_targets=True)
    q = history_features(now, table, layout)[0, 1].numpy() @ matrix
    assert q.argmax() == transition[2].argmax()
    np.testing.assert_allclose(q, transition[2], atol=0.06)


def test_a_long_half_life_finds_what_goes_together_in_any_order() -> None:
    """Two shelves, visited item by item in random order: what was seen of a shelf speaks for the rest of it."""
    items, generator = 12, np.random.default_rng(6)
    pieces = [clicks(generator.permutation(np.arange(6) + 6 * (n % 2)).tolist()) for n in range(60)]
    table, layout = exact_table(items), PriorLayout((1e3,), (items,), items)
    matrix = solve_prior(
        *window_moments(stack_windows(pieces, length=6, with_targets=True), table, layout).values(), ridge=1.0
    )
    windows = stack_windows([clicks([7, 10, 8])], length=6, with_targets=True)
    q = history_features(windows, table, layout)[0, 2].numpy() @ matrix
    assert set(np.argsort(-q)[:3].tolist()) == {6, 9, 11}


# --- soft(q) -----------------------------------------------------------------------------------------------


@given(
    q=st.lists(st.floats(-10.0, 10.0, width=32), min_size=2, max_size=20).map(sorted),
    share=st.floats(2**-30, 1.0, width=32),
    floor=st.floats(1e-3, 10.0),
)
def test_soft_q_is_positive_monotone_and_solves_its_equation(q: list[float], share: float, floor: float) -> None:
    """s = (q + sqrt(q^2 + 4 e^2)) / 2 is the positive solution of s (s - q) = e^2; checked in float64."""
    soft = soften(torch.tensor(q), torch.tensor(share), floor=floor).double().numpy()
    least = floor * share
    assert (soft > 0).all()
    assert (np.diff(soft) >= 0).all()
    expected = np.array([(abs(x) + math.hypot(x, 2 * least)) / 2 for x in q])
    expected = np.where(np.array(q) < 0, least**2 / expected, expected)
    np.testing.assert_allclose(soft, expected, rtol=1e-5)
    np.testing.assert_allclose(soft * (soft - q), least**2, rtol=1e-3, atol=1e-6 * float(np.square(soft).max()))


def test_soft_q_is_q_where_it_is_large_and_the_popularity_where_nothing_is_known() -> None:
    share = torch.tensor([0.5, 0.1, 1e-4])
    np.testing.assert_allclose(soften(torch.zeros(3), share, floor=0.6), [0.3, 0.06, 6e-5], rtol=1e-6)
    np.testing.assert_allclose(soften(torch.full((3,), 9.0), share, floor=0.6), [9.01, 9.0, 9.0], rtol=1e-3)


def test_the_logarithm_of_soft_q_is_finite_however_wrong_the_regression_is() -> None:
    """An estimate far below zero for a rare item: written as the sum of q and a root, float32 gives 0."""
    q = -torch.logspace(-8, 3, 12)[:, None]
    share = torch.logspace(-9, -1, 9)
    logs = torch.log(soften(q, share, floor=0.6))
    assert torch.isfinite(logs).all()
    assert (logs.diff(dim=1) > 0).all()  # the more popular one is still ahead
    assert (logs.diff(dim=0) < 0).all()  # and the more unlikely one behind
