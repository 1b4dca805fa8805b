"""DP-SGD on the device: exact gradients, exact clipping, measured noise, and nothing else moves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opacus.grad_sample import GradSampleHooks
from scipy import stats

from client import trainer
from client.trainer import Step, clipped_popularity, gaussian, make_generator, train_locally
from shared.adapter import AdapterState
from shared.backbone import frozen_digest
from shared.errors import AdapterError, PrivacyError
from shared.items import ItemTable
from shared.model import Scorer, load_parameters, read_parameters, trainable
from shared.sections import Lora, Model, Prior
from shared.windows import Windows
from tests.tiny_models import (
    CODED,
    MANY,
    PLAIN,
    PRIOR,
    RICH,
    TINY_FAMILIES,
    item_table,
    random_windows,
    shaken_scorer,
)

HUGE = 1e20  # a clip that never binds, but goes through Opacus


def plan(scorer: Scorer, **changes: object) -> Step:
    start = Step(
        steps=1,
        learning_rate=1.0,
        sample_rate=1.0,
        noise_multiplier=0.0,
        clip_norm=math.inf,
        names=tuple(trainable(scorer)),
    )
    return dataclasses.replace(start, **changes)


def train(
    scorer: Scorer, windows: Windows, table: ItemTable, *, seed: int | None = 1, **changes: object
) -> AdapterState:
    """One call from the same start: the scorer is put back afterwards."""
    start = read_parameters(scorer)
    try:
        return train_locally(scorer, windows, table, step=plan(scorer, **changes), seed=seed)
    finally:
        load_parameters(scorer, start)


def gradients_one_by_one(scorer: Scorer, windows: Windows, table: ItemTable) -> list[AdapterState]:
    """Each window's gradient by plain autograd on that window alone."""
    found = []
    for row in range(len(windows)):
        scorer.zero_grad()
        scorer.window_losses(windows.pick(torch.tensor([row])), table).sum().backward()
        found.append(AdapterState({name: p.grad.numpy().copy() for name, p in trainable(scorer).items()}))
    scorer.zero_grad()
    return found


def clipped_sum(gradients: list[AdapterState], clip: float) -> AdapterState:
    total = gradients[0].zeros()
    for gradient in gradients:
        total = total + gradient * min(1.0, clip / max(gradient.norm(), 1e-12))
    return total


def assert_close(found: AdapterState, expected: AdapterState, *, tolerance: float = 1e-6) -> None:
    """Equal within `tolerance` of the expected norm, array by array, so that no small one hides."""
    assert found.shapes == expected.shapes
    for name in expected:
        scale = max(float(np.linalg.norm(expected.arrays[name])), 1e-2)
        difference = float(np.abs(found.arrays[name] - expected.arrays[name]).max())
        assert difference <= tolerance * scale * 10, (name, difference, scale)


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize(
    ("model", "prior"), [(RICH, None), (PLAIN, None), (CODED, PRIOR)], ids=["rich", "plain", "prior"]
)
def test_opacus_gradients_are_those_of_each_window_alone(family: str, model: Model, prior: Prior | None) -> None:
    """For every trainable parameter: LoRA, gamma, beta, context, projections of vectors and of codes."""
    scorer, windows = shaken_scorer(family, model=model, prior=prior), random_windows(5)
    table = item_table(model, items=MANY)
    expected = gradients_one_by_one(scorer, windows, table)
    for name in expected[0]:
        assert max(np.abs(gradient.arrays[name]).max() for gradient in expected) > 0, name
    hooks = GradSampleHooks(scorer, loss_reduction="sum", strict=False)
    try:
        with pytest.warns(UserWarning, match=trainer._HOOK_WARNING):
            scorer.window_losses(windows, table).sum().backward()
        for row, gradient in enumerate(expected):
            found = {name: p.grad_sample[row].numpy().copy() for name, p in trainable(scorer).items()}
            assert_close(AdapterState(found), gradient, tolerance=1e-5)
    finally:
        hooks.cleanup()


def test_a_regression_far_below_zero_leaves_a_finite_loss_and_gradient() -> None:
    """float32 would round soft(q) to 0, and its logarithm would be a target's infinite loss."""
    scorer, table, windows = shaken_scorer(model=CODED, prior=PRIOR), item_table(CODED, items=MANY), random_windows(5)
    assert scorer.prior is not None
    scorer.set_prior((50 * scorer.prior).numpy())
    table.set_popularity(np.linspace(-12, 0, MANY, dtype=np.float32))
    assert torch.isfinite(scorer.window_losses(windows, table)).all()
    for gradient in gradients_one_by_one(scorer, windows, table):
        assert gradient.is_finite()
        assert gradient.norm() > 0.1


