"""Content: how much an item is like what a person turned to lately.

    content(u)_i = sum_t w_t <p_t, p_i>                                   sharpness 0
    content(u)_i = 1 + log(sum_t w_t exp(tau (<p_t, p_i> - 1))) / tau     sharpness tau

w_t falls by half every `content_half_life` events and adds up to 1. The first compares an item with the mean of the
history, so that a person of two tastes gets what lies between them; the second tends to the likeness to the nearest
event as tau grows, and to the first as tau falls to 0.
"""

from __future__ import annotations

import torch

from shared.items import ItemTable
from shared.windows import Windows


def recency_weights(batch: Windows, *, half_life: float, last: bool = False) -> torch.Tensor:
    """w at every position, float32 (B, L, L): row t weighs events 0 to t. Zero where nothing counts as content yet.

    last: only at the last event of each window, (B, 1, L).
    """
    age = batch.ages(last=last)
    decay = torch.where(age >= 0, 0.5 ** (age / half_life), 0.0)
    weight = decay * batch.content[:, None, :]
    return weight / weight.sum(-1, keepdim=True).clamp(min=1e-9)


def mean_vector(weights: torch.Tensor, batch: Windows, table: ItemTable) -> torch.Tensor:
    """Weighted means of plain vectors, (B, L, d); with sharpness 0 content is their product with an item's vector."""
    return weights @ table.plain[batch.items]


def nearness(likeness: torch.Tensor, *, sharpness: float) -> torch.Tensor:
    """exp(tau (cosine - 1)) of each cosine, between exp(-2 tau) and 1."""
    return torch.exp(sharpness * (likeness - 1))


def pooled(total: torch.Tensor, *, sharpness: float) -> torch.Tensor:
    """1 + log(total) / tau, where total is a weighted mean of `nearness`: between -1 and 1."""
    return 1 + torch.log(total.clamp(min=1e-30)) / sharpness


def sharp_content(weights: torch.Tensor, items: torch.Tensor, table: ItemTable, *, sharpness: float) -> torch.Tensor:
    """content(u) of all items with sharpness above 0, float32 (..., P, N); 0 without any content.

    weights: (..., P, L) at P positions. items: int64 (..., L).
    """
    near = nearness(table.plain[items] @ table.plain.T, sharpness=sharpness)  # (..., L, N)
    return torch.where(weights.sum(-1, keepdim=True) > 0, pooled(weights @ near, sharpness=sharpness), 0.0)
