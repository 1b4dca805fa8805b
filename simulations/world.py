"""A small world whose true preferences are known, so that learning can be proven.

What a person likes next has four causes, and text shows only the second:

1. *succession*: after topic a comes topic next(a), a fixed random cycle through all topics of all domains;
2. *staying*: more of the same topic;
3. *tastes*: hidden circles of four topics, one from each domain, that go together for no visible reason.
   A person has several, and their weights drift from period to period;
4. a little of everything, more of what is popular (Zipf).

Exposures come mostly from these wishes and sometimes from the front page (popularity). Each gives one event,
the strongest outcome. An item a person enjoyed or skipped is not shown to them again. `simulations.world_context` adds
what hours, breaks and values do, where that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.datasets import EventColumns, Interactions
from shared.errors import ConfigError
from shared.schema import POSITIVE_KINDS, EventKind
from simulations.world_context import draw_stars, leads_on, wish_by_hour
from simulations.world_text import DOMAINS, TOPIC_NAMES, TOPICS_PER_DOMAIN, write_catalogue

START = 1_704_067_200.0  # 2024-01-01T00:00:00Z
DAY = 86_400.0
PERIODS = 6
PERIOD_SECONDS = 30 * DAY
CIRCLES_PER_USER = 3
MINOR_TOPIC_SHARE = 0.2

NEXT, STAY, TASTE, ANYTHING = 0.42, 0.20, 0.30, 0.08
FRONT_PAGE = 0.15
ZIPF = 0.8
#: An exposure whose preference is this many times the average is enjoyed half of the time.
HALF_LIFT = 0.9

#: Outcomes of an enjoyed exposure in each domain: click, like, purchase.
POSITIVE_OUTCOMES = {
    "films": (0.55, 0.35, 0.10),
    "shop": (0.60, 0.15, 0.25),
    "music": (0.45, 0.50, 0.05),
    "news": (0.85, 0.15, 0.00),
}
SKIP_SHARE = 0.4


@dataclass(frozen=True, eq=False)
class World:
    """Events and the preferences that made them. T topics, U users, I items, P periods.

    item_topics: (I, T) float64, rows sum to 1. popularity: (I,) float64, sums to 1.
    next_topic: (T,) int64, the topic that follows each topic. taste: (U, P, T) float64, rows sum to 1.
    circles: (T / 4, 4) int64, topics that go together. context: whether hours, breaks and values matter.
    """

    interactions: Interactions
    item_topics: NDArray[np.float64]
    popularity: NDArray[np.float64]
    next_topic: NDArray[np.int64]
    circles: NDArray[np.int64]
    taste: NDArray[np.float64]
    context: bool = False

    def true_scores(self, user_index: int, position: int) -> NDArray[np.float32]:
        """Log probability of each item (I,) to be the next one this user enjoys, seen items not left out.

        position: how many of the user's events have happened; it may equal their number. Ranking by these
        scores, seen items removed, is the best any model can do (up to what a skip in between changes).
        ConfigError for a position outside the history.
        """
        rows = self.interactions.of(user_index)
        length = rows.stop - rows.start
        if not 0 <= position <= length:
            raise ConfigError(f"position: found {position}; expected 0 to {length} for user {user_index}")
        moment = self.interactions.time[rows.start + min(position, length - 1)]
        past = slice(rows.start, rows.start + position)
        leading = np.isin(self.interactions.kind[past], [int(kind) for kind in POSITIVE_KINDS])
        if self.context:
            gaps = np.diff(self.interactions.time[past], prepend=np.nan)
            leading &= leads_on(gaps, self.interactions.value[past])
        items = self.interactions.item[past][leading]
        last = np.array([self.item_topics[items[-1]].argmax() if len(items) else -1])
        wish = _wish(last, taste=self.taste[[user_index], _period(moment)], next_topic=self.next_topic)
        if self.context:
            wish = wish_by_hour(wish, np.array([moment]))
        shown, enjoyment = _exposure(wish, item_topics=self.item_topics, popularity=self.popularity)
        odds = (shown * enjoyment)[0]
        return np.log(odds / odds.sum()).astype(np.float32)


def make_world(
    seed: int = 0,
    *,
    users: int = 300,
    items_per_domain: int = 150,
    events_per_user: int = 60,
    context: bool = False,
) -> World:
    """Draw a world; the same arguments give the same world. context: let hours, breaks and values matter.

    events_per_user is the median; lengths are log-normal, at least 8 and at most half of all items. Times are
    whole seconds UTC in the first 180 days of 2024. Raises ConfigError for fewer than 1 user, 24 items in a
    domain or 8 events.
    """
    limits = (
        ("users", users, 1),
        ("items_per_domain", items_per_domain, 24),
        ("events_per_user", events_per_user, 8),
    )
    for name, found, least in limits:
        if found < least:
            raise ConfigError(f"{name}: found {found}; expected {least} or more")
    rng = np.random.default_rng(seed)
    topics = len(TOPIC_NAMES)
    main, second = _draw_item_topics(items_per_domain, rng)
    item_topics = np.zeros((len(main), topics))
    item_topics[np.arange(len(main)), main] = 1 - MINOR_TOPIC_SHARE
    item_topics[np.arange(len(main)), second] += MINOR_TOPIC_SHARE
    popularity = rng.permutation((1.0 + np.arange(len(main))) ** -ZIPF)
    cycle = rng.permutation(topics)
    next_topic = np.empty(topics, dtype=np.int64)
    next_topic[cycle] = np.roll(cycle, -1)
    circles = np.stack(
        [start + rng.permutation(TOPICS_PER_DOMAIN) for start in range(0, topics, TOPICS_PER_DOMAIN)], axis=1
    )
    # a person who has seen half of everything has no preferences left to learn
    longest = max(8, len(main) // 2)
    lengths = np.clip(rng.lognormal(np.log(events_per_user), 0.35, users), 8, longest).astype(np.int64)
    world = _Draft(
        item_topics=item_topics,
        popularity=popularity / popularity.sum(),
        next_topic=next_topic,
        taste=_draw_tastes(users, circles=circles, rng=rng),
        context=context,
    )
    times = _draw_times(lengths, rng, habits=context)
    events = _live(world, times=times, lengths=lengths, rng=rng)
    interactions = Interactions.from_events(
        "world",
        users=[f"person-{index:05d}" for index in range(users)],
        catalogue=write_catalogue(main, second=second, rng=rng),
        events=events,
    )
    return World(
        interactions=interactions,
        item_topics=item_topics,
        popularity=world.popularity,
        next_topic=next_topic,
        circles=circles,
        taste=world.taste,
        context=context,
    )


@dataclass(frozen=True, eq=False)
class _Draft:
    """The preferences before anyone has lived by them; fields as in World."""

    item_topics: NDArray[np.float64]
    popularity: NDArray[np.float64]
    next_topic: NDArray[np.int64]
    taste: NDArray[np.float64]
    context: bool


def _draw_item_topics(items_per_domain: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Main and minor topic of each item (I,), domain by domain, topics evenly filled."""
    within = np.arange(items_per_domain) % TOPICS_PER_DOMAIN
    starts = np.repeat(np.arange(len(DOMAINS)) * TOPICS_PER_DOMAIN, items_per_domain)
    main = np.concatenate([rng.permutation(within) for _ in DOMAINS])
    minor = (main + rng.integers(1, TOPICS_PER_DOMAIN, len(main))) % TOPICS_PER_DOMAIN
    return starts + main, starts + minor


