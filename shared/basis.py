"""A basis for the low-rank output projection that costs no privacy.

The history trunk's states have a large common mean and a few strong directions, whoever the history is of. Training a
projection from raw states spends most of its noise budget on undoing that. So the first factor of the projection
starts as the whitened principal directions of the states of *random* histories, drawn from the public catalogue.
"""

from __future__ import annotations

import torch

from shared.errors import ConfigError
from shared.items import ItemTable
from shared.model import Scorer
from shared.schema import EventKind
from shared.windows import ATTRIBUTE_BUCKETS, GAP_BUCKETS, HOUR_BUCKETS, IGNORE, VALUE_BUCKETS, Windows

#: Random histories behind the estimate; with 64 events each that is 3,072 states.
HISTORIES = 48


@torch.no_grad()
def public_basis(scorer: Scorer, table: ItemTable, *, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (rank, d) and bias (rank,) such that `weight h + bias` has mean 0 and variance 1 per direction.

    Deterministic for a seed on one machine; another machine may differ in the last digits and in signs, which is why
    the result is part of the adapter that a server sends. Raises ConfigError when rank exceeds the states' width.
    """
    batch = _random_histories(len(table.rows), length=scorer.settings.history, seed=seed)
    states = scorer.history_states(batch, table).flatten(0, 1)  # (H L, d)
    if rank > states.shape[1]:
        raise ConfigError(f"found model.output_rank = {rank}; this backbone's states have {states.shape[1]} entries")
    mean = states.mean(0)
    variance, directions = torch.linalg.eigh(torch.cov((states - mean).T))  # ascending
    leading = directions.flip(1)[:, :rank] / variance.flip(0)[:rank].clamp(min=1e-8).sqrt()
    weight = leading.T.contiguous()  # (r, d)
    return weight, -(weight @ mean)


def _random_histories(items: int, *, length: int, seed: int) -> Windows:
    shape = (HISTORIES, length)
    yes = torch.ones(shape, dtype=torch.bool)
    return Windows(
        items=torch.randint(items, shape, generator=torch.Generator().manual_seed(seed)),
        kinds=torch.full(shape, int(EventKind.CLICK)),
        gaps=torch.full(shape, GAP_BUCKETS - 1),
        values=torch.full(shape, VALUE_BUCKETS - 1),
        hours=torch.full(shape, HOUR_BUCKETS - 1),
        attributes=torch.zeros(HISTORIES, ATTRIBUTE_BUCKETS),
        content=yes,
        seen=yes,
        targets=torch.full(shape, IGNORE),
        real=yes,
    )
