"""A vector against all items through two matrices: the shape of the adapter's and the prior's part of a score."""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Part of the numbers to read at most that must be left for a product of matrices to be worth its memory.
WORTH = 0.8
#: Stands for all items where some could be named.
EVERY = slice(None)
Rows = torch.Tensor | slice


@dataclass(frozen=True)
class Product:
    """x M V^T for x (a,), M (a, b) and V (N, b): in two steps, or with M V^T (a, N) made beforehand, see `of`."""

    matrix: torch.Tensor
    vectors: torch.Tensor
    both: torch.Tensor | None

    @classmethod
    @torch.inference_mode()
    def of(cls, matrix: torch.Tensor, vectors: torch.Tensor) -> Product:
        """Multiplied beforehand where that leaves less to read for each x.

        Reading is what such a product takes time for. On ML-1M, 24 MB instead of 32 for the prior, and 5 instead of 23
        for the adapter.
        """
        (a, b), count = matrix.shape, len(vectors)
        return cls(matrix, vectors, matrix @ vectors.T if a * count < WORTH * b * (a + count) else None)

    def __call__(self, x: torch.Tensor, rows: Rows = EVERY) -> torch.Tensor:
        """x (a,) against all items, (N,), or against some, (n,)."""
        if self.both is not None and isinstance(rows, slice):
            return x @ self.both
        return self.vectors[rows] @ self.state(x)

    def state(self, x: torch.Tensor) -> torch.Tensor:
        """x M, (b,): what is compared with the vectors."""
        return x @ self.matrix
