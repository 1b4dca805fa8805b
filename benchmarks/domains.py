"""Adapters that move from one catalogue to the next: what they bring, what they forget, what training together gives.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/domains.py real
    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/domains.py world

real: MovieLens 1M, then Amazon Industrial & Scientific, where nothing is a film. world: the four domains of the
synthetic world in turn. All without privacy, and without a prior, since a prior belongs to one catalogue. Prints a
table; the same is in OUT/domains.json. Each stage is a run folder under OUT (runs/domains-NAME unless given); finished
ones are read, an interrupted one is continued. Real data come from HOMERANK_DATA when it is set.

Quality is NDCG@10 on test items, the whole catalogue ranked. Differences are paired by person, with their 95 %
bootstrap interval. What a stage trained is measured and passed on whether its devices would have shipped it or not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_arrays, save_arrays, write_json
from shared.config import Config, override
from shared.metrics import ndcg, paired_bootstrap
from simulations.experiment import evaluate, train
from simulations.runfolder import open_run, prepare

COMMON = (
    "model.directions=backbone",
    "model.context=[]",
    "model.history=32",
    "prior.half_lives=[]",
    "federation.cohort=64",
    "evaluation.local_only_users=0",
    "evaluation.every=0",
    "evaluation.bootstrap=100",
)
#: Settings of each benchmark that all its stages share.
SETTINGS = {
    "real": (*COMMON, "training.window_sample_rate=0.4", "evaluation.test_users=3000", "federation.survey=2000"),
    "world": (
        *COMMON,
        *("data.world_users=1500", "data.world_events=80", "federation.survey=300"),
        *("model.blocks=1", "model.output_dim=64"),
    ),
}
#: Adam moves a parameter by at most the rate a step, so with this it stays within about three steps of its start.
ANCHOR = 0.3
RESAMPLES = 10_000
HEAD = (
    "| stage | measured on | content + popularity | adapter | difference | against | difference | shipped | train s |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Stage:
    """One run. source: `data.source`. domains: of the world. rounds: 0 measures what came before on this catalogue.

    after: the stage whose adapter it starts from. against: the stage whose quality, for the same people, it is compared
    with.
    """

    name: str
    source: str
    rounds: int = 0
    domains: tuple[str, ...] = ()
    after: str = ""
    anchor: float = 0.0
    against: str = ""


def real(rounds: int, few: int) -> list[Stage]:
    """Films, then what carries over to science, and back."""
    root = Path(os.environ.get("HOMERANK_DATA", "../shared/data"))
    films, science = str(root / "ml-1m"), str(root / "amazon-scientific")
    return [
        Stage("films", films, rounds),
        Stage("science-carried", science, after="films"),
        Stage("science-fresh", science, few),
        Stage("science-after", science, few, after="films", against="science-fresh"),
        Stage("films-again", films, after="science-after", against="films"),
        Stage("science-after-anchored", science, few, after="films", anchor=ANCHOR, against="science-fresh"),
        Stage("films-again-anchored", films, after="science-after-anchored", against="films"),
        Stage("together", f"{films},{science}", rounds),
        Stage("films-of-together", films, after="together", against="films"),
        Stage("science-of-together", science, after="together", against="science-fresh"),
    ]


def world(rounds: int, few: int) -> list[Stage]:
    """Films, shop, music and news in turn, with and without an anchor; then all at once."""
    chain = ("films", "shop", "music", "news")
    stages = [Stage("films", "world", rounds, ("films",))]
    stages += [Stage(f"{name}-carried", "world", 0, (name,), after="films") for name in chain[1:]]
    stages += [Stage("shop-fresh", "world", few, ("shop",))]
    for label, anchor in (("", 0.0), ("-anchored", ANCHOR)):
        before = "films"
        for name in chain[1:]:
            against = "shop-fresh" if name == "shop" else ""
            stages.append(Stage(f"{name}{label}", "world", few, (name,), before, anchor, against))
            before = f"{name}{label}"
            again = f"films-after-{before}"
            stages.append(Stage(again, "world", 0, ("films",), after=before, against="films"))
    stages.append(Stage("together", "world", rounds))
    last = {"films": "films", "shop": "shop", "news": "news"}
    stages += [Stage(f"{n}-of-together", "world", 0, (n,), "together", against=last[n]) for n in last]
    return stages


def run(stage: Stage, out: Path, settings: Sequence[str]) -> None:
    """Run a stage to its end, unless that was done before."""
    folder = out / stage.name
    if (folder / "result.json").exists():
        return
    if (folder / "config.toml").exists():
        opened = open_run(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # half prepared
        opened = prepare(config_of(stage, out, settings), folder)
    evaluate(opened, seconds={"train": train(opened)})
    keep_candidate(folder)


def config_of(stage: Stage, out: Path, settings: Sequence[str]) -> Config:
    """The whole configuration of a stage."""
    start = str(out / stage.after / "candidate") if stage.after else ""
    values = {
        "data.source": stage.source,
        "data.domains": stage.domains,
        "federation.rounds": stage.rounds,
        "federation.start_from": start,
        "federation.anchor": stage.anchor,
    }
    return override(Config(), *settings, *(f"{name}={json.dumps(value)}" for name, value in values.items()))


def keep_candidate(folder: Path) -> None:
    """An adapter folder of what was trained, beside the one of what was shipped."""
    shutil.copytree(folder / "adapter", folder / "candidate", dirs_exist_ok=True)
    arrays = load_arrays(folder / "candidate.safetensors")
    lora = AdapterState({name: array for name, array in arrays.items() if ".lora_" in name})
    rest = AdapterState({name: array for name, array in arrays.items() if ".lora_" not in name})
    if POPULARITY not in rest.arrays:
        raise SystemExit(f"{folder}: found no popularity in candidate.safetensors; delete the folder and run again")
    save_arrays(folder / "candidate" / "adapter_model.safetensors", lora.arrays, metadata={"format": "pt"})
    save_arrays(folder / "candidate" / "projections.safetensors", rest.arrays)


def measured(stage: Stage, out: Path) -> dict[str, object]:
    """Means and paired differences of a finished stage."""
    result = json.loads((out / stage.name / "result.json").read_text(encoding="utf-8"))
    users, quality = per_person(out / stage.name)
    row: dict[str, object] = {
        **asdict(stage),
        "data": result["data"],
        "zero_shot": float(quality["zero_shot"].mean()),
        "adapter": float(quality["federated"].mean()),
        "over_zero_shot": _paired(quality["federated"], quality["zero_shot"]),
        "shipped": result["outcome"]["shipped"],
        "train_seconds": result["seconds"]["train"],
    }
    if stage.against:
        others, theirs = per_person(out / stage.against)
        _, mine, yours = np.intersect1d(users, others, return_indices=True)
        row["over_other"] = _paired(quality["federated"][mine], theirs["federated"][yours])
    return row


def per_person(folder: Path) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
    """Names of the people asked (U,), and NDCG@10 of each by ranker."""
    names = np.array(open_run(folder).users)
    with np.load(folder / "per_user.npz", allow_pickle=False) as arrays:
        quality = {ranker: ndcg(arrays[f"{ranker}_full"], 10) for ranker in ("zero_shot", "federated")}
        return names[arrays["user"]], quality


def _paired(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    return paired_bootstrap(first, second, resamples=RESAMPLES, seed=0)


def line(row: Mapping[str, object]) -> str:
    """One line of the table."""
    cells = (
        row["name"],
        ", ".join(row["domains"]) or "+".join(Path(part).name for part in str(row["source"]).split(",")),  # type: ignore[call-overload]
        f"{row['zero_shot']:.4f}",
        f"{row['adapter']:.4f}",
        _interval(row["over_zero_shot"]),
        row["against"],
        _interval(row["over_other"]) if "over_other" in row else "",
        row["shipped"],
        f"{row['train_seconds']:.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _interval(change: object) -> str:
    found = dict(change)  # type: ignore[call-overload]
    return f"{found['difference']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"


def main() -> None:
    """Run what is missing and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=SETTINGS)
    parser.add_argument("--out", type=Path, help="folder of the stages")
    parser.add_argument("--rounds", type=int, default=40, help="on the first catalogue, and together")
    parser.add_argument("--few", type=int, default=15, help="on every further one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for all stages")
    chosen = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    out = (chosen.out or Path("runs") / f"domains-{chosen.name}").resolve()
    settings = [*SETTINGS[chosen.name], *chosen.set]
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}\n\n{HEAD}", flush=True)
    rows = []
    for stage in {"real": real, "world": world}[chosen.name](chosen.rounds, chosen.few):
        run(stage, out, settings)
        rows.append(measured(stage, out))
        print(line(rows[-1]), flush=True)
        write_json(out / "domains.json", {"settings": settings, "anchor": ANCHOR, "stages": rows})


if __name__ == "__main__":
    main()
