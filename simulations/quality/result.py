"""From what was measured to the object of `benchmark quality --json`.

Per-user values come first, averaged over the seeds of a row; every mean, interval and group is taken over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from client.samples import seen_items
from shared.metrics import bootstrap_interval, hit_rate, ndcg, paired_bootstrap, reciprocal_rank
from shared.runtime import runtime_for
from simulations.evaluation import Case, test_cases
from simulations.quality import measures
from simulations.quality.base import training_of
from simulations.quality.harness import K, Measured
from simulations.quality.measures import Floats, Touched
from simulations.quality.slices import Groups, by_group, gap, slices_of, withheld_items
from simulations.runfolder import RunFolder
from simulations.sources import attributes_of

#: What people read for each metric; the last two are there only where items are withheld.
METRICS = {
    "hr@10": "HR@10",
    "ndcg@10": "NDCG@10",
    "mrr": "MRR",
    "hr@10_99neg": "HR, 99 neg.",
    "ndcg@10_99neg": "NDCG, 99 neg.",
    "hr@10_new": "HR, new items",
    "ndcg@10_new": "NDCG, new items",
}
#: Per-user measures of what is shown; `miscalibration` only where items have tags.
OF_LISTS = ("popularity", "novelty", "tail_share", "diversity", "miscalibration")


@dataclass(frozen=True)
class Questions:
    """The test cases of a run, and what lists and groups are judged by.

    vectors: float32 (N, d), unit length. shares: tags of each item, None when the catalogue has none. competitors:
    unseen items apart from the target, int64 (U,).
    """

    cases: list[Case]
    touched: Touched
    vectors: NDArray[np.float32]
    shares: Floats | None
    slices: dict[str, Groups]
    competitors: NDArray[np.int64]

    @classmethod
    def of(cls, run: RunFolder) -> Questions:
        """Read the run's test cases, training counts, item vectors and the attributes of its source."""
        cases, items = test_cases(run), len(run.catalogue)
        touched = Touched.of(training_of(run, validation=()).histories, items=items)
        return cls(
            cases=cases,
            touched=touched,
            vectors=runtime_for(run.config, run.catalogue).table.plain.numpy(),
            shares=measures.tag_shares(run.catalogue),
            slices=slices_of(cases, touched=touched, users=run.users, attributes=attributes_of(run.config)),
            competitors=np.array([items - len(seen_items(case.history)) - 1 for case in cases]),
        )


def benchmark_result(run: RunFolder, rows: Mapping[str, Sequence[Measured]], *, reference: str) -> dict[str, Any]:
    """Everything the benchmark reports, as plain values without NaN.

    rows: name -> what was measured, one for each seed. reference: the row that all others are compared with, over the
    users that both were asked about. Groups, intervals and comparisons are about one metric, `main`: NDCG@10 in the
    whole catalogue, or among the withheld items where there are any.
    """
    questions = Questions.of(run)
    main = "ndcg@10_new" if len(withheld_items(run)) else "ndcg@10"
    resampling = {"resamples": run.config.evaluation.bootstrap, "seed": run.config.seed}
    columns = {name: _columns(measured, questions) for name, measured in rows.items()}
    table = {}
    for name, measured in rows.items():
        table[name] = _row(measured, columns[name], main=main, questions=questions, resampling=resampling)
        _, ours, theirs = np.intersect1d(measured[0].cases, rows[reference][0].cases, return_indices=True)
        if name != reference and len(ours):
            table[name]["against"] = paired_bootstrap(
                columns[name][main][ours], columns[reference][main][theirs], **resampling
            )
    about = {"data": run.facts, "config": run.config.to_dict(), "reference": reference, "main": METRICS[main], "k": K}
    return {**about, "rows": table}


