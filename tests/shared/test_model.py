"""The scorer: it starts as content + popularity, and its loss is what a hand-written softmax says."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from client.samples import ranking_windows, stack_windows
from client.store import History
from client.trainer import Step, train_locally
from shared.adapter import AdapterState
from shared.backbone import open_backbone
from shared.errors import AdapterError, BackboneError
from shared.items import ItemTable
from shared.model import Scorer, build_scorer, load_parameters, read_parameters, trainable
from shared.schema import EventKind
from shared.sections import Lora, Model
from shared.vectors import ItemVectors
from shared.windows import IGNORE, Windows
from tests.tiny_models import (
    ITEMS,
    LENGTH,
    PLAIN,
    RICH,
    TINY_FAMILIES,
    item_table,
    random_windows,
    shaken_scorer,
    tiny_scorer,
)


def scores(scorer: Scorer, windows: Windows, table: ItemTable) -> torch.Tensor:
    with torch.no_grad():
        return scorer.scores(scorer.user_states(windows, table), table)


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("model", [RICH, PLAIN], ids=["rich", "plain"])
def test_a_fresh_model_ranks_exactly_like_zero_shot(family: str, model: Model) -> None:
    scorer, table, windows = tiny_scorer(family, model=model), item_table(model), random_windows(5)
    with torch.no_grad():
        states = scorer.user_states(windows, table)
        assert torch.equal(states, scorer.user_states(windows, table, stage="start"))
    assert states.shape == (5, LENGTH, 32 + 16 + 1)
    assert states.dtype == torch.float32
    assert not torch.equal(scores(shaken_scorer(family, model=model), windows, table), scores(scorer, windows, table))


def piece(*events: tuple[int, EventKind]) -> History:
    return History(
        items=np.array([item for item, _ in events]),
        times=np.arange(len(events), dtype=np.float64),
        kinds=np.array([int(kind) for _, kind in events]),
        roles=np.zeros(len(events), dtype=np.int64),
        values=np.full(len(events), np.nan),
    )


def test_the_score_is_the_sum_of_its_parts_by_hand() -> None:
    """gamma 2, beta 0.5, half-life 1: weights of the last three liked events are 1/7, 2/7, 4/7."""
    settings = dataclasses.replace(PLAIN, content_half_life=1.0, beta=0.5)
    scorer, table = tiny_scorer(model=settings), item_table(settings)
    history = piece(
        (1, EventKind.CLICK),
        (5, EventKind.SKIP),
        (2, EventKind.LIKE),
        (9, EventKind.IMPRESSION),
        (3, EventKind.RATING),
    )
    windows = ranking_windows([history], length=LENGTH)
    # The age counts events, liked or not: 4, 2 and 0.
    weights = np.array([0.5**4, 0.5**2, 1.0])
    content = (weights / weights.sum()) @ table.plain.numpy()[[1, 2, 3]]
    expected = 2.0 * table.plain.numpy() @ content + 0.5 * table.rows.numpy()[:, -1]
    found = scores(scorer, windows, table)[0, int(windows.last)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_history_without_liked_events_scores_by_popularity_alone() -> None:
    scorer, table = tiny_scorer(), item_table()
    windows = ranking_windows([piece((1, EventKind.SKIP), (2, EventKind.IMPRESSION))], length=LENGTH)
    found = scores(scorer, windows, table)[0, int(windows.last)]
    np.testing.assert_allclose(found.numpy(), 0.5 * table.rows.numpy()[:, -1], rtol=1e-6)


def brute_force_losses(scorer: Scorer, windows: Windows, table: ItemTable) -> list[float]:
    """Cross-entropy written with loops and math.exp."""
    logits = scores(scorer, windows, table).double().numpy()
    losses = []
    for row in range(len(windows)):
        seen: set[int] = set()
        terms = []
        for position in range(windows.items.shape[1]):
            if windows.seen[row, position]:
                seen.add(int(windows.items[row, position]))
            target = int(windows.targets[row, position])
            if target == IGNORE:
                continue
            competitors = [item for item in range(ITEMS) if item == target or item not in seen]
            total = sum(math.exp(logits[row, position, item]) for item in competitors)
            terms.append(math.log(total) - logits[row, position, target])
        losses.append(sum(terms) / len(terms) if terms else 0.0)
    return losses


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_losses_are_those_of_a_hand_written_softmax(family: str) -> None:
    scorer, table, windows = shaken_scorer(family), item_table(), random_windows(12, seed=5)
    with torch.no_grad():
        found = scorer.window_losses(windows, table)
    assert found.shape == (12,)
    np.testing.assert_allclose(found.numpy(), brute_force_losses(scorer, windows, table), rtol=1e-4)


def gradient_of_logits(events: History, *, model: Model = PLAIN) -> np.ndarray:
    """d loss / d log-popularity, (N,): beta times (softmax probability - [target]), averaged over positions.

    An item's entry is exactly 0 when it is in no softmax, positive when it is a negative.
    """
    scorer, table = shaken_scorer(model=model), item_table(model)
    table.rows.requires_grad_(True)
    windows = stack_windows([events], length=LENGTH, with_targets=True)
    scorer.window_losses(windows, table).sum().backward()
    assert table.rows.grad is not None
    beta = float(trainable(scorer)["beta.weight"].detach())
    return table.rows.grad[:, -1].numpy() * np.sign(beta)


def test_earlier_seen_items_are_left_out_and_everything_else_is_a_negative() -> None:
    gradient = gradient_of_logits(piece((4, EventKind.LIKE), (7, EventKind.IMPRESSION), (9, EventKind.LIKE)))
    assert gradient[4] == 0.0  # seen before every target
    assert gradient[9] < 0.0  # the target
    others = [item for item in range(ITEMS) if item not in (4, 9)]
    # An impression (7) is not a seen item. Nor is anything that comes later on this device left out: the
    # validation and test items are ordinary negatives, because the loss has no way to know them.
    assert (gradient[others] > 0.0).all()
    assert gradient.sum() == pytest.approx(0.0, abs=1e-6)


def test_a_skipped_item_is_left_out() -> None:
    gradient = gradient_of_logits(piece((4, EventKind.SKIP), (9, EventKind.LIKE)))
    assert gradient[4] == 0.0


def test_a_target_that_was_seen_before_is_not_left_out() -> None:
    gradient = gradient_of_logits(piece((4, EventKind.LIKE), (5, EventKind.LIKE), (4, EventKind.LIKE)))
    assert gradient[4] < 0.0
    scorer, table = shaken_scorer(model=PLAIN), item_table(PLAIN)
    windows = stack_windows([piece(*[(4, EventKind.LIKE)] * 3)], length=LENGTH, with_targets=True)
    with torch.no_grad():
        assert torch.isfinite(scorer.window_losses(windows, table)).all()


@pytest.mark.parametrize("repeats", [127, 128, 256, 300])
def test_an_item_seen_very_often_is_still_left_out(repeats: int) -> None:
    """Someone who plays one song all day: a small counter would wrap around."""
    model = dataclasses.replace(PLAIN, history=256, whitening=0.5)
    length = repeats + 1
    events = [(4, EventKind.CLICK)] * repeats + [(9, EventKind.CLICK)]
    windows = stack_windows([piece(*events)], length=length, with_targets=True)
    left_out = Scorer._earlier_items(windows, ITEMS)
    assert model.history
    assert bool(left_out[0, repeats - 1, 4])
    assert not bool(left_out[0, repeats - 1, 9])


def test_windows_without_targets_have_no_loss_and_no_gradient() -> None:
    scorer, table = shaken_scorer(), item_table()
    windows = stack_windows(
        [piece((4, EventKind.LIKE)), piece((3, EventKind.SKIP), (2, EventKind.SKIP))],
        length=LENGTH,
        with_targets=True,
    )
    losses = scorer.window_losses(windows, table)
    assert losses.tolist() == [0.0, 0.0]
    losses.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in trainable(scorer).values())


def test_padding_and_neighbours_do_not_change_a_loss() -> None:
    scorer, table, windows = shaken_scorer(), item_table(), random_windows(4, seed=2)
    with torch.no_grad():
        together = scorer.window_losses(windows, table)
        alone = torch.cat([scorer.window_losses(windows.pick(torch.tensor([row])), table) for row in range(4)])
        row = int(windows.real.sum(1).argmin())
        size = int(windows.real[row].sum())
        assert size < LENGTH
        cut = windows.pick(torch.tensor([row])).shorten(size)
        shortened = scorer.window_losses(cut, table)
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(shortened[0], together[row])


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_no_state_looks_ahead(family: str) -> None:
    scorer, table, windows = shaken_scorer(family), item_table(), random_windows(3, seed=1)
    before = scores(scorer, windows, table)
    changed = dataclasses.replace(windows, items=windows.items.clone(), kinds=windows.kinds.clone())
    changed.items[:, 3:] = (changed.items[:, 3:] + 1) % ITEMS
    changed.kinds[:, 3:] = 0
    after = scores(scorer, changed, table)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert not torch.allclose(after[:, 3:], before[:, 3:])


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_training_moves_b_and_a_reloaded_adapter_gives_the_same_scores(family: str) -> None:
    scorer, table, windows = tiny_scorer(family), item_table(), random_windows(5)
    load_parameters(scorer, read_parameters(shaken_scorer(family)))
    start = AdapterState(read_parameters(scorer))
    names = tuple(trainable(scorer))
    step = Step(steps=1, learning_rate=0.1, sample_rate=1.0, noise_multiplier=0.0, clip_norm=1.0, names=names)
    update = train_locally(scorer, windows, table, step=step, seed=0)
    moved = [name for name in names if "lora_B" in name and np.abs(update.arrays[name]).max() > 0]
    assert moved == [name for name in names if "lora_B" in name] != []
    trained = scores(scorer, windows, table)
    reloaded = tiny_scorer(family)
    saved = AdapterState(read_parameters(scorer))
    load_parameters(reloaded, AdapterState.unpack(saved.pack(), start.shapes).arrays)
    np.testing.assert_allclose((start + update).pack(), saved.pack(), atol=1e-6)
    assert torch.equal(scores(reloaded, windows, table), trained)
    assert not torch.equal(scores(shaken_scorer(family), windows, table), trained)


def test_parameter_names_are_stable() -> None:
    """They travel, are saved and are read by peft: a change breaks every stored adapter."""
    query = "base_model.model.encoder.layer.1.attention.self.query"
    assert list(trainable(tiny_scorer(lora=Lora(targets=("q",), blocks=1)))) == [
        f"{query}.lora_A.weight",
        f"{query}.lora_B.weight",
        "beta.weight",
        "gamma.weight",
        "input.attributes.weight",
        "input.gap.weight",
        "input.hour.weight",
        "input.kind.weight",
        "input.low.0.weight",
        "input.low.1.weight",
        "input.value.weight",
        "output.0.bias",
        "output.0.weight",
        "output.1.weight",
    ]
    plain = dataclasses.replace(PLAIN, context=())
    assert list(trainable(tiny_scorer(model=plain, lora=Lora(targets=("q",), blocks=1))))[2:] == [
        "beta.weight",
        "gamma.weight",
        "output.0.weight",
    ]


@pytest.mark.parametrize(("family", "module"), [("gpt2", "c_attn"), ("llama", "q_proj"), ("qwen2", "v_proj")])
@pytest.mark.parametrize(("blocks", "layers"), [(1, {"1"}), (2, {"0", "1"}), (0, {"0", "1"})])
def test_lora_sits_on_the_upper_blocks(family: str, module: str, blocks: int, layers: set[str]) -> None:
    names = [name for name in trainable(tiny_scorer(family, lora=Lora(blocks=blocks))) if "lora" in name]
    assert any(f"{module}.lora_B.weight" in name for name in names)
    assert {part for name in names for part in name.split(".") if part.isdigit()} == layers


def test_the_same_seed_gives_the_same_start_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again = (read_parameters(tiny_scorer()) for _ in range(2))
    assert torch.equal(torch.rand(1), expected)
    assert AdapterState(first) == AdapterState(again)
    other = build_scorer(open_backbone("tiny-bert"), model=RICH, lora=Lora(blocks=0), seed=4)
    assert AdapterState(read_parameters(other)) != AdapterState(first)


def test_parameters_that_do_not_fit_are_refused_and_nothing_is_changed() -> None:
    scorer = shaken_scorer()
    start = AdapterState(read_parameters(scorer))
    missing = dict(list(start.arrays.items())[1:])
    extra = {**start.arrays, "more": np.zeros(1, dtype=np.float32)}
    broadcast = {**start.arrays, "output.1.weight": np.ones((1, 1), dtype=np.float32)}
    for arrays in (missing, extra, broadcast):
        with pytest.raises(AdapterError):
            load_parameters(scorer, {name: array + 1 for name, array in arrays.items()})
        assert AdapterState(read_parameters(scorer)) == start


def test_read_parameters_are_copies() -> None:
    scorer = tiny_scorer()
    read_parameters(scorer)["gamma.weight"][:] = 99.0
    assert float(trainable(scorer)["gamma.weight"].detach()) == 2.0


def test_popularity_of_another_catalogue_is_refused() -> None:
    table = item_table()
    for shape in ((ITEMS - 1,), (1,), (ITEMS, 1)):
        with pytest.raises(AdapterError, match="found popularity of shape"):
            table.set_popularity(np.zeros(shape, dtype=np.float32))
    table.set_popularity(np.arange(ITEMS, dtype=np.float32))
    assert table.rows[:, -1].tolist() == list(range(ITEMS))


def test_the_item_table_has_no_parameters() -> None:
    assert list(item_table().parameters()) == []
    vectors = ItemVectors(*(np.ones((3, 2), dtype=np.float32) for _ in range(4)))
    assert ItemTable(vectors).rows.tolist() == [[1, 1, 1, 1, 0]] * 3


def test_targets_the_family_does_not_have_are_refused() -> None:
    with pytest.raises(BackboneError, match="found LoRA targets"):
        tiny_scorer(lora=Lora(targets=("o",)))
