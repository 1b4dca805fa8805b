"""The main job: prepare, train through Flower, measure, report."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from client.app import open_virtual_ledger
from client.ranker import recommend
from server.budget import plan_budget
from server.cohorts import participation_cap
from server.prior import FILE
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_adapter, load_arrays, write_json
from shared.config import Config
from shared.metrics import ndcg, paired_bootstrap, summary
from shared.noise import MODES
from shared.prior import PRIOR
from shared.runtime import Runtime, runtime_for
from simulations.engines import run_inline, run_ray
from simulations.evaluation import (
    Alone,
    Ranks,
    rank_by_popularity,
    rank_cases,
    rank_local_only,
    test_cases,
    validation_cases,
    validation_cases_of,
)
from simulations.report import write_report
from simulations.runfolder import RunFolder

#: Local-only training is given the best of these factors on the learning rate, chosen on validation items.
LOCAL_RATE_FACTORS = (1.0, 0.1, 0.01)

Progress = Callable[[str], None]


def train(run: RunFolder) -> float:
    """Run or continue the rounds on the configured engine; seconds it took."""
    started = time.perf_counter()
    engine = {"inline": run_inline, "ray": run_ray}[run.config.federation.engine]
    engine(run.path, devices=run.devices)
    return time.perf_counter() - started


def evaluate(
    run: RunFolder, *, seconds: Mapping[str, float], progress: Progress = lambda stage: None
) -> dict[str, Any]:
    """Measure every ranker on the test items, write result.json, per_user.npz and report.html; the result object.

    `federated` is the trained adapter whether it was shipped or not; `outcome` says which of the two ranks.
    """
    started = time.perf_counter()
    runtime = runtime_for(run.config, run.catalogue)
    adapter, popularity, manifest = load_adapter(run.path / "adapter")
    shipped = AdapterState({**adapter.arrays, POPULARITY: popularity})
    start = AdapterState({**runtime.start.arrays, POPULARITY: popularity})
    cases = test_cases(run)
    seed = run.config.seed
    progress("ranking test items")
    runtime.install(start)
    ranks = {
        "popularity": rank_by_popularity(cases, popularity, seed=seed),
        "zero_shot": rank_cases(runtime, cases, seed=seed, stage="start"),
    }
    runtime.install(AdapterState(load_arrays(run.path / "candidate.safetensors")))
    if run.config.prior.half_lives:
        ranks["prior"] = rank_cases(runtime, cases, seed=seed, stage="prior")
    ranks["federated"] = rank_cases(runtime, cases, seed=seed)
    progress("training some devices alone, to compare")
    alone = _local_only(run, runtime, start, cases, seed=seed)
    progress("drawing the quality curve")
    curve = _curve(run, runtime)
    spent = _spent(run)
    privacy = json.loads((run.path / "adapter" / "privacy.json").read_text(encoding="utf-8"))
    result: dict[str, Any] = {
        "data": run.facts,
        "config": run.config.to_dict(),
        "metrics": {
            **{name: summary(rank.full, rank.sampled) for name, rank in ranks.items()},
            "local_only": None
            if alone is None
            else {**summary(alone[1].full, alone[1].sampled), "users": len(alone[0])},
        },
        "intervals": _intervals(run.config, ranks, alone),
        "outcome": manifest["outcome"],
        "privacy": {**privacy, "spent_max": {unit: max(values, default=0.0) for unit, values in spent.items()}},
        "seconds": {**seconds, "evaluate": round(time.perf_counter() - started, 2)},
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "chaos": _chaos(run.path / "chaos.json"),
        "out": str(run.path),
    }
    runtime.install(shipped)
    examples = _examples(run, runtime)
    _save_per_user(run.path, cases_users=[case.user for case in cases], ranks=ranks, alone=alone)
    rounds = [row for row in run.rows() if row.get("phase") == "train"]
    write_report(run.path / "report.html", result=result, rounds=rounds, curve=curve, spent=spent, examples=examples)
    write_json(run.path / "result.json", result)
    return result


def _local_only(
    run: RunFolder, runtime: Runtime, start: AdapterState, cases: list[Any], *, seed: int
) -> tuple[list[int], Ranks] | None:
    wanted = run.config.evaluation.local_only_users
    if not wanted:
        return None
    chosen = np.sort(np.random.default_rng((seed, 11)).permutation(len(cases))[:wanted]).tolist()
    participations = max(1, participation_cap(run.config.federation, run.devices))
    budget = plan_budget(run.config, run.devices)
    # A device that never sends anything needs no noise at user level.
    noise = budget.event.train if budget and budget.event and not budget.user else 0.0
    devices = [cases[row].user for row in chosen]
    held_out = validation_cases_of(run, devices, limit=len(devices))
    plans = [Alone(start, participations, noise, factor) for factor in LOCAL_RATE_FACTORS]
    quality = [ndcg(rank_local_only(runtime, held_out, alone=plan, seed=seed).full, 10).mean() for plan in plans]
    best = plans[int(np.argmax(quality))]
    return chosen, rank_local_only(runtime, [cases[row] for row in chosen], alone=best, seed=seed)


def _intervals(
    config: Config, ranks: Mapping[str, Ranks], alone: tuple[list[int], Ranks] | None
) -> dict[str, dict[str, float]]:
    """Paired bootstrap intervals of NDCG@10 differences."""
    settings = {"resamples": config.evaluation.bootstrap, "seed": config.seed}
    values = {name: ndcg(rank.full, 10) for name, rank in ranks.items()}
    out = {
        "federated - zero_shot": paired_bootstrap(values["federated"], values["zero_shot"], **settings),
        "federated - popularity": paired_bootstrap(values["federated"], values["popularity"], **settings),
    }
    if "prior" in values:
        out["federated - prior"] = paired_bootstrap(values["federated"], values["prior"], **settings)
    if alone is not None:
        chosen, local = alone
        out["federated - local_only"] = paired_bootstrap(values["federated"][chosen], ndcg(local.full, 10), **settings)
    return out


def _curve(run: RunFolder, runtime: Runtime) -> list[dict[str, Any]]:
    """Quality of the kept adapters on validation items, as only a simulator can see it."""
    cases = validation_cases(run, limit=run.config.evaluation.curve_users)
    priors = run.path / FILE
    prior = {PRIOR: load_arrays(priors)["whole"]} if priors.exists() else {}
    points = []
    for path in sorted((run.path / "rounds").glob("*.safetensors")):
        runtime.install(AdapterState({**load_arrays(path), **prior}))
        rank = rank_cases(runtime, cases, seed=run.config.seed)
        measured = summary(rank.full, rank.sampled)
        points.append({"round": int(path.stem), "ndcg@10": measured["ndcg@10"], "hr@10": measured["hr@10"]})
    return points


def _chaos(path: Path) -> dict[str, Any] | None:
    """What was injected, and what of it was seen; None for a calm run."""
    if not path.exists():
        return None
    account = json.loads(path.read_text(encoding="utf-8"))
    return {name: value for name, value in account.items() if name != "met"}


def _spent(run: RunFolder) -> dict[str, list[float]]:
    """Epsilon each device's own ledger adds up to, by unit; empty without privacy."""
    units = MODES[run.config.privacy.mode]
    if not units:
        return {}
    ledger = open_virtual_ledger(run.path)
    delta = run.config.privacy.delta
    spent = {unit: [ledger.spent(device, unit=unit, delta=delta) for device in range(run.devices)] for unit in units}
    ledger.close()
    return spent


