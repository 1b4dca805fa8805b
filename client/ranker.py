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
from shared.windows import Windows


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
    _, _, linear, expected = _score(runtime, histories, stage=stage)
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
    return _states(runtime, _newest(runtime, histories), stage=stage)


@torch.inference_mode()
def recommend(runtime: Runtime, history: History, *, k: int, tail: float = 0.0) -> list[Recommendation]:
    """The k best unseen items, best first; ties go to the item that comes first in the catalogue.

    tail: the long-tail control, see `tail_scores`; when it is on, it is one of each score's parts.
    """
    states, content, linear, expected = _score(runtime, [history])
    rows, width = runtime.table.rows, runtime.table.plain.shape[1]
    against = tail_scores(runtime, tail)
    scores = (against + (linear if expected is None else linear + expected))[0].numpy()
    scores[seen_items(history)] = -np.inf
    k = min(k, int(np.isfinite(scores).sum()))
    best = np.lexsort((np.arange(len(scores)), -scores))[:k]
    slices = {"content": slice(0, width), "adapter": slice(width, -1), "popularity": slice(-1, None)}
    end = rows.shape[1]
    found = []
    for position, item in enumerate(best.tolist()):
        parts = {name: float(rows[item, part] @ states[0, :end][part]) for name, part in slices.items()}
        if content is not None:
            parts["content"] = float(content[0, item])
        if expected is not None:
            parts["prior"] = float(expected[0, item])
        if tail:
            parts["tail"] = float(against[item])
        known = runtime.catalogue.items[item]
        found.append(Recommendation(position + 1, known.id, known.title, float(scores[item]), parts))
    return found


def _newest(runtime: Runtime, histories: Sequence[History]) -> Windows:
    batch = ranking_windows(histories, length=runtime.config.model.history)
    return batch.shorten(max(1, int(batch.real.sum(1).max())))


def _states(runtime: Runtime, batch: Windows, *, stage: Stage) -> torch.Tensor:
    last = runtime.scorer.user_states(batch, runtime.table, stage=stage, last=True)[:, 0]
    popularity = runtime.table.rows.shape[1] - 1
    nothing = ~batch.real.any(1)  # then nothing is known but popularity
    last[nothing, :popularity] = 0.0
    last[nothing, popularity + 1 :] = 0.0
    return last


def _score(
    runtime: Runtime, histories: Sequence[History], *, stage: Stage = "adapter"
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    """States (B, z), the content where it is not part of them, everything but the prior, and the prior; (B, N) each."""
    batch = _newest(runtime, histories)
    states, scorer = _states(runtime, batch, stage=stage), runtime.scorer
    linear, expected = scorer.score_parts(states, runtime.table)
    content = scorer.content_scores(batch, runtime.table, stage=stage, last=True)
    return states, content, linear if content is None else linear + content, expected
