"""The scorer with a prior: what each stage ranks by, that training starts at the prior, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from shared.backbone import open_backbone
from shared.errors import AdapterError
from shared.items import ItemTable
from shared.model import Scorer, Stage, build_scorer, trainable
from shared.prior import history_features
from shared.sections import Lora
from shared.windows import IGNORE, Windows
from tests.tiny_models import (
    CODED,
    ITEMS,
    LENGTH,
    MANY,
    PLAIN,
    PRIOR,
    TINY_FAMILIES,
    item_table,
    random_windows,
    shaken_scorer,
    tiny_scorer,
)

STAGES: tuple[Stage, ...] = ("start", "prior", "adapter")


@pytest.fixture
def table() -> ItemTable:
    return item_table(CODED, items=MANY)


def scores(
    scorer: Scorer, windows: Windows, table: ItemTable, stage: Stage = "adapter", *, fused: bool = True
) -> torch.Tensor:
    with torch.no_grad():
        return scorer.scores(scorer.user_states(windows, table, stage=stage), table, fused=fused)


def prior_by_hand(scorer: Scorer, windows: Windows, table: ItemTable, *, fusion: float) -> np.ndarray:
    """kappa log soft(q) + fusion q / std q at kappa 0.8 and floor 0.5, float64 (B, L, N)."""
    assert scorer.layout is not None
    assert scorer.prior is not None
    features = history_features(windows, table, scorer.layout).double().numpy()
    q = features @ scorer.prior.double().numpy() @ table.codes.double().numpy()[:, : scorer.layout.output].T
    popularity = table.rows.double().numpy()[:, -1]
    share = np.exp(popularity) / np.exp(popularity).sum()
    soft = (q + np.sqrt(q**2 + 4 * (0.5 * share) ** 2)) / 2  # cancels in float32, not in float64
    spread = q.std(axis=-1, ddof=1, keepdims=True)
    return 0.8 * np.log(soft) + fusion * q / np.maximum(spread, 1e-12)


def linear_by_hand(
    windows: Windows, table: ItemTable, *, gamma: float, beta: float, sharpness: float = 0.0
) -> np.ndarray:
    """gamma content(u)_i + beta log_popularity_i, float64 (B, L, N)."""
    plain = table.plain.double().numpy()
    size, length = windows.items.shape
    found = np.zeros((size, length, len(plain)))
    for row in range(size):
        for now in range(length):
            past = [place for place in range(now + 1) if windows.content[row, place]]
            weights = np.array([0.5 ** ((now - place) / CODED.content_half_life) for place in past])
            if past:
                likeness = plain[windows.items[row][past].numpy()] @ plain.T
                if sharpness:
                    pooled = weights @ np.exp(sharpness * likeness) / weights.sum()
                    found[row, now] = np.log(pooled) / sharpness
                else:
                    found[row, now] = weights @ likeness / weights.sum()
    return gamma * found + beta * table.rows.double().numpy()[:, -1]


@pytest.mark.parametrize("fusion", [0.0, 1.7])
def test_start_and_prior_rank_by_their_own_weights_by_hand(fusion: float, table: ItemTable) -> None:
    """Whatever was trained: the scorer is shaken."""
    prior = dataclasses.replace(PRIOR, fusion=fusion)
    scorer, windows = shaken_scorer(model=CODED, prior=prior), random_windows(4, seed=2)
    start = linear_by_hand(windows, table, gamma=2.0, beta=0.5)
    beside = linear_by_hand(windows, table, gamma=0.3, beta=0.1)
    np.testing.assert_allclose(scores(scorer, windows, table, "start").numpy(), start, atol=1e-4)
    for fused in (True, False):  # a likelihood does without the plain estimate
        wanted = beside + prior_by_hand(scorer, windows, table, fusion=fusion if fused else 0.0)
        found = scores(scorer, windows, table, "prior", fused=fused).numpy()
        np.testing.assert_allclose(found, wanted, atol=2e-3)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("sharpness", [0.0, 4.0])
def test_the_state_after_the_last_event_alone_is_the_last_of_all(
    stage: Stage, sharpness: float, table: ItemTable
) -> None:
    scorer = shaken_scorer(model=dataclasses.replace(CODED, sharpness=sharpness), prior=PRIOR)
    windows = random_windows(3, seed=2)
    with torch.no_grad():
        states = scorer.user_states(windows, table, stage=stage)
        found = scorer.user_states(windows, table, stage=stage, last=True)
    assert found.shape == (3, 1, states.shape[-1])
    lengths = windows.real.sum(1).tolist()
    assert min(lengths) < max(lengths)
    for row, place in enumerate(length - 1 for length in lengths):
        torch.testing.assert_close(found[row, 0], states[row, place])


def whole(scorer: Scorer, windows: Windows, table: ItemTable, stage: Stage = "adapter") -> torch.Tensor:
    with torch.no_grad():
        content = scorer.content_scores(windows, table, stage=stage)
    assert content is not None
    return scores(scorer, windows, table, stage) + content


def test_sharp_content_by_hand(table: ItemTable) -> None:
    """A log of a mean of exponentials, at the weights of each stage; nothing while nothing counts as content."""
    model = dataclasses.replace(CODED, sharpness=4.0)
    windows = random_windows(4, seed=2)
    windows.content[1, :2] = False
    start = linear_by_hand(windows, table, gamma=2.0, beta=0.5, sharpness=4.0)
    np.testing.assert_allclose(
        whole(shaken_scorer(model=model, prior=PRIOR), windows, table, "start"), start, atol=1e-4
    )
    assert np.ptp(start[1, 0] - 0.5 * table.rows.numpy()[:, -1]) < 1e-6
    scorer = shaken_scorer(model=model, prior=dataclasses.replace(PRIOR, fusion=0.0))
    beside = linear_by_hand(windows, table, gamma=0.3, beta=0.1, sharpness=4.0)
    wanted = beside + prior_by_hand(scorer, windows, table, fusion=0.0)
    np.testing.assert_allclose(whole(scorer, windows, table, "prior"), wanted, atol=2e-3)


def test_sharpness_tends_to_the_mean_on_one_side_and_to_the_nearest_event_on_the_other(table: ItemTable) -> None:
    windows = random_windows(4, seed=2)
    mean = scores(tiny_scorer(model=CODED), windows, table, "start")
    blunt = tiny_scorer(model=dataclasses.replace(CODED, sharpness=1e-3))
    torch.testing.assert_close(whole(blunt, windows, table, "start"), mean, atol=5e-3, rtol=0)
    model = dataclasses.replace(CODED, sharpness=30.0, content_half_life=1e6, gamma=1.0, beta=0.0)
    keen = whole(tiny_scorer(model=model), windows, table, "start")[0, -1].numpy()
    near = (table.plain[windows.items[0][windows.content[0]]] @ table.plain.T).max(0).values.numpy()
    assert np.abs(keen - near).max() < np.log(LENGTH) / 30.0 + 1e-5


def test_the_loss_and_the_weight_of_sharp_content_see_it(table: ItemTable) -> None:
    windows = random_windows(6, seed=4)
    losses = [
        tiny_scorer(model=dataclasses.replace(CODED, sharpness=tau)).window_losses(windows, table) for tau in (0.0, 4.0)
    ]
    assert not torch.allclose(losses[0], losses[1])
    scorer = tiny_scorer(model=dataclasses.replace(CODED, sharpness=4.0))
    scorer.window_losses(windows, table).sum().backward()
    found = scorer.gamma.weight.grad
    assert found is not None
    before = scorer.window_losses(windows, table).sum().item()
    with torch.no_grad():
        scorer.gamma.weight += 1e-2
    after = scorer.window_losses(windows, table).sum().item()
    assert (after - before) / 1e-2 == pytest.approx(found.item(), rel=0.05, abs=0.02)


def test_neither_start_nor_prior_depends_on_what_was_learned(table: ItemTable) -> None:
    fresh, shaken = (make(model=CODED, prior=PRIOR) for make in (tiny_scorer, shaken_scorer))
    windows = random_windows(4)
    for stage in ("start", "prior"):
        assert torch.equal(scores(fresh, windows, table, stage), scores(shaken, windows, table, stage))
    assert not torch.allclose(scores(fresh, windows, table), scores(shaken, windows, table))
    assert not torch.allclose(scores(fresh, windows, table, "start"), scores(fresh, windows, table, "prior"))


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_fresh_adapter_ranks_exactly_like_the_prior_stage(family: str, table: ItemTable) -> None:
    scorer, windows = tiny_scorer(family, model=CODED, prior=PRIOR), random_windows(5)
    assert PRIOR.fusion > 0
    for fused in (True, False):
        adapter, prior = (scores(scorer, windows, table, stage, fused=fused) for stage in ("adapter", "prior"))
        assert torch.equal(adapter, prior)


def test_the_adapter_adds_what_it_learned_to_the_prior_stage(table: ItemTable) -> None:
    scorer, windows = shaken_scorer(model=CODED, prior=PRIOR), random_windows(4, seed=2)
    with torch.no_grad():
        learned = scorer.output(scorer.history_states(windows, table)) @ table.rows[:, 32:-1].T
        states = scorer.user_states(windows, table)
        linear, expected = scorer.score_parts(states, table)
    assert states.shape == (4, LENGTH, 32 + (16 + 12) + 1 + 20)
    torch.testing.assert_close(scores(scorer, windows, table, "prior") + learned, scores(scorer, windows, table))
    assert expected is not None
    assert torch.equal(linear + expected, scores(scorer, windows, table))
    wanted = linear_by_hand(windows, table, gamma=0.3, beta=0.1) + learned.double().numpy()
    np.testing.assert_allclose(linear.numpy(), wanted, atol=1e-3)


def test_a_state_alone_scores_like_a_batch(table: ItemTable) -> None:
    scorer, windows = shaken_scorer(model=CODED, prior=PRIOR), random_windows(4, seed=2)
    with torch.no_grad():
        states = scorer.user_states(windows, table)
        torch.testing.assert_close(scorer.scores(states[2, 1], table), scorer.scores(states, table)[2, 1])


def test_the_loss_is_of_the_likelihood_without_the_plain_estimate(table: ItemTable) -> None:
    windows = random_windows(6, seed=4)
    losses = []
    for fusion in (0.0, 5.0):
        scorer = shaken_scorer(model=CODED, prior=dataclasses.replace(PRIOR, fusion=fusion))
        losses.append(scorer.window_losses(windows, table).detach())
    assert torch.equal(losses[0], losses[1])
    logits = scores(scorer, windows, table, fused=False).double().numpy()
    for row in range(len(windows)):
        seen: list[int] = []
        terms = []
        for place in range(LENGTH):
            seen += [int(windows.items[row, place])] if windows.seen[row, place] else []
            target = int(windows.targets[row, place])
            if target != IGNORE:
                rivals = [item for item in range(MANY) if item == target or item not in seen]
                terms.append(np.log(np.exp(logits[row, place, rivals]).sum()) - logits[row, place, target])
        assert float(losses[0][row]) == pytest.approx(np.mean(terms), rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_looks_ahead(stage: Stage, table: ItemTable) -> None:
    scorer, windows = shaken_scorer("gpt2", model=CODED, prior=PRIOR), random_windows(3, seed=1)
    before = scores(scorer, windows, table, stage)
    changed = dataclasses.replace(windows, items=windows.items.clone())
    changed.items[:, 3:] = (changed.items[:, 3:] + 1) % ITEMS
    after = scores(scorer, changed, table, stage)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3:], before[:, 3:])


def test_without_an_installed_prior_a_fresh_model_is_the_start(table: ItemTable) -> None:
    scorer, windows = tiny_scorer(model=CODED, prior=PRIOR), random_windows(3)
    with_prior, matrix = scores(scorer, windows, table), scorer.prior
    assert matrix is not None
    scorer.set_prior(None)
    for stage in STAGES:
        assert torch.equal(scores(scorer, windows, table, stage), scores(scorer, windows, table, "start"))
    assert not torch.allclose(scores(scorer, windows, table), with_prior)
    assert scorer.user_states(windows, table).shape[-1] == table.rows.shape[1]
    scorer.set_prior(matrix.numpy())
    assert torch.equal(scores(scorer, windows, table), with_prior)


def test_a_prior_of_another_layout_is_refused_and_the_old_one_stays() -> None:
    scorer = tiny_scorer(model=CODED, prior=PRIOR)
    matrix = scorer.prior
    assert matrix is not None
    assert matrix.shape == (46, 20)
    for shape in ((45, 20), (46, 21), (46,), (20, 46), (1, 1)):
        with pytest.raises(AdapterError, match=r"found a prior of shape .*make it \(46, 20\)"):
            scorer.set_prior(np.zeros(shape, dtype=np.float32))
        assert scorer.prior is matrix
    with pytest.raises(AdapterError, match="make it None"):
        tiny_scorer(model=PLAIN).set_prior(np.zeros((46, 20), dtype=np.float32))


def test_beside_a_prior_the_weights_of_the_parts_are_settings_and_not_trained() -> None:
    with_prior, without = (set(trainable(tiny_scorer(model=CODED, prior=prior))) for prior in (PRIOR, None))
    assert without - with_prior == {"beta.weight", "gamma.weight"}
    assert with_prior < without
    assert not any("prior" in name for name in with_prior)  # it travels beside the parameters


def test_parameters_of_codes_are_named_and_sized_by_the_catalogue() -> None:
    model = dataclasses.replace(CODED, identity=500, input_codes=1000)
    scorer = tiny_scorer(model=model, prior=dataclasses.replace(PRIOR, widths=(999, 6), output=999))
    room = MANY - 1 - 32
    assert trainable(scorer)["input.code.weight"].shape == (32, 32 + room)
    assert trainable(scorer)["output.0.weight"].shape == (16 + room, 32)
    assert scorer.layout is not None
    assert (scorer.layout.widths, scorer.layout.output) == ((32 + room, 6), 32 + room)
    assert item_table(model, items=MANY).codes.shape == (MANY, 32 + room)
    small = build_scorer(open_backbone("tiny-bert"), model=model, lora=Lora(), seed=3, items=20, prior=PRIOR)
    assert trainable(small)["output.0.weight"].shape == (16, 32)


def test_learned_codes_start_at_nothing_and_change_nothing(table: ItemTable) -> None:
    fresh, windows = tiny_scorer(model=CODED), random_windows(3)
    without = tiny_scorer(model=dataclasses.replace(CODED, input_codes=0))
    states = fresh.history_states(windows, table), without.history_states(windows, table)
    assert torch.equal(states[0], states[1])
    with torch.no_grad():
        trainable(fresh)["input.code.weight"].normal_(generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(fresh.history_states(windows, table), states[0])


def test_the_table_gives_shares_that_add_up_and_codes_of_the_size_of_tokens(table: ItemTable) -> None:
    popularity = table.rows.double().numpy()[:, -1]
    np.testing.assert_allclose(table.share.numpy(), np.exp(popularity) / np.exp(popularity).sum(), rtol=1e-5)
    codes = table.input_codes(36)
    assert codes.shape == (MANY, 36)
    assert float(codes.square().mean().sqrt()) == pytest.approx(1.0, rel=0.02)
    np.testing.assert_allclose(codes.numpy() / np.sqrt(MANY), table.codes.numpy()[:, :36], rtol=1e-5)
    assert list(table.parameters()) == []