def _examples(run: RunFolder, runtime: Runtime, *, count: int = 4) -> list[dict[str, Any]]:
    store = run.store()
    chosen = np.random.default_rng((run.config.seed, 13)).permutation(run.devices)[:count].tolist()
    examples = []
    for device in chosen:
        history = store.history(device, run.catalogue)
        if len(history):
            examples.append(
                {
                    "user": run.users[device],
                    "history": [run.catalogue.items[item].title for item in history.items[-6:].tolist()],
                    "recommended": [
                        {"title": found.title, "score": found.score, "parts": found.parts}
                        for found in recommend(runtime, history, k=6)
                    ],
                }
            )
    store.close()
    return examples


def _save_per_user(
    folder: Path, *, cases_users: list[int], ranks: Mapping[str, Ranks], alone: tuple[list[int], Ranks] | None
) -> None:
    arrays: dict[str, Any] = {"user": np.array(cases_users)}
    for name, rank in ranks.items():
        arrays[f"{name}_full"], arrays[f"{name}_sampled"] = rank.full, rank.sampled
    if alone is not None:
        arrays["local_only_rows"] = np.array(alone[0])
        arrays["local_only_full"], arrays["local_only_sampled"] = alone[1].full, alone[1].sampled
    with (folder / "per_user.npz").open("wb") as handle:
        np.savez(handle, **arrays)
