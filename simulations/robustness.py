"""What hostile devices achieve and what the robust rules leave of it: one run per attack and defence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp

from client.app import app as honest_app
from client.samples import seen_items
from shared.adapter import AdapterState
from shared.artifacts import load_arrays
from shared.config import Config, merge
from shared.errors import ConfigError
from shared.metrics import summary
from shared.runtime import runtime_for
from simulations.attackers import Attack, HostileApp, choose_hostile, choose_target, item_counts
from simulations.engines import serve_inline
from simulations.evaluation import rank_cases, test_cases
from simulations.runfolder import RunFolder, prepare

#: Attacks by the name in the table: settings of Attack, None for no attack.
ATTACKS: Mapping[str, Mapping[str, Any] | None] = {
    "none": None,
    "promote": {"kind": "promote"},
    "promote x10": {"kind": "promote", "boost": 10.0},
    "promote x10 + count": {"kind": "promote", "boost": 10.0, "count": True},
    "sign-flip x10": {"kind": "sign-flip", "boost": 10.0},
    "noise x10": {"kind": "noise", "boost": 10.0},
}
#: Defences by the name in the table: values of federation.robust.
DEFENCES: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "norm-filter": ("norm-filter",),
    "median": ("median",),
    "trimmed-mean": ("trimmed-mean",),
    "multi-krum": ("multi-krum",),
    "norm-filter + median": ("norm-filter", "median"),
}


@dataclass(frozen=True)
class Outcome:
    """One line of the table, measured on the honest users only.

    exposure: share of the users who have not met the target to whom it is shown among the first 10. target_rank:
    its mean rank for them. ndcg: NDCG@10 on their test items.
    """

    attack: str
    defence: str
    exposure: float
    target_rank: float
    ndcg: float


def robustness_table(
    config: Config,
    folder: Path,
    *,
    share: float,
    attacks: Sequence[str] = tuple(ATTACKS),
    defences: Sequence[str] = tuple(DEFENCES),
    progress: Callable[[str], None] = lambda stage: None,
) -> Iterator[Outcome]:
    """Train once per attack and defence, each in a folder of its own under `folder`; outcomes as they are reached.

    share: hostile part of the devices, the same devices in every run. Cohorts are draws and may hold more of them:
    federation.robust_share should leave room. All runs share seed, data, cohorts and target, so lines compare.
    Raises ConfigError for an unknown attack or defence.
    """
    for name, known in (*((name, ATTACKS) for name in attacks), *((name, DEFENCES) for name in defences)):
        if name not in known:
            raise ConfigError(f"found {name!r}; expected one of {', '.join(known)}")
    for attack in attacks:
        for defence in defences:
            progress(f"attack {attack}, defence {defence}")
            settled = merge(config, {"federation": {"robust": list(DEFENCES[defence])}})
            run = prepare(settled, folder / f"{attack} against {defence}".replace(" ", "-"))
            hostile = choose_hostile(run.devices, share=share, seed=config.seed)
            target = choose_target(item_counts(run), seed=config.seed)
            chosen = ATTACKS[attack]
            train_under_attack(run, Attack(target=target, devices=hostile, **chosen) if chosen else None)
            yield Outcome(attack, defence, **measure(run, hostile=hostile, target=target))


def train_under_attack(run: RunFolder, attack: Attack | None) -> None:
    """Run the experiment of a run folder in this process, some devices hostile."""
    app: ClientApp = honest_app if attack is None else HostileApp(run, attack)
    serve_inline(run.path, app, devices=run.devices)


def measure(run: RunFolder, *, hostile: frozenset[int], target: int) -> dict[str, float]:
    """exposure, target_rank and ndcg of the trained adapter, shipped or not; see Outcome.

    Raises DataError when nobody honest has a test item, or all of them have met the target.
    """
    runtime = runtime_for(run.config, run.catalogue)
    runtime.install(AdapterState(load_arrays(run.path / "candidate.safetensors")))
    cases = [case for case in test_cases(run) if case.user not in hostile]
    asked = [replace(case, target=target) for case in cases if target not in seen_items(case.history)]
    shown, quality = (rank_cases(runtime, some, seed=run.config.seed) for some in (asked, cases))
    return {
        "exposure": summary(shown.full, shown.sampled)["hr@10"],
        "target_rank": float(shown.full.mean()),
        "ndcg": summary(quality.full, quality.sampled)["ndcg@10"],
    }
