"""The quality benchmark from questions to files: prepare, measure each row, compare, write.

OUT/data*/        the prepared run folder, unless a finished run's own is used
OUT/rows/         one folder for each row, kept so that a benchmark can be continued
OUT/result.json  OUT/per_user.npz  OUT/quality.html
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from shared.artifacts import write_atomic
from shared.config import Config, merge
from shared.errors import ConfigError, RunError
from simulations.evaluation import test_cases
from simulations.quality.harness import Job, Measured, measure
from simulations.quality.report import write_page
from simulations.quality.result import benchmark_result
from simulations.quality.rows import Row, rows_with
from simulations.quality.slices import choose_new_items, withhold
from simulations.runfolder import RunFolder, open_run, prepare

Progress = Callable[[str], None]


def prepared(config: Config, out: Path, *, new_items: float = 0.0) -> RunFolder:
    """The run folder of a benchmark in `out`, made now or found there; RunError when it is one of other settings.

    new_items: share of the catalogue that nobody has touched, see `slices.withhold`; 0 withholds nothing.
    """
    whole = _open_or_prepare(config, out / "data")
    if not new_items:
        return whole
    folder = out / f"data-new-items-{new_items:g}"
    if (folder / "config.toml").is_file():
        return open_run(folder)
    return withhold(whole, folder, items=choose_new_items(whole, share=new_items, seed=config.seed))


def opened(finished: Path, *, other_settings: bool) -> RunFolder:
    """A finished run as the folder whose test items are asked; ConfigError when other settings are given beside it."""
    if other_settings:
        raise ConfigError(f"found settings beside {finished}; a run is asked its own questions. Give --data as well")
    return open_run(finished)


def benchmark(
    run: RunFolder,
    out: Path,
    *,
    names: Sequence[str] = (),
    finished: Sequence[Path] = (),
    seeds: Sequence[int] = (0,),
    reference: str | None = None,
    progress: Progress = lambda stage: None,
) -> dict[str, Any]:
    """Measure rows on a run's test items and write everything to `out`; the result object.

    names: rows to measure, all when empty; each finished run adds one. seeds: those a row that depends on chance is
    fitted with; the others take the first. reference: the row that others are compared with, `federated` or else
    the first unless given. Raises ConfigError for an unknown row, and whatever a row raises.
    """
    rows = {name: row for name, row in chosen_rows(names, finished).items() if name in names or row.fits(run.config)}
    base = reference or next((name for name in rows if rows[name].finished), next(iter(rows)))
    if base not in rows:
        raise ConfigError(f"reference: found {base!r}; expected one of the measured rows: {', '.join(rows)}")
    measured: dict[str, list[Measured]] = {}
    for name, row in rows.items():
        measured[name] = []
        for seed in seeds if row.seeded else seeds[:1]:
            progress(f"{name}, seed {seed}" if row.seeded and len(seeds) > 1 else name)
            measured[name].append(measure(Job(run.path, name, tuple(finished), seed, out)))
    progress("comparing")
    result = {**benchmark_result(run, measured, reference=base), "out": str(out)}
    save_per_user(out / "per_user.npz", run, measured)
    write_page(out / "quality.html", result)
    text = json.dumps(result, indent=2, allow_nan=False)  # in order: rows as in the table, groups from least to most
    write_atomic(out / "result.json", text.encode())
    return result


def chosen_rows(names: Sequence[str], finished: Sequence[Path]) -> dict[str, Row]:
    """The rows of those names in the order of the registry, and those of finished runs; all when no name is given."""
    known = rows_with(finished)
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"found row {name!r}; expected one of {', '.join(known)}.{hint}")
    return {name: row for name, row in known.items() if not names or name in names or row.finished}


def save_per_user(path: Path, run: RunFolder, measured: Mapping[str, Sequence[Measured]]) -> None:
    """Ranks and lists of every user by row: what any other statistic can be computed from.

    user, target: int64 (U,). For each row NAME_cases, places (u,) of its users among these, and one line for each
    seed: NAME_full and NAME_sampled, int64 (S, u), NAME_lists, int64 (S, u, K).
    """
    cases = test_cases(run)
    arrays: dict[str, Any] = {
        "user": np.array([case.user for case in cases]),
        "target": np.array([case.target for case in cases]),
    }
    for name, seeds in measured.items():
        arrays[f"{name}_cases"] = seeds[0].cases
        for column in ("full", "sampled", "lists"):
            arrays[f"{name}_{column}"] = np.stack([getattr(one, column) for one in seeds])
    with path.open("wb") as handle:
        np.savez(handle, **arrays)


def _open_or_prepare(config: Config, folder: Path) -> RunFolder:
    """The prepared folder if it is there and of these settings."""
    if not (folder / "config.toml").is_file():
        return prepare(config, folder)
    run = open_run(folder)
    if run.config != merge(config, {"federation": {"minimum_devices": run.devices}}):
        raise RunError(f"{folder}: found a benchmark of other settings; choose another --out, or the same settings")
    return run
