"""Ranking on the device: score the whole catalogue, leave out what was seen, say what each score is made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from client.samples import ranking_windows, seen_items
from client.store import History
from shared.runtime import Runtime
from shared.schema import Recommendation


@torch.inference_mode()
def score_catalogue(runtime: Runtime, histories: Sequence[History], *, learned: bool = True) -> NDArray[np.float32]:
    """Scores of all items for each history, float32 (B, N).

    learned: False leaves the trained part out and gives content + popularity with their start weights.
    A history without events is scored by popularity alone.
    """
    states = user_states(runtime, histories, learned=learned)
    return (states @ runtime.table.rows.T).numpy()


@torch.inference_mode()
def user_states(runtime: Runtime, histories: Sequence[History], *, learned: bool = True) -> torch.Tensor:
    """z after the last event of each history, float32 (B, d + k + 1)."""
    batch = ranking_windows(histories, length=runtime.config.model.history)
    scorer, table = runtime.scorer, runtime.table
    longest = max(1, int(batch.real.sum(1).max()))
    batch = batch.shorten(longest)
    states = scorer.user_states(batch, table) if learned else scorer.zero_shot_states(batch, table)
    last = states[torch.arange(len(batch)), batch.last]
    last[~batch.real.any(1), :-1] = 0.0  # nothing is known but popularity
    return last


def recommend(runtime: Runtime, history: History, *, k: int) -> list[Recommendation]:
    """The k best unseen items, best first; ties go to the item that comes first in the catalogue."""
    state = user_states(runtime, [history])[0]
    rows = runtime.table.rows
    scores = (rows @ state).numpy()
    scores[seen_items(history)] = -np.inf
    k = min(k, int(np.isfinite(scores).sum()))
    best = np.lexsort((np.arange(len(scores)), -scores))[:k]
    width = runtime.table.plain.shape[1]
    slices = {"content": slice(0, width), "adapter": slice(width, -1), "popularity": slice(-1, None)}
    return [
        Recommendation(
            rank=position + 1,
            item_id=runtime.catalogue.items[item].id,
            title=runtime.catalogue.items[item].title,
            score=float(scores[item]),
            parts={name: float(rows[item, part] @ state[part]) for name, part in slices.items()},
        )
        for position, item in enumerate(best.tolist())
    ]
