"""The synthetic world is reproducible, looks like behaviour, and hides something worth learning."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from shared.datasets import inspect, leave_one_out
from shared.errors import ConfigError, DataError
from shared.schema import POSITIVE_KINDS, SEEN_KINDS, EventKind
from simulations.sources import open_source
from simulations.world import World, make_world
from simulations.world_context import BREAK_SECONDS
from simulations.world_text import MODIFIERS, TOPIC_NAMES, TOPICS


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(0)


def is_kind(world: World, kinds: frozenset[EventKind]) -> np.ndarray:
    return np.isin(world.interactions.kind, [int(kind) for kind in kinds])


def hit_rate(world: World, scores: list[np.ndarray]) -> float:
    """HR@10 of the test items, whole catalogue, seen items removed."""
    data, split, seen = world.interactions, leave_one_out(world.interactions), is_kind(world, SEEN_KINDS)
    hits = []
    for user, score in enumerate(scores):
        past = slice(data.offsets[user], split.test[user])
        ranking = score.astype(np.float64)
        ranking[data.item[past][seen[past]]] = -np.inf
        hits.append((ranking > ranking[data.item[split.test[user]]]).sum() < 10)
    return float(np.mean(hits))


def test_same_seed_same_world() -> None:
    one, two, other = (make_world(seed, users=20, items_per_domain=30) for seed in (3, 3, 4))
    for name in ("user", "item", "time", "kind", "offsets"):
        assert np.array_equal(getattr(one.interactions, name), getattr(two.interactions, name))
    assert one.interactions.catalogue == two.interactions.catalogue
    assert np.array_equal(one.true_scores(0, 5), two.true_scores(0, 5))
    assert not np.array_equal(one.next_topic, other.next_topic)


def test_it_looks_like_behaviour(world: World) -> None:
    report = inspect(world.interactions)
    assert (report.users, report.items) == (300, 600)
    assert 40 <= report.events_per_user["median"] <= 80
    assert set(report.kinds) == {"impression", "click", "like", "purchase", "skip"}
    assert 0.65 <= is_kind(world, POSITIVE_KINDS).mean() <= 0.75
    assert report.users_with_ties == 0
    assert report.short_histories == 0
    assert report.first is not None
    assert report.first.startswith("2024-01-01")
    assert report.last is not None
    assert report.last < "2024-06-29"


def test_popularity_has_a_long_tail(world: World) -> None:
    counts = np.sort(np.bincount(world.interactions.item, minlength=600))[::-1]
    assert counts[:60].sum() > 0.25 * counts.sum()
    assert counts[300:].sum() < 0.35 * counts.sum()


def test_an_item_enjoyed_or_skipped_never_comes_again(world: World) -> None:
    data, seen = world.interactions, is_kind(world, SEEN_KINDS)
    for user in range(50):
        rows = data.of(user)
        gone: set[int] = set()
        for item, final in zip(data.item[rows].tolist(), seen[rows], strict=True):
            assert item not in gone
            if final:
                gone.add(item)


def test_catalogue_reads_well(world: World) -> None:
    items = world.interactions.catalogue.items
    assert {item.domain for item in items} == set(TOPICS)
    assert all(len(things.split(", ")) == 8 for topics in TOPICS.values() for things in topics.values())
    assert len(TOPIC_NAMES) == len(set(TOPIC_NAMES)) == 48
    assert len(set(MODIFIERS)) == len(MODIFIERS)
    assert len({item.title for item in items}) == len({item.text for item in items}) == len(items)
    main = world.item_topics.argmax(axis=1)
    assert all(
        TOPIC_NAMES[topic] in item.text.lower() or TOPIC_NAMES[topic] in item.tags
        for item, topic in zip(items, main, strict=True)
    )
    assert all("{" not in item.text for item in items)


def test_titles_stay_distinct_when_words_run_out() -> None:
    items = make_world(0, users=2, items_per_domain=12 * 200).interactions.catalogue.items
    assert len({item.text for item in items}) == len(items)


def test_hidden_structure_is_one_cycle_and_circles_across_domains(world: World) -> None:
    topic, visited = 0, set()
    while topic not in visited:
        visited.add(topic)
        topic = int(world.next_topic[topic])
    assert len(visited) == 48
    assert np.array_equal(world.circles // 12, np.tile(np.arange(4), (12, 1)))
    assert np.allclose(world.taste.sum(axis=2), 1)
    drift = np.abs(world.taste[:, 0] - world.taste[:, -1]).sum(axis=1)
    assert drift.mean() > 0.3


def test_true_scores_are_log_probabilities(world: World) -> None:
    length = int(np.diff(world.interactions.offsets)[0])
    for position in (0, 1, length):
        scores = world.true_scores(0, position)
        assert scores.shape == (600,)
        assert scores.dtype == np.float32
        assert np.exp(scores.astype(np.float64)).sum() == pytest.approx(1, abs=1e-4)
    with pytest.raises(ConfigError, match=f"found {length + 1}"):
        world.true_scores(0, length + 1)


def test_behaviour_tells_more_than_text(world: World) -> None:
    """Topic-to-topic counts from everybody's events beat popularity and similarity of the true topics."""
    data, split = world.interactions, leave_one_out(world.interactions)
    main, enjoyed = world.item_topics.argmax(axis=1), is_kind(world, POSITIVE_KINDS)
    follows = np.full((48, 48), 0.5)
    counts = np.ones(600)
    for user in range(300):
        past = slice(data.offsets[user], split.train_end[user])
        items = data.item[past][enjoyed[past]]
        np.add.at(follows, (main[items[:-1]], main[items[1:]]), 1)
        np.add.at(counts, items, 1)
    within = np.zeros((600, 48))
    within[np.arange(600), main] = counts
    within /= within.sum(axis=0)
    unit = world.item_topics / np.linalg.norm(world.item_topics, axis=1, keepdims=True)
    recent, learned, oracle = [], [], []
    for user in range(300):
        past = slice(data.offsets[user], split.test[user])
        last = data.item[past][enjoyed[past]][-1]
        recent.append(unit @ unit[last] + 0.05 * np.log(counts))
        learned.append(within @ (follows[main[last]] / follows[main[last]].sum()))
        oracle.append(world.true_scores(user, split.test[user] - data.offsets[user]))
    learned_rate = hit_rate(world, learned)
    assert learned_rate > hit_rate(world, [counts] * 300) + 0.15
    assert learned_rate > hit_rate(world, recent) + 0.15
    assert hit_rate(world, oracle) > learned_rate - 0.03


