"""Where a simulation's behaviour comes from: the embedded world, or a folder."""

from __future__ import annotations

from shared.config import Config
from shared.datasets import Interactions, load_data


def open_source(
    source: str,
    *,
    seed: int = 0,
    min_item_count: int = 0,
    world_users: int = 300,
    world_events: int = 60,
    world_context: bool = False,
) -> Interactions:
    """`world` is the synthetic world drawn from `seed`; anything else is a folder as in `docs/data.md`.

    min_item_count: drop items with fewer events than this; 0 keeps all. world_users, world_events: size of the
    world, the second being the median per user. world_context: let breaks, hours and values matter in it. Raises
    DataError for a bad folder.
    """
    if source == "world":
        from simulations.world import make_world

        world = make_world(seed, users=world_users, events_per_user=world_events, context=world_context)
        return world.interactions.with_min_item_count(min_item_count)
    return load_data(source, min_item_count=min_item_count)


def source_of(config: Config) -> Interactions:
    """The behaviour that a configuration names."""
    data = config.data
    return open_source(
        data.source,
        seed=config.seed,
        min_item_count=data.min_item_count,
        world_users=data.world_users,
        world_events=data.world_events,
        world_context=data.world_context,
    )