@pytest.mark.parametrize("clip", [math.inf, 0.5])
def test_a_prior_is_trained_against_and_never_trained(clip: float) -> None:
    scorer, table, windows = shaken_scorer(model=CODED, prior=PRIOR), item_table(CODED, items=MANY), random_windows(5)
    matrix = scorer.prior
    assert matrix is not None
    before = matrix.clone()
    with_prior = train(scorer, windows, table, clip_norm=clip)
    assert torch.equal(matrix, before)
    assert matrix.grad is None
    scorer.set_prior(None)
    without = train(scorer, windows, table, clip_norm=clip)
    assert with_prior.shapes == without.shapes
    assert (with_prior - without).norm() > 0.1


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_no_noise_and_no_clip_is_plain_training(family: str) -> None:
    scorer, table, windows = shaken_scorer(family), item_table(), random_windows(5)
    by_hand = clipped_sum(gradients_one_by_one(scorer, windows, table), math.inf) * -0.01
    plain = train(scorer, windows, table, learning_rate=0.01)
    private = train(scorer, windows, table, learning_rate=0.01, clip_norm=HUGE)
    assert not plan(scorer).private
    assert plan(scorer, clip_norm=HUGE).private
    assert_close(private, plain)
    assert_close(plain, by_hand, tolerance=1e-5)
    assert np.abs(private.pack() - plain.pack()).max() < 1e-6
    assert plain.norm() > 0.01


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_the_update_is_the_sum_of_clipped_gradients(family: str) -> None:
    """The clip lies in the middle of the norms, so that some windows are clipped and some are not."""
    scorer, table, windows = shaken_scorer(family), item_table(), random_windows(6)
    gradients = gradients_one_by_one(scorer, windows, table)
    clip = float(np.median([gradient.norm() for gradient in gradients]))
    assert min(gradient.norm() for gradient in gradients) < clip * 0.99
    update = train(scorer, windows, table, learning_rate=0.5, clip_norm=clip)
    assert_close(update, clipped_sum(gradients, clip) * -0.5, tolerance=1e-5)