# --- what hours, breaks and values do ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def rich() -> World:
    return make_world(0, context=True)


def followed(world: World, *, before: np.ndarray) -> float:
    """How often an enjoyed event's successor topic comes next, over the events that the mask names."""
    data, main = world.interactions, world.item_topics.argmax(axis=1)
    enjoyed = is_kind(world, POSITIVE_KINDS)
    follows = []
    for user in range(300):
        rows = np.arange(data.offsets[user], data.offsets[user + 1])[enjoyed[data.of(user)]]
        topics = main[data.item[rows]]
        follows.append((world.next_topic[topics[:-1]] == topics[1:])[before[rows[:-1]]])
    return float(np.concatenate(follows).mean())


def gaps_of(world: World) -> np.ndarray:
    data = world.interactions
    return np.concatenate([np.diff(data.time[data.of(user)], prepend=np.nan) for user in range(300)])


def test_the_plain_world_has_no_values(world: World, rich: World) -> None:
    assert np.isnan(world.interactions.value).all()
    stars = rich.interactions.value
    assert np.array_equal(np.isfinite(stars), is_kind(rich, POSITIVE_KINDS))
    assert set(stars[np.isfinite(stars)].tolist()) == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_what_got_a_single_star_does_not_lead_on(rich: World) -> None:
    stars = rich.interactions.value
    assert followed(rich, before=stars >= 2) > followed(rich, before=stars < 2) + 0.1


def test_the_first_thing_after_a_break_leads_nowhere(world: World, rich: World) -> None:
    def difference(some: World) -> float:
        leads = ~(some.interactions.value < 2)
        opening = gaps_of(some) > BREAK_SECONDS
        return followed(some, before=leads & ~opening) - followed(some, before=leads & opening)

    assert difference(rich) > 0.1
    assert difference(world) < 0.05


def test_each_domain_has_its_hour(rich: World) -> None:
    data = rich.interactions
    domains = rich.item_topics.argmax(axis=1)[data.item] // 12
    hours = data.time // 3600 % 24
    assert 0.3 < (hours < 12).mean() < 0.7
    assert (domains[hours < 12] == 3).mean() > (domains[hours >= 12] == 3).mean() + 0.1  # news
    assert (domains[hours < 12] == 0).mean() < (domains[hours >= 18] == 0).mean() - 0.1  # films


def test_the_true_scores_know_of_all_three(rich: World) -> None:
    data, split = rich.interactions, leave_one_out(rich.interactions)
    blind = dataclasses.replace(rich, context=False)
    known, unknown = (
        hit_rate(rich, [some.true_scores(user, split.test[user] - data.offsets[user]) for user in range(300)])
        for some in (rich, blind)
    )
    assert known > unknown + 0.05


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="users: found 0"):
        make_world(users=0)
    with pytest.raises(ConfigError, match="items_per_domain: found 5"):
        make_world(items_per_domain=5)
    with pytest.raises(ConfigError, match="events_per_user: found 1"):
        make_world(events_per_user=1)


def test_open_source_knows_the_world_and_folders(tmp_path: Path) -> None:
    assert open_source("world", seed=1).name == "world"
    assert len(open_source("world", min_item_count=40).catalogue) < 600
    (tmp_path / "items.csv").write_text("item,title\na,Tea\n")
    (tmp_path / "events.csv").write_text("user,item\nu,a\n")
    assert open_source(str(tmp_path)).users == ("u",)
    with pytest.raises(DataError, match="nothing there"):
        open_source(str(tmp_path / "wolrd"))
