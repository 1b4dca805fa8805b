"""Whom a ranker serves: groups of people and of targets, newcomers, and items that nobody has touched."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from client.store import Role, Row, Store, known
from shared.artifacts import write_json
from shared.datasets.attributes import Attributes
from shared.errors import ConfigError, RunError
from shared.metrics import bootstrap_interval
from shared.transfer import FOLDER as START
from simulations.evaluation import Case
from simulations.quality.measures import Touched
from simulations.runfolder import RunFolder, open_run

#: Group -> which of the cases are in it, bool (U,).
Groups = Mapping[str, NDArray[np.bool_]]

#: Newest events that a newcomer's device is left with.
COLD_EVENTS = (0, 1, 3, 10)
#: A group of fewer people is reported and does not count for a gap: its mean is mostly luck.
SMALLEST_GROUP = 20


# --- groups ------------------------------------------------------------------------------------------------


def slices_of(
    cases: Sequence[Case], *, touched: Touched, users: Sequence[str], attributes: Attributes
) -> dict[str, Groups]:
    """Slice -> groups: activity, target item, and each attribute the source gives its users. No group is empty.

    activity: fifths of the people by number of training events, least active first; people with equally many stay
    together. target: in the popular fifth of the catalogue or in its tail. users: names by device number.
    """
    counts = np.array([int((case.history.roles == Role.TRAIN).sum()) for case in cases])
    fifth = np.searchsorted(np.quantile(counts, [0.2, 0.4, 0.6, 0.8]), counts, side="left")
    tail = touched.tail[[case.target for case in cases]]
    found: dict[str, Groups] = {
        "activity": {_span(counts[fifth == number]): fifth == number for number in np.unique(fifth)},
        "target": {"popular item": ~tail, "tail item": tail},
    }
    for name, group_of in attributes.items():
        groups = np.array([group_of.get(users[case.user], "not given") for case in cases])
        found[name] = {str(group): groups == group for group in np.unique(groups)}
    return {name: {label: mask for label, mask in groups.items() if mask.any()} for name, groups in found.items()}


def by_group(values: ArrayLike, groups: Groups, *, resamples: int, seed: int) -> dict[str, dict[str, float]]:
    """Group -> users, mean, and low and high of its 95 % bootstrap interval. values: per case, (U,)."""
    numbers = np.asarray(values, dtype=np.float64)
    table = {}
    for label, mask in groups.items():
        low, high = bootstrap_interval(numbers[mask], resamples=resamples, seed=seed)
        table[label] = {"users": int(mask.sum()), "mean": float(numbers[mask].mean()), "low": low, "high": high}
    return table


def gap(table: Mapping[str, Mapping[str, float]]) -> float | None:
    """Best minus worst group mean among groups of at least `SMALLEST_GROUP` people; None with fewer than two.

    Chance alone makes it positive, the more the smaller the groups; the intervals of `by_group` say how much.
    """
    means = [row["mean"] for row in table.values() if row["users"] >= SMALLEST_GROUP]
    return max(means) - min(means) if len(means) > 1 else None


def _span(counts: NDArray[np.int64]) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low} to {high} events" if high > low else f"{low} events"


# --- cold start --------------------------------------------------------------------------------------------


def cut(cases: Sequence[Case], events: int) -> list[Case]:
    """The same questions to devices that know only the newest `events` events before the target.

    Only items in what is left count as seen, since such a device knows of no others: what the person met before the
    cut competes with the target, for every ranker alike. The target never lies before itself, so it always competes.
    The 99 negatives are those of the uncut case and hold no training item.
    """
    return [replace(case, history=case.history[max(0, len(case.history) - events) :]) for case in cases]


# --- new items ---------------------------------------------------------------------------------------------


def choose_new_items(run: RunFolder, *, share: float, seed: int) -> NDArray[np.int64]:
    """A random share of the catalogue to treat as new, sorted int64; at least one item. ConfigError outside (0, 1)."""
    if not 0 < share < 1:
        raise ConfigError(f"new items: found a share of {share}; expected more than 0 and less than 1")
    count = max(1, round(share * len(run.catalogue)))
    order = np.random.default_rng((seed, 17)).permutation(len(run.catalogue))
    return np.sort(order[:count]).astype(np.int64)


def withhold(run: RunFolder, folder: Path, *, items: NDArray[np.int64]) -> RunFolder:
    """Write a prepared run folder in which nobody has ever touched `items`, asked only about targets among them.

    Events on them are gone from every device, whatever their role, so that no way of training sees one, federated
    training included. The items stay in the catalogue and compete; targets that are not among them are dropped.
    Another withheld item that a person had met is not known as seen and competes too. Any ranking that knows
    popularity puts all of them behind the others, so they are also ranked among themselves (as by Volkovs, Yu &
    Poutanen, NIPS 2017). RunError when `folder` is not empty or no target is left.
    """
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not an empty folder; choose another one")
    test = np.where(np.isin(run.test, items), run.test, -1)
    if not (test >= 0).any():
        raise RunError(f"found no test item among {len(items)} withheld ones; withhold a larger share")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.path / "items.jsonl", folder / "items.jsonl")
    store = Store(folder / "devices.sqlite", durable=False)
    store.replace(_rows_without(run, items))
    with closing(run.store()) as whole:
        store.set_attributes(whole.attributes())
    facts = {**run.facts, "events": store.count(), "evaluated": int((test >= 0).sum()), "withheld_items": len(items)}
    store.close()
    with (folder / "targets.npz").open("wb") as handle:
        np.savez(handle, test=test, withheld=items)
    write_json(folder / "data.json", {**facts, "user_names": list(run.users)})
    if (run.path / START).is_dir():
        shutil.copytree(run.path / START, folder / START)
    shutil.copyfile(run.path / "config.toml", folder / "config.toml")  # last: its presence means the folder is whole
    return open_run(folder)


def withheld_items(run: RunFolder) -> NDArray[np.int64]:
    """The items that `withhold` took from everybody, int64; none for any other run."""
    with np.load(run.path / "targets.npz", allow_pickle=False) as arrays:
        return arrays["withheld"] if "withheld" in arrays else np.zeros(0, dtype=np.int64)


def _rows_without(run: RunFolder, items: NDArray[np.int64]) -> Iterator[Row]:
    """The events of all devices that are on other items, counted anew from 0."""
    ids = [item.id for item in run.catalogue.items]
    store = run.store()
    for device in range(run.devices):
        history = store.history(device, run.catalogue)
        kept = history[~np.isin(history.items, items)]
        columns: Any = zip(kept.items, kept.times, kept.kinds, kept.roles, kept.values, strict=True)
        for seq, (item, time, kind, role, value) in enumerate(columns):
            yield device, seq, ids[item], known(time), int(kind), int(role), known(value)
    store.close()
