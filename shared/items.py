"""The catalogue as the scorer sees it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shared.errors import AdapterError
from shared.vectors import ItemVectors


class ItemTable(nn.Module):
    """The catalogue as the model sees it: fixed tensors, no parameters.

    Under one roof the linear score parts are one dot product: the row of an item is
    [plain (d) | output (k) | log popularity (1)]. codes: (N, c), what the prior reads and predicts. share: (N,), each
    item's part of all events.
    """

    plain: torch.Tensor
    token: torch.Tensor
    codes: torch.Tensor
    rows: torch.Tensor
    share: torch.Tensor

    def __init__(self, vectors: ItemVectors) -> None:
        super().__init__()
        self.register_buffer("plain", torch.from_numpy(vectors.plain))
        self.register_buffer("token", torch.from_numpy(vectors.token))
        self.register_buffer("codes", torch.from_numpy(vectors.codes))
        parts = (self.plain, torch.from_numpy(vectors.output), torch.zeros(len(vectors.plain), 1))
        self.register_buffer("rows", torch.cat(parts, dim=1))  # (N, d + k + 1)
        identity = self.codes[:, self.plain.shape[1] :] * len(self.plain) ** 0.5
        self._read = torch.cat([self.token, identity], dim=1)  # (N, d + r)
        self.register_buffer("share", torch.full((len(self.plain),), 1 / len(self.plain)))

    def set_popularity(self, popularity: NDArray[np.float32]) -> None:
        """Put in a newly released log-popularity column, float32 (N,)."""
        if popularity.shape != (len(self.rows),):
            raise AdapterError(f"found popularity of shape {popularity.shape}; expected ({len(self.rows)},)")
        self.rows[:, -1] = torch.from_numpy(np.ascontiguousarray(popularity))
        self.share[:] = torch.softmax(self.rows[:, -1], dim=0)

    def input_codes(self, count: int) -> torch.Tensor:
        """The first `count` of the token's directions and then the identity's, root-mean-square 1; (N, count)."""
        return self._read[:, :count]