def _draw_tastes(users: int, *, circles: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Taste over topics (U, P, T): a few circles each, their weights drifting, sometimes one replaced."""
    taste = np.zeros((users, PERIODS, circles.size))
    for user in range(users):
        mine = rng.choice(len(circles), CIRCLES_PER_USER, replace=False)
        weight = rng.normal(0.0, 0.7, CIRCLES_PER_USER)
        for period in range(PERIODS):
            share = np.exp(weight) / np.exp(weight).sum()
            for circle, part in zip(mine, share, strict=True):
                taste[user, period, circles[circle]] = part / circles.shape[1]
            weight = weight + rng.normal(0.0, 0.4, CIRCLES_PER_USER)
            if rng.random() < 0.15:
                outside = np.setdiff1d(np.arange(len(circles)), mine)
                mine[rng.integers(CIRCLES_PER_USER)] = rng.choice(outside)
    return taste


def _draw_times(lengths: NDArray[np.int64], rng: np.random.Generator, *, habits: bool) -> NDArray[np.float64]:
    """Event times (U, longest), inf after the last: sessions on random days, minutes inside them.

    habits: sessions are half as long, and every second one is twelve hours earlier.
    """
    times = np.full((len(lengths), int(lengths.max())), np.inf)
    for user, length in enumerate(lengths):
        favourite_hour = rng.normal(19.0, 2.0)
        sessions = max(1, int(length) // (4 if habits else 6))
        days = np.sort(rng.integers(0, int(PERIODS * PERIOD_SECONDS / DAY) - 1, sessions))
        starts = days * DAY + np.clip(rng.normal(favourite_hour, 1.5, sessions), 0, 22) * 3600
        if habits:
            starts -= DAY / 2 * (rng.integers(0, 2, sessions) * (starts % DAY >= DAY / 2))
        mine = np.sort(starts[rng.integers(0, sessions, length)] + rng.exponential(900.0, length))
        # at least 5 s apart, so that order never hangs on a tie
        steps = 5.0 * np.arange(length)
        times[user, :length] = START + np.floor(np.maximum.accumulate(mine - steps) + steps)
    return times


def _live(
    world: _Draft, *, times: NDArray[np.float64], lengths: NDArray[np.int64], rng: np.random.Generator
) -> EventColumns:
    """All people take their next step together; those whose history is complete stand still."""
    users, longest = times.shape
    main_topic = world.item_topics.argmax(axis=1)
    outcomes = np.cumsum([POSITIVE_OUTCOMES[DOMAINS[topic // TOPICS_PER_DOMAIN]] for topic in main_topic], axis=1)
    fresh = np.ones((users, len(main_topic)), dtype=np.bool_)
    last = np.full(users, -1)
    item = np.zeros((users, longest), dtype=np.int32)
    kind = np.zeros((users, longest), dtype=np.uint8)
    value = np.full((users, longest), np.nan, dtype=np.float32)
    for step in range(longest):
        alive = np.flatnonzero(step < lengths)
        taste = world.taste[alive, _period(times[alive, step])]  # (alive, T)
        wish = _wish(last[alive], taste=taste, next_topic=world.next_topic)
        if world.context:
            wish = wish_by_hour(wish, times[alive, step])
        shown, enjoyment = _exposure(wish, item_topics=world.item_topics, popularity=world.popularity)
        chosen = _draw_rows(shown * fresh[alive], rng)
        luck, outcome = rng.random((2, len(alive)))
        enjoyed = luck < enjoyment[np.arange(len(alive)), chosen]
        better = (outcome[:, None] >= outcomes[chosen]).sum(axis=1)  # 0 click, 1 like, 2 purchase
        worse = np.where(outcome < SKIP_SHARE, EventKind.SKIP, EventKind.IMPRESSION)
        item[alive, step] = chosen
        kind[alive, step] = np.where(enjoyed, EventKind.CLICK + np.minimum(better, 2), worse)
        leading = enjoyed
        if world.context:
            value[alive, step] = np.where(enjoyed, draw_stars(len(alive), rng), np.nan)
            gap = times[alive, step] - times[alive, step - 1] if step else np.zeros(len(alive))
            leading = enjoyed & leads_on(gap, value[alive, step])
        last[alive] = np.where(leading, main_topic[chosen], last[alive])
        fresh[alive, chosen] = kind[alive, step] == EventKind.IMPRESSION
    happened = np.arange(longest) < lengths[:, None]
    return EventColumns(
        user=np.repeat(np.arange(users, dtype=np.int32), lengths),
        item=item[happened],
        time=times[happened],
        kind=kind[happened],
        value=value[happened],
    )


def _period(moment: NDArray[np.float64] | np.float64) -> NDArray[np.int64]:
    return np.clip((np.asarray(moment) - START) // PERIOD_SECONDS, 0, PERIODS - 1).astype(np.int64)


def _wish(last: NDArray[np.int64], *, taste: NDArray[np.float64], next_topic: NDArray[np.int64]) -> NDArray[np.float64]:
    """What people want next over topics (B, T), rows sum to 1. last: the topic enjoyed last (B,), or -1."""
    wish = TASTE * taste + ANYTHING / taste.shape[1]
    known = np.flatnonzero(last >= 0)
    wish[known, next_topic[last[known]]] += NEXT
    wish[known, last[known]] += STAY
    return wish / wish.sum(axis=1, keepdims=True)


def _exposure(
    wish: NDArray[np.float64], *, item_topics: NDArray[np.float64], popularity: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How likely each item is to be shown (B, I), rows sum to 1, and to be enjoyed when shown (B, I)."""
    share = item_topics * popularity[:, None]
    share = share / share.sum(axis=0)  # (I, T): within a topic, the popular items first
    wanted = wish @ share.T  # (B, I)
    lift = wish @ item_topics.T * wish.shape[1]  # 1 for somebody who wants everything equally
    return (1 - FRONT_PAGE) * wanted + FRONT_PAGE * popularity, lift / (lift + HALF_LIFT)


def _draw_rows(weight: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """One column index for each row (B,), with probability proportional to its weight."""
    edges = np.cumsum(weight, axis=1)
    luck = rng.random(len(weight)) * edges[:, -1]
    return (edges <= luck[:, None]).sum(axis=1)
