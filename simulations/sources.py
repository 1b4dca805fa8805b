"""Where a simulation's behaviour comes from: the embedded world, a folder, or several of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from shared.catalogue import Catalogue
from shared.config import Config
from shared.datasets import EventColumns, Interactions, load_data
from shared.datasets.attributes import Attributes, read_attributes
from shared.errors import DataError

WORLD = "world"
#: Between the name of a source and an id of its own, where several are put together.
MARK = ":"


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

    Several with commas between become one, see `side_by_side`. min_item_count: drop items with fewer events than this;
    0 keeps all. world_users, world_events: size of the world, the second being the median per user. world_context: let
    breaks, hours and values matter in it. Raises DataError for a bad folder.
    """
    parts = [
        _world(seed, users=world_users, events=world_events, context=world_context)
        if part == WORLD
        else load_data(part)
        for part in parts_of(source)
    ]
    whole = parts[0] if len(parts) == 1 else side_by_side(parts, names=[_name(part) for part in parts_of(source)])
    return whole.with_min_item_count(min_item_count)


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
    ).with_domains(data.domains)


def attributes_of(config: Config) -> Attributes:
    """What the sources of a configuration say about their people; the world says nothing."""
    parts = [part for part in parts_of(config.data.source) if part != WORLD]
    if len(parts_of(config.data.source)) == 1:
        return read_attributes(parts[0]) if parts else {}
    found: dict[str, dict[str, str]] = {}
    for part in parts:
        prefix = _name(part) + MARK
        for attribute, of in read_attributes(part).items():
            found.setdefault(attribute, {}).update({prefix + user: group for user, group in of.items()})
    return found


def parts_of(source: str) -> list[str]:
    """The sources that `data.source` names; a folder whose name holds a comma is one of them."""
    if "," not in source or Path(source).expanduser().is_dir():
        return [source]
    return [part.strip() for part in source.split(",") if part.strip()]


def side_by_side(parts: Sequence[Interactions], *, names: Sequence[str]) -> Interactions:
    """Several sources as one: one catalogue with the items of all, and everybody who is in one of them.

    Ids of items and users begin with their source's name, so that nobody and nothing is taken for another's. An item
    that names no domain is of its source's. Where one source has no times, only the order of all is kept. Raises
    DataError for two sources of one name.
    """
    if len(set(names)) < len(names):
        raise DataError(f"data.source: found the names {', '.join(names)}; expected different ones. Rename a folder")
    items = np.cumsum([0, *(len(part.catalogue) for part in parts)])
    users = np.cumsum([0, *(len(part.users) for part in parts)])
    named = list(zip(names, parts, strict=True))
    time = np.concatenate([part.time for part in parts])
    return Interactions.from_events(
        "+".join(names),
        users=[f"{name}{MARK}{user}" for name, part in named for user in part.users],
        catalogue=Catalogue(
            tuple(
                replace(item, id=f"{name}{MARK}{item.id}", domain=item.domain or name)
                for name, part in named
                for item in part.catalogue.items
            )
        ),
        events=EventColumns(
            user=np.concatenate([part.user + users[place] for place, part in enumerate(parts)]).astype(np.int32),
            item=np.concatenate([part.item + items[place] for place, part in enumerate(parts)]).astype(np.int32),
            time=time if all(part.has_times for part in parts) else np.full(len(time), np.nan),
            kind=np.concatenate([part.kind for part in parts]),
            value=np.concatenate([part.value for part in parts]),
        ),
    )


def _name(part: str) -> str:
    return part if part == WORLD else Path(part).expanduser().resolve().name


def _world(seed: int, *, users: int, events: int, context: bool) -> Interactions:
    from simulations.world import make_world

    return make_world(seed, users=users, events_per_user=events, context=context).interactions