@pytest.mark.parametrize("clip", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_one_window_moves_the_adapter_by_at_most_the_clip(clip: float, rate: float) -> None:
    scorer, table = shaken_scorer(), item_table()
    for seed in range(4):
        update = train(scorer, random_windows(1, seed=seed), table, learning_rate=rate, clip_norm=clip)
        # float32 rounding of the parameters, of size 1, adds up to 1e-7 per entry
        assert update.norm() <= rate * clip * (1 + 1e-4) + 1e-7 * math.sqrt(update.size)
        assert update.norm() >= rate * clip * 0.95  # these gradients are all larger than the clip


def test_adding_a_window_changes_the_sum_by_at_most_the_clip() -> None:
    scorer, table, windows = shaken_scorer(), item_table(), random_windows(20)
    whole = train(scorer, windows, table, clip_norm=0.5)
    for gone in (0, 7, 19):
        rest = torch.tensor([row for row in range(20) if row != gone])
        change = whole - train(scorer, windows.pick(rest), table, clip_norm=0.5)
        assert 0.4 < change.norm() <= 0.5 * (1 + 1e-3)


@pytest.mark.parametrize("clip", [math.inf, HUGE, 0.5])
def test_pieces_give_the_same_as_all_windows_at_once(clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, table, windows = shaken_scorer(), item_table(), random_windows(trainer.CHUNK * 2 + 3)
    usual = train(scorer, windows, table, learning_rate=0.01, clip_norm=clip)
    for chunk in (1, 1000):
        monkeypatch.setattr(trainer, "CHUNK", chunk)
        assert_close(train(scorer, windows, table, learning_rate=0.01, clip_norm=clip), usual, tolerance=1e-5)


def test_noise_is_added_once_however_many_pieces_there_are() -> None:
    scorer, table, windows = shaken_scorer(), item_table(), random_windows(trainer.CHUNK * 2 + 3)
    noisy = train(scorer, windows, table, noise_multiplier=2.0, clip_norm=0.5)
    clean = train(scorer, windows, table, noise_multiplier=0.0, clip_norm=0.5)
    alone = train(scorer, windows.pick(torch.zeros(0, dtype=torch.long)), table, noise_multiplier=2.0, clip_norm=0.5)
    np.testing.assert_allclose((noisy - clean).pack(), alone.pack(), atol=1e-5)


@pytest.mark.parametrize(("multiplier", "clip", "rate"), [(1.3, 0.7, 1.0), (0.25, 2.0, 0.5), (8.0, 0.1, 1.0)])
def test_measured_noise_is_multiplier_times_clip(multiplier: float, clip: float, rate: float) -> None:
    scorer, table, windows = shaken_scorer(), item_table(), random_windows(2)
    settings = {"clip_norm": clip, "learning_rate": rate}
    clean = train(scorer, windows, table, **settings)
    draws = np.concatenate(
        [
            (train(scorer, windows, table, seed=seed, noise_multiplier=multiplier, **settings) - clean).pack()
            for seed in range(12, 24)
        ]
    ).astype(np.float64) / (rate * multiplier * clip)
    assert len(draws) > 10_000
    # Sum of squares is chi-square with len(draws) degrees of freedom; the seeds are fixed, so this cannot flake.
    assert 0.001 < stats.chi2.cdf(float((draws**2).sum()), len(draws)) < 0.999
    assert stats.kstest(draws, "norm").pvalue > 0.001


def test_noise_of_one_array_is_independent_of_another_and_of_another_call() -> None:
    scorer, table, windows = shaken_scorer(), item_table(), random_windows(0)
    first, second = (
        train(scorer, windows, table, seed=seed, noise_multiplier=1.0, clip_norm=1.0).pack() for seed in (1, 2)
    )
    assert len(np.unique(first.round(4))) > 0.9 * len(first)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(len(first))
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 5 / math.sqrt(len(first))


#: The table in `train_locally`.
def test_a_device_without_windows_answers_with_noise_like_any_other() -> None:
    scorer, table, nothing = shaken_scorer(), item_table(), random_windows(0)
    assert len(nothing) == 0
    assert train(scorer, nothing, table).norm() == 0.0
    assert train(scorer, nothing, table, clip_norm=0.5).norm() == 0.0
    for changes in ({}, {"steps": 3}, {"sample_rate": 0.3}):
        update = train(scorer, nothing, table, noise_multiplier=2.0, clip_norm=0.5, **changes)
        steps = changes.get("steps", 1)
        assert update.norm() == pytest.approx(math.sqrt(steps * update.size), rel=0.1)


def test_a_poisson_batch_may_be_empty_the_first_one_included() -> None:
    scorer, table, windows = shaken_scorer(), item_table(), random_windows(3)
    settings = {"steps": 3, "sample_rate": 1e-6, "clip_norm": 0.5}
    assert train(scorer, windows, table, **settings).norm() == 0.0
    noisy = train(scorer, windows, table, noise_multiplier=2.0, **settings)
    assert noisy.norm() == pytest.approx(math.sqrt(3 * noisy.size), rel=0.1)


def test_several_steps_follow_the_sampled_batches() -> None:
    """Against a loop by hand over the same batches, one of which is empty."""
    scorer, table, windows = shaken_scorer(), item_table(), random_windows(6)
    settings = {"steps": 5, "sample_rate": 0.2, "clip_norm": 0.5, "learning_rate": 0.1}
    seed = 3
    batches = trainer._batches(6, plan(scorer, **settings), make_generator(seed))
    assert 0 in [len(rows) for rows in batches]
    assert max(len(rows) for rows in batches) > 1
    update = train(scorer, windows, table, seed=seed, **settings)
    start = AdapterState(read_parameters(scorer))
    state = start
    for rows in batches:
        if len(rows):
            load_parameters(scorer, state.arrays)
            gradients = gradients_one_by_one(scorer, windows.pick(rows), table)
            state = state + clipped_sum(gradients, 0.5) * -0.1
    assert_close(update, state - start, tolerance=1e-4)


def test_windows_join_a_step_independently_at_the_sampling_rate() -> None:
    scorer = shaken_scorer()
    step = plan(scorer, steps=2000, sample_rate=0.3, clip_norm=1.0)
    batches = trainer._batches(10, step, make_generator(0))
    joined = np.zeros((2000, 10))
    for number, rows in enumerate(batches):
        joined[number, rows.numpy()] = 1
        assert len(set(rows.tolist())) == len(rows)
    per_window = joined.sum(0)
    assert stats.chisquare(per_window, np.full(10, per_window.mean())).pvalue > 0.001
    assert stats.binomtest(int(joined.sum()), joined.size, 0.3).pvalue > 0.001
    # Sizes are binomial, not constant as they would be for a fixed batch size.
    assert joined.sum(1).var() == pytest.approx(10 * 0.3 * 0.7, rel=0.15)


def test_a_rate_of_one_takes_every_window() -> None:
    assert [rows.tolist() for rows in trainer._batches(3, plan(shaken_scorer(), steps=2), make_generator(0))] == [
        [0, 1, 2]
    ] * 2


def test_gradients_that_are_not_finite_count_as_zero_under_privacy() -> None:
    """Otherwise a NaN in the reply would tell which devices hold the window that overflows."""
    scorer, table, windows = shaken_scorer(), item_table(), random_windows(3)
    others = train(scorer, windows.pick(torch.tensor([0, 2])), table, clip_norm=0.5)

    def poisoned(batch: Windows, items: ItemTable, losses: Callable = scorer.window_losses) -> torch.Tensor:
        return losses(batch, items) * torch.tensor([1.0, math.nan, 1.0])

    scorer.window_losses = poisoned  # type: ignore[method-assign]
    assert_close(train(scorer, windows, table, clip_norm=0.5), others, tolerance=1e-5)


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize(("multiplier", "clip"), [(0.0, math.inf), (1.0, 0.5)])
def test_only_the_named_parameters_move(family: str, multiplier: float, clip: float) -> None:
    scorer, table, windows = shaken_scorer(family), item_table(), random_windows(4)
    digest, start = frozen_digest(scorer), AdapterState(read_parameters(scorer))
    names = tuple(name for name in trainable(scorer) if "lora_B" in name or name == "gamma.weight")
    step = plan(scorer, names=names, noise_multiplier=multiplier, clip_norm=clip)
    update = train_locally(scorer, windows, table, step=step, seed=0)
    assert tuple(update) == names
    assert all(np.abs(array).min() >= 0 and np.abs(array).max() > 0 for array in update.arrays.values())
    after = AdapterState(read_parameters(scorer))
    rest = [name for name in start if name not in names]
    assert after.select(rest) == start.select(rest)
    np.testing.assert_allclose((start.select(names) + update).pack(), after.select(names).pack(), atol=1e-6)
    assert frozen_digest(scorer) == digest


def test_clipping_looks_at_the_named_parameters_only() -> None:
    """Half the parameters train: their part of the gradient may fill the whole clip."""
    scorer, table, windows = shaken_scorer(), item_table(), random_windows(1)
    names = tuple(name for name in trainable(scorer) if "lora_B" in name)
    update = train(scorer, windows, table, names=names, clip_norm=1e-2)
    assert update.norm() == pytest.approx(1e-2, rel=1e-2)


@pytest.mark.parametrize("clip", [math.inf, 0.5])
def test_the_scorer_is_left_as_it_was_but_for_its_values(clip: float) -> None:
    scorer, table, windows = shaken_scorer(), item_table(), random_windows(4)
    modes = {name: module.training for name, module in scorer.named_modules()}
    trained = set(trainable(scorer))
    step = plan(scorer, clip_norm=clip, names=("beta.weight", "gamma.weight"))
    train_locally(scorer, windows, table, step=step, seed=0)
    assert set(trainable(scorer)) == trained
    assert all(p.requires_grad and p.grad is None for p in trainable(scorer).values())
    assert {name: module.training for name, module in scorer.named_modules()} == modes
    for module in scorer.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not hasattr(module, "activations")
    leftovers = ("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample")
    assert not [name for p in scorer.parameters() for name in leftovers if getattr(p, name, None) is not None]


def test_an_error_in_training_leaves_no_hooks_behind() -> None:
    scorer, table, windows = shaken_scorer(), item_table(), random_windows(4)
    expected = train(shaken_scorer(), windows, table, clip_norm=0.5)
    longer = random_windows(9)
    before_the_forward_pass = dataclasses.replace(longer, items=longer.items + 1000)
    after_it = dataclasses.replace(longer, targets=longer.targets + 1000)
    for broken in (before_the_forward_pass, after_it):
        with pytest.raises((IndexError, RuntimeError)):
            train(scorer, broken, table, clip_norm=0.5)
        assert train(scorer, windows, table, clip_norm=0.5) == expected


def test_the_same_seed_gives_the_same_update_and_none_a_fresh_one() -> None:
    scorer, table, windows = shaken_scorer(), item_table(), random_windows(8)
    settings = {"noise_multiplier": 1.0, "clip_norm": 0.5, "sample_rate": 0.5, "steps": 2}
    assert train(scorer, windows, table, **settings) == train(scorer, windows, table, **settings)
    assert train(scorer, windows, table, **settings) != train(scorer, windows, table, seed=2, **settings)
    fresh = [train(scorer, windows, table, seed=None, **settings) for _ in range(2)]
    assert fresh[0] != fresh[1]


def test_the_global_random_state_is_neither_used_nor_changed() -> None:
    scorer = shaken_scorer(lora=Lora(blocks=0, dropout=0.3))
    table, windows = item_table(), random_windows(4)
    updates = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        updates.append(train(scorer, windows, table, noise_multiplier=1.0, clip_norm=0.5))
        assert torch.equal(torch.get_rng_state(), before)
    assert updates[0] == updates[1]


def test_lora_dropout_acts_while_training_and_never_while_ranking() -> None:
    kept, dropped = shaken_scorer(), shaken_scorer(lora=Lora(blocks=0, dropout=0.5))
    table, windows = item_table(), random_windows(4)
    for clip in (math.inf, 0.5):
        update = train(dropped, windows, table, clip_norm=clip)
        assert update != train(kept, windows, table, clip_norm=clip)
        assert update != train(dropped, windows, table, clip_norm=clip, seed=2)
        assert update == train(dropped, windows, table, clip_norm=clip)
    with torch.no_grad():
        assert torch.equal(dropped.user_states(windows, table), kept.user_states(windows, table))


def test_unknown_names_and_noise_without_a_clip_are_refused() -> None:
    scorer, table, windows = shaken_scorer(), item_table(), random_windows(1)
    with pytest.raises(AdapterError, match="no parameter 'secret'"):
        train(scorer, windows, table, names=("secret",))
    with pytest.raises(PrivacyError, match="noise without a clip norm"):
        plan(scorer, noise_multiplier=1.0)


def words(generator: torch.Generator) -> np.ndarray:
    """The 624 words of the Mersenne Twister's state."""
    return generator.get_state().numpy()[24 : 24 + 8 * 624].view(np.uint64)


def follows_from_its_first_word(state: np.ndarray) -> bool:
    """Whether the state is what `manual_seed` makes of 32 bits (the initialisation of MT19937)."""
    previous = state[:-1]
    mixed = previous ^ (previous >> np.uint64(30))
    expected = (mixed * np.uint64(1812433253) + np.arange(1, 624, dtype=np.uint64)) % np.uint64(2**32)
    return bool((state[1:] == expected).all())


def test_the_operating_system_fills_the_whole_state_of_the_generator() -> None:
    """`manual_seed` keeps 32 bits, which an attacker can try one by one to take the noise away."""
    assert torch.equal(torch.randn(3, generator=make_generator(5)), torch.randn(3, generator=make_generator(5 + 2**32)))
    assert follows_from_its_first_word(words(make_generator(5)))
    first, second = (words(make_generator(None)) for _ in range(2))
    assert not follows_from_its_first_word(first)
    assert (first != second).mean() > 0.99
    assert first.max() < 2**32
    draws = torch.randn(20_000, generator=make_generator(None)).numpy()
    assert np.isfinite(draws).all()
    assert abs(draws.mean()) < 0.05
    assert abs(draws.std() - 1) < 0.05


def test_popularity_by_hand() -> None:
    """Counts (2, 0, 1) have norm sqrt 5; (0, 1, 0) is within the clip of 1 and stays."""
    windows = [np.array([0, 2, 0]), np.array([1]), np.array([], dtype=np.int64)]
    exact = clipped_popularity(windows, count=3, clip=math.inf)
    assert exact.tolist() == [2.0, 1.0, 1.0]
    assert exact.dtype == np.float32
    clipped = clipped_popularity(windows, count=3, clip=1.0)
    np.testing.assert_allclose(clipped, [2 / math.sqrt(5), 1.0, 1 / math.sqrt(5)], rtol=1e-6)
    assert clipped_popularity([], count=3, clip=1.0).tolist() == [0.0] * 3


baskets = st.lists(st.integers(0, 9), max_size=30).map(lambda items: np.array(items, dtype=np.int64))


@given(st.lists(baskets, max_size=4), baskets, st.floats(0.1, 5.0))
def test_one_window_changes_popularity_by_at_most_the_clip(
    windows: list[np.ndarray], more: np.ndarray, clip: float
) -> None:
    counts = [clipped_popularity(rows, count=10, clip=clip).astype(np.float64) for rows in (windows, [*windows, more])]
    assert np.linalg.norm(counts[1] - counts[0]) <= clip * (1 + 1e-5)


def test_gaussian_noise_has_the_asked_standard_deviation() -> None:
    draws = gaussian(20_000, std=3.0, seed=4) / 3.0
    assert draws.dtype == np.float64
    assert stats.kstest(draws, "norm").pvalue > 0.001
    assert np.array_equal(gaussian(5, std=2.0, seed=1), gaussian(5, std=2.0, seed=1))
    assert not np.array_equal(gaussian(5, std=2.0, seed=None), gaussian(5, std=2.0, seed=None))
    assert gaussian(3, std=0.0, seed=None).tolist() == [0.0] * 3
