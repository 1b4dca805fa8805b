"""What a break, the hour and a value mean in the synthetic world, with `data.world_context`.

1. *break*: the first thing after a break of more than six hours is a look around. It leads nowhere; people go on from
   where they were before;
2. *hour*: each domain has an hour at which it is wanted most, and people come in the morning and in the evening;
3. *value*: what people enjoy they give one to five stars, and a single star does not lead on to another topic.

What kind of event it was matters with or without this: a skip or an impression never leads on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulations.world_text import TOPICS_PER_DOMAIN

BREAK_SECONDS = 6 * 3600.0
#: Hour (UTC) at which each domain is wanted most, in the order of `DOMAINS`: films, shop, music, news.
PEAK_HOURS = (21.0, 13.0, 17.0, 7.0)
#: At its peak a domain is wanted twice as much (e^0.7) as six hours away.
SWING = 0.7
STARS = 5
LEAST_STARS = 2


def leads_on(gap: NDArray[np.float64], stars: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether an enjoyed event decides what is wanted next (n,). gap: seconds since the event before, NaN for none."""
    return (np.nan_to_num(gap) <= BREAK_SECONDS) & (stars >= LEAST_STARS)


def wish_by_hour(wish: NDArray[np.float64], moment: NDArray[np.float64]) -> NDArray[np.float64]:
    """What people want (B, T) at these moments, seconds UTC (B,); rows sum to 1 again."""
    hours = moment[:, None] / 3600 % 24
    domains = np.exp(SWING * np.cos(2 * np.pi * (hours - np.array(PEAK_HOURS)) / 24))  # (B, domains)
    wanted = wish * np.repeat(domains, TOPICS_PER_DOMAIN, axis=1)
    return wanted / wanted.sum(axis=1, keepdims=True)


def draw_stars(count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Stars (count,), 1 to 5, each as likely as another."""
    return rng.integers(1, STARS + 1, count).astype(np.float32)
