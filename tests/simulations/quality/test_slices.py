"""Groups of people, newcomers, and items that nobody has touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.store import History, Role
from shared.artifacts import load_adapter
from shared.errors import ConfigError, RunError
from simulations import evaluation
from simulations.engines import run_inline
from simulations.evaluation import Case
from simulations.quality.base import training_of
from simulations.quality.measures import Touched
from simulations.quality.slices import by_group, choose_new_items, cut, gap, slices_of, withheld_items, withhold
from simulations.runfolder import RunFolder, prepare
from tests.simulations.tiny_runs import ITEMS, tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> RunFolder:
    """A prepared folder; nothing is trained. Tests only read it."""
    return prepare(tiny_config(tiny_data), tmp_path_factory.mktemp("slices") / "run")


def case(user: int, *, events: int, target: int) -> Case:
    """`events` training events on items 10, 11, ..., then a validation event on item 5."""
    items = np.array([*range(10, 10 + events), 5])
    roles = np.array([Role.TRAIN] * events + [Role.VALIDATE])
    unknown = np.full(events + 1, np.nan)
    return Case(user, History(items, unknown, np.ones(events + 1, dtype=np.int64), roles, unknown), target, items)


# --- groups ------------------------------------------------------------------------------------------------

#: The fifth of ten items that is popular: 0 and 1.
TOUCHED = Touched(np.array([9, 8, 1, 1, 1, 1, 1, 1, 1, 0]), devices=10)


def test_people_are_grouped_by_training_events_and_equals_stay_together() -> None:
    cases = [case(user, events=events, target=0) for user, events in enumerate([3, 3, 3, 4, 5, 6, 7, 8, 9, 30])]
    activity = slices_of(cases, touched=TOUCHED, users=["u"] * 10, attributes={})["activity"]
    found = {label: np.flatnonzero(mask).tolist() for label, mask in activity.items()}
    # edges of the fifths: 3, 4.6, 6.4, 8.2
    assert found == {
        "3 events": [0, 1, 2],
        "4 events": [3],
        "5 to 6 events": [4, 5],
        "7 to 8 events": [6, 7],
        "9 to 30 events": [8, 9],
    }


def test_targets_are_popular_or_in_the_tail() -> None:
    cases = [case(user, events=2, target=target) for user, target in enumerate([1, 9, 0])]
    found = slices_of(cases, touched=TOUCHED, users=["u"] * 3, attributes={})["target"]
    assert {label: mask.tolist() for label, mask in found.items()} == {
        "popular item": [True, False, True],
        "tail item": [False, True, False],
    }


def test_people_are_grouped_by_what_their_source_says_about_them() -> None:
    cases = [case(user, events=2, target=0) for user in (2, 0, 1)]
    found = slices_of(cases, touched=TOUCHED, users=["a", "b", "c"], attributes={"age": {"a": "old", "c": "young"}})
    assert {label: mask.tolist() for label, mask in found["age"].items()} == {
        "not given": [False, False, True],
        "old": [False, True, False],
        "young": [True, False, False],
    }
    assert list(found["target"]) == ["popular item"]  # no empty group


def test_a_gap_is_between_groups_that_are_large_enough() -> None:
    values = np.repeat([0.5, 0.2, 1.0], [30, 20, 19])
    masks = {name: np.repeat([0, 1, 2], [30, 20, 19]) == number for number, name in enumerate("abc")}
    table = by_group(values, masks, resamples=50, seed=0)
    assert {name: (row["users"], row["mean"]) for name, row in table.items()} == {
        "a": (30, 0.5),
        "b": (20, pytest.approx(0.2)),
        "c": (19, 1.0),
    }
    assert all(row["low"] <= row["mean"] + 1e-9 and row["mean"] <= row["high"] + 1e-9 for row in table.values())
    assert gap(table) == pytest.approx(0.3)
    assert gap({"a": table["a"], "c": table["c"]}) is None


def test_the_interval_of_a_group_is_over_its_own_users() -> None:
    values = np.array([0.0] * 10 + [0.0, 1.0] * 10)
    masks = {"flat": np.arange(30) < 10, "mixed": np.arange(30) >= 10}
    table = by_group(values, masks, resamples=200, seed=1)
    assert table["flat"]["low"] == table["flat"]["high"] == 0.0
    assert 0.2 < table["mixed"]["low"] < 0.5 < table["mixed"]["high"] < 0.8


# --- cold start --------------------------------------------------------------------------------------------


def test_a_newcomer_knows_the_newest_events_only() -> None:
    whole = case(3, events=4, target=7)
    assert [cut([whole], events)[0].history.items.tolist() for events in (0, 1, 3, 10)] == [
        [],
        [5],
        [12, 13, 5],
        [10, 11, 12, 13, 5],
    ]
    left = cut([whole], 1)[0]
    assert (left.user, left.target) == (3, 7)
    assert left.training_items is whole.training_items
    assert len(whole.history) == 5


def test_what_a_newcomer_no_longer_knows_as_seen_competes() -> None:
    cases = [case(0, events=3, target=0)]
    scores = np.linspace(1, 0, 20)[::-1].astype(np.float32)  # item 19 first, 0 last
    whole = evaluation.ranks_of(cases, [scores], seed=0).full
    cold = evaluation.ranks_of(cut(cases, 1), [scores], seed=0).full
    assert whole.tolist() == [20 - 4]  # 10, 11, 12 and 5 are seen
    assert cold.tolist() == [20 - 1]


# --- new items ---------------------------------------------------------------------------------------------


def test_a_share_of_the_items_is_drawn_once_each(run: RunFolder) -> None:
    items = choose_new_items(run, share=0.1, seed=3)
    assert len(items) == len(set(items.tolist())) == round(0.1 * ITEMS)
    assert items.tolist() == sorted(items.tolist()) == choose_new_items(run, share=0.1, seed=3).tolist()
    assert items.tolist() != choose_new_items(run, share=0.1, seed=4).tolist()
    assert len(choose_new_items(run, share=0.001, seed=0)) == 1
    for share in (0.0, 1.0, -0.5):
        with pytest.raises(ConfigError, match="more than 0 and less than 1"):
            choose_new_items(run, share=share, seed=0)


def test_nobody_has_touched_a_withheld_item_and_only_they_are_asked_for(run: RunFolder, tmp_path: Path) -> None:
    items = choose_new_items(run, share=0.4, seed=1)
    later = withhold(run, tmp_path / "new", items=items)
    assert later.catalogue.fingerprint == run.catalogue.fingerprint
    assert later.config == run.config
    assert later.users == run.users
    kept = np.isin(run.test, items)
    assert 0 < kept.sum() < run.devices
    np.testing.assert_array_equal(later.test, np.where(kept, run.test, -1))
    before, after = run.store(), later.store()
    for device in range(run.devices):
        whole, left = before.history(device, run.catalogue), after.history(device, run.catalogue)
        others = whole[~np.isin(whole.items, items)]
        for column in ("items", "times", "kinds", "roles"):
            np.testing.assert_array_equal(getattr(left, column), getattr(others, column))
        assert len(left) < len(whole) or not np.isin(whole.items, items).any()
    before.close()
    after.close()
    cases = evaluation.test_cases(later)
    assert {case.user: case.target for case in cases} == {user: run.test[user] for user in np.flatnonzero(kept)}
    training = training_of(later, validation=evaluation.validation_cases(later, limit=99))
    assert not np.isin(np.concatenate([history.items for history in training.histories]), items).any()
    assert not np.isin([case.target for case in training.validation], items).any()
    assert later.facts["withheld_items"] == len(items)
    assert later.facts["evaluated"] == len(cases)
    assert withheld_items(later).tolist() == items.tolist()
    assert withheld_items(run).tolist() == []


def test_a_federation_trains_without_the_withheld_items(run: RunFolder, tmp_path: Path) -> None:
    items = choose_new_items(run, share=0.4, seed=1)
    later = withhold(run, tmp_path / "new", items=items)
    run_inline(later.path, devices=later.devices)
    _, popularity, _ = load_adapter(later.path / "adapter")
    np.testing.assert_allclose(popularity[items], popularity.min())  # a count of 0


def test_a_split_without_an_answer_is_refused(run: RunFolder, tmp_path: Path) -> None:
    untested = np.setdiff1d(np.arange(ITEMS), run.test)[:3]
    with pytest.raises(RunError, match="withhold a larger share"):
        withhold(run, tmp_path / "new", items=untested)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    with pytest.raises(RunError, match="not an empty folder"):
        withhold(run, tmp_path / "full", items=run.test[:1])
