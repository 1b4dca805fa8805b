"""The personal part: how much each part of the score counts for this person. Learned here, kept here, never sent.

    score(i) = w_1 * (content + adapter + popularity) + w_2 * prior + w_3 * log popularity_i

Everybody starts at (1, 1, 0), and few events should not move a person far from there: the weights maximise the
likelihood of the person's own training events minus a quadratic pull, as a Gaussian prior around the start has it
(MAP estimation; Wang et al. 2019, arXiv 1910.10252, evaluate such personalisation of a federated model). w_3 is the
person's taste for what is popular: negative for somebody who looks for the niche.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from client.samples import training_windows
from client.store import History
from shared.runtime import Runtime
from shared.windows import IGNORE

START = (1.0, 1.0, 0.0)
#: Events whose worth of evidence the pull to the start has.
PULL = 30.0
#: Newton steps; the objective is concave in three unknowns.
STEPS = 8
HALVINGS = 10
#: Newest windows that are learned from.
NEWEST = 2


def fit_weights(runtime: Runtime, history: History, *, pull: float = PULL) -> NDArray[np.float32]:
    """A person's three weights, float32 (3,), from the training events in `history`; the start without any.

    Uses what is installed in the runtime. pull: events' worth of evidence for the start.
    """
    windows = training_windows(history, length=runtime.config.model.history)
    start = torch.tensor(START)
    if not len(windows):
        return start.numpy()
    batch = windows.pick(torch.arange(max(0, len(windows) - NEWEST), len(windows)))
    known = batch.targets != IGNORE
    if not known.any():
        return start.numpy()
    with torch.inference_mode():
        states = runtime.scorer.user_states(batch, runtime.table)[known]  # (n, z)
        linear, expected = runtime.scorer.score_parts(states, runtime.table)  # (n, N)
        if (content := runtime.scorer.content_scores(batch, runtime.table)) is not None:
            linear = linear + content[known]
        popularity = runtime.table.rows[:, -1].expand_as(linear)
        parts = torch.stack([linear, torch.zeros_like(linear) if expected is None else expected, popularity], dim=-1)
        return _maximise(parts, batch.targets[known], start=start, pull=pull).numpy()


def _maximise(parts: torch.Tensor, targets: torch.Tensor, *, start: torch.Tensor, pull: float) -> torch.Tensor:
    """Newton's method with halved steps. parts: float32 (n, N, 3). targets: int64 (n,)."""
    rows = torch.arange(len(targets))
    chosen = parts[rows, targets]  # (n, 3)

    def objective(weights: torch.Tensor) -> float:
        logs = torch.log_softmax(parts @ weights, dim=-1)[rows, targets]
        return float(logs.sum() - pull / 2 * (weights - start).square().sum())

    weights, reached = start, objective(start)
    for _ in range(STEPS):
        share = torch.softmax(parts @ weights, dim=-1)  # (n, N)
        mean = (share[..., None] * parts).sum(1)  # (n, 3)
        gradient = (chosen - mean).sum(0) - pull * (weights - start)
        spread = torch.einsum("na,nai,naj->ij", share, parts, parts) - mean.T @ mean
        step = torch.linalg.solve(spread + pull * torch.eye(3), gradient)
        for _ in range(HALVINGS):
            if (found := objective(weights + step)) > reached:
                weights, reached = weights + step, found
                break
            step = step / 2
        else:
            break  # as good as it gets in float32
    return weights