def _row(
    measured: Sequence[Measured],
    columns: Mapping[str, Floats],
    *,
    main: str,
    questions: Questions,
    resampling: Mapping[str, int],
) -> dict[str, Any]:
    """All figures of one row."""
    first, items = measured[0], len(questions.touched.people)
    low, high = bootstrap_interval(columns[main], **resampling)
    everyone = len(first.cases) == len(questions.cases)
    groups = {
        name: {label: mask[first.cases] for label, mask in of.items() if mask[first.cases].any()}
        for name, of in questions.slices.items()
    }
    by_slice = {name: by_group(columns[main], of, **resampling) for name, of in groups.items()}
    return {
        "trains_on": first.facts["trains_on"],
        "chosen": [one.facts["chosen"] for one in measured],
        "users": len(first.cases),
        "seeds": [one.facts["settings"]["seed"] for one in measured],
        "metrics": {name: float(columns[name].mean()) for name in METRICS if name in columns},
        "main": {"mean": float(columns[main].mean()), "low": low, "high": high},
        "by_seed": [float(_columns_of(one, questions)[main].mean()) for one in measured],
        "against": None,
        "lists": {
            # what few lists cover says nothing about many
            "coverage": _mean([measures.coverage(one.lists, items=items) for one in measured]) if everyone else None,
            "gini": _mean([measures.gini(one.lists, items=items) for one in measured]) if everyone else None,
            **{name: _mean(columns[name]) if name in columns else None for name in OF_LISTS},
        },
        "worst_tenth": measures.worst_tenth(columns["share_behind"]),
        "groups": by_slice,
        "gaps": {name: gap(of) for name, of in by_slice.items()},
        "cold_start": {str(events): _cold(measured, events) for events in first.cold},
        "seconds": {"fit": _mean([one.facts["seconds"]["fit"] for one in measured])},
        "rank_ms": 1000 * float(np.mean([one.facts["seconds"]["rank"] for one in measured])) / len(first.cases),
        "peak_rss_bytes": max(one.facts["peak_rss_bytes"] for one in measured),
    }


def _columns(measured: Sequence[Measured], questions: Questions) -> dict[str, Floats]:
    """Per-user values by name, each (U,), averaged over the seeds."""
    by_seed = [_columns_of(one, questions) for one in measured]
    return {name: np.mean([columns[name] for columns in by_seed], axis=0) for name in by_seed[0]}


def _columns_of(one: Measured, questions: Questions) -> dict[str, Floats]:
    """Per-user values of one seed. NaN where a list does not determine them."""
    touched = questions.touched
    columns = {
        "hr@10": hit_rate(one.full, K),
        "ndcg@10": ndcg(one.full, K),
        "mrr": reciprocal_rank(one.full),
        "hr@10_99neg": hit_rate(one.sampled, K),
        "ndcg@10_99neg": ndcg(one.sampled, K),
        "share_behind": measures.share_behind(one.full, questions.competitors[one.cases]),
        "popularity": measures.popularity(one.lists, touched),
        "novelty": measures.novelty(one.lists, touched),
        "tail_share": measures.tail_share(one.lists, touched),
        "diversity": measures.diversity(one.lists, questions.vectors),
    }
    if len(one.new):
        columns |= {"hr@10_new": hit_rate(one.new, K), "ndcg@10_new": ndcg(one.new, K)}
    if questions.shares is not None:
        histories = [questions.cases[place].history for place in one.cases.tolist()]
        columns["miscalibration"] = measures.miscalibration(one.lists, histories, questions.shares)
    return columns


def _cold(measured: Sequence[Measured], events: int) -> dict[str, float]:
    """Means over seeds and users of ranks after a cold start."""
    full = [one.cold[events][0] for one in measured]
    sampled = [one.cold[events][1] for one in measured]
    return {
        "hr@10": float(np.mean([hit_rate(ranks, K) for ranks in full])),
        "ndcg@10": float(np.mean([ndcg(ranks, K) for ranks in full])),
        "ndcg@10_99neg": float(np.mean([ndcg(ranks, K) for ranks in sampled])),
    }


def _mean(values: ArrayLike) -> float | None:
    """Mean of the values that are known, None when none is."""
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else None
