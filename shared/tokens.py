"""Soft tokens: one input embedding for each event, made of the item and of what is known about the event.

    token = x + U V x + W c + kind + gap + value + hour + attributes

x is the item's vector and c its code. Each source of context after them is an embedding table that starts at zero, so
that a fresh model reads items alone, and each is there only when `model.context` names it. `kind` is what tells a
skip from a like; `attributes` is what the device knows about its person, the sum of one embedding each.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from shared.schema import EventKind
from shared.windows import ATTRIBUTE_BUCKETS, GAP_BUCKETS, HOUR_BUCKETS, VALUE_BUCKETS, Windows

#: Sources that say something about a single event: name -> column of the windows, number of its buckets.
_BY_EVENT = {
    "kind": ("kinds", len(EventKind)),
    "gap": ("gaps", GAP_BUCKETS),
    "value": ("values", VALUE_BUCKETS),
    "hour": ("hours", HOUR_BUCKETS),
}


class SoftTokens(nn.Module):
    """The learned input of the history trunk. context: names of the sources it reads, see `model.context`."""

    def __init__(self, hidden: int, *, rank: int, codes: int, context: Collection[str]) -> None:
        super().__init__()
        self.low: nn.Module | None = None
        self.code: nn.Module | None = None
        self.attributes: nn.Module | None = None
        self.sources = tuple(name for name in _BY_EVENT if name in context)
        if rank:  # a residual x + U V x; U starts at zero
            up = nn.Linear(rank, hidden, bias=False)
            nn.init.zeros_(up.weight)
            self.low = nn.Sequential(nn.Linear(hidden, rank, bias=False), up)
        if codes:
            self.code = nn.Linear(codes, hidden, bias=False)
            nn.init.zeros_(self.code.weight)
        with torch.random.fork_rng(devices=[]):  # so that one source more leaves the start of all else alone
            for name in self.sources:
                table = nn.Embedding(_BY_EVENT[name][1], hidden)
                nn.init.zeros_(table.weight)
                self.add_module(name, table)
            if "attributes" in context:
                self.attributes = nn.Linear(ATTRIBUTE_BUCKETS, hidden, bias=False)
                nn.init.zeros_(self.attributes.weight)

    def forward(self, x: torch.Tensor, codes: torch.Tensor, batch: Windows) -> torch.Tensor:
        """Tokens, float32 (B, L, d). x: scaled item vectors (B, L, d). codes: (B, L, c)."""
        token = self.of_items(x, codes)
        for name in self.sources:
            token = token + self.get_submodule(name)(getattr(batch, _BY_EVENT[name][0]))
        if self.attributes is not None:
            token = token + self.attributes(batch.attributes)[:, None]  # (B, 1, d)
        return token

    def of_items(self, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The part of the tokens that depends on items alone, float32 (..., d). x: (..., d). codes: (..., c)."""
        token = x
        if self.low is not None:
            token = token + self.low(x)
        if self.code is not None:
            token = token + self.code(codes)
        return token
