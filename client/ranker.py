"""Ranking on the device: score the whole catalogue, leave out what was seen, say what each score is made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from client.samples import ranking_windows, seen_items
from client.store import History
from shared.model import Stage
from shared.runtime import Runtime
from shared.schema import Recommendation


@torch.inference_mode()
def score_catalogue(
    runtime: Runtime,
    histories: Sequence[History],
    *,
    stage: Stage = "adapter",
    tail: float = 0.0,
    weights: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Scores of all items for each history, float32 (B, N).

    stage: which of the ranker's parts count, see `shared.model`. tail: see `tail_scores`. weights: a person's own, from
    `client.personal`. A history without events is scored by popularity.
    """
    states = user_states(runtime, histories, stage=stage)
    linear, expected = runtime.scorer.score_parts(states, runtime.table)
    if weights is not None:
        linear = float(weights[0]) * linear + tail_scores(runtime, -float(weights[2]))
        expected = None if expected is None else float(weights[1]) * expected
    return (tail_scores(runtime, tail) + (linear if expected is None else linear + expected)).numpy()


def tail_scores(runtime: Runtime, tail: float) -> torch.Tensor:
    """What the long-tail control adds to each score, float32 (N,): `-tail` times the item's log popularity.

    Scores are logarithms of how likely an item comes next, so 0 ranks by that and 1 by how much more likely it is for
    this person than for anybody; between them accuracy is traded for the long tail.
    """
    return -tail * runtime.table.rows[:, -1]


@torch.inference_mode()
def user_states(runtime: Runtime, histories: Sequence[History], *, stage: Stage = "adapter") -> torch.Tensor:
    """z after the last event of each history, float32 (B, z); see `Scorer.user_states`."""
    batch = ranking_windows(histories, length=runtime.config.model.history)
    scorer, table = runtime.scorer, runtime.table
    longest = max(1, int(batch.real.sum(1).max()))
    batch = batch.shorten(longest)
    states = scorer.user_states(batch, table, stage=stage)
    last = states[torch.arange(len(batch)), batch.last]
    popularity = table.rows.shape[1] - 1
    nothing = ~batch.real.any(1)  # then nothing is known but popularity
    last[nothing, :popularity] = 0.0
    last[nothing, popularity + 1 :] = 0.0
    return last


@torch.inference_mode()
def recommend(runtime: Runtime, history: History, *, k: int, tail: float = 0.0) -> list[Recommendation]:
    """The k best unseen items, best first; ties go to the item that comes first in the catalogue.

    tail: the long-tail control, see `tail_scores`; when it is on, it is one of each score's parts.
    """
    state = user_states(runtime, [history])[0]
    rows = runtime.table.rows
    linear, expected = runtime.scorer.score_parts(state, runtime.table)
    against = tail_scores(runtime, tail)
    scores = (against + (linear if expected is None else linear + expected)).numpy()
    scores[seen_items(history)] = -np.inf
    k = min(k, int(np.isfinite(scores).sum()))
    best = np.lexsort((np.arange(len(scores)), -scores))[:k]
    width, end = runtime.table.plain.shape[1], rows.shape[1]
    slices = {"content": slice(0, width), "adapter": slice(width, end - 1), "popularity": slice(end - 1, end)}
    found = []
    for position, item in enumerate(best.tolist()):
        parts = {name: float(rows[item, part] @ state[part]) for name, part in slices.items()}
        if expected is not None:
            parts["prior"] = float(expected[item])
        if tail:
            parts["tail"] = float(against[item])
        known = runtime.catalogue.items[item]
        found.append(Recommendation(position + 1, known.id, known.title, float(scores[item]), parts))
    return found
