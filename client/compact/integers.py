"""Numbers in eight bits: rows with one scale each, and products of a vector with a matrix of such columns.

A product splits its vector into two digits of eight bits, x = s d + s/254 e up to s/508, and multiplies both with the
matrix at once: reading the matrix is what takes time, so the second digit is nearly free, and only the rounding of the
weights is left. Weights are unsigned with zero at 128: on CPUs without VNNI, products of signed ones overflow 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.compact.folder import ModelFolder
from client.compact.sessions import open_session

LEVELS = 127
ZERO = 128
Floats32 = NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """A matrix whose rows are decoded when asked for. values: int8 (N, c). scale: float32 (N,)."""

    values: NDArray[np.int8]
    scale: Floats32

    @classmethod
    def of(cls, matrix: Floats32) -> Rows:
        """The nearest matrix of that form, float32 (N, c)."""
        scale = (np.abs(matrix).max(axis=1, initial=0.0) / LEVELS).astype(np.float32)
        safe = np.where(scale > 0, scale, 1)[:, None]
        return cls(np.rint(matrix / safe).astype(np.int8), scale)

    @classmethod
    def read(cls, arrays: dict[str, NDArray], name: str) -> Rows:
        """The rows that `named` put among arrays."""
        return cls(arrays[name], arrays[f"{name}.scale"])

    def named(self, name: str) -> dict[str, NDArray]:
        """Both arrays by name, for a file."""
        return {name: self.values, f"{name}.scale": self.scale}

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int | NDArray[np.int64]) -> Floats32:
        """Row (c,), or rows (n, c), float32."""
        return self.values[index].astype(np.float32) * self.scale[index][..., None]

    def decoded(self) -> Floats32:
        """The whole matrix, float32 (N, c)."""
        return self.values.astype(np.float32) * self.scale[:, None]


def split(x: Floats32) -> tuple[NDArray[np.uint8], Floats32]:
    """Two digits of each entry of x (K,), uint8 (2, K) with zero at 128, and what a unit of each is worth, (1, 2)."""
    unit = max(float(np.abs(x).max(initial=0.0)) / LEVELS, 1e-30)
    first = np.rint(x / unit)
    second = np.rint((x - first * unit) * (2 * LEVELS / unit))
    digits = (np.stack([first, second]) + ZERO).astype(np.uint8)
    return digits, np.array([[unit, unit / (2 * LEVELS)]], dtype=np.float32)


class Product:
    """x W for matrices W in eight bits, one after the other; see `client.compact.graphs.product_graph`."""

    def __init__(self, folder: ModelFolder, names: Sequence[str]) -> None:
        self._sessions = [open_session(folder.read(name), name=name) for name in names]

    def __call__(self, x: NDArray[np.floating]) -> Floats32:
        """x (K,) times all matrices, float32 (N,)."""
        found = x.astype(np.float32)
        for session in self._sessions:
            digits, units = split(found)
            found = session.run(None, {"digits": digits, "units": units})[0][0]
        return found
