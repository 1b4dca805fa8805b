"""AdapterState: the trainable parameters as one value with algebra, and its one-array form for the wire."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import AdapterError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class AdapterState:
    """Named float32 arrays in sorted order. Updates are the same type, so aggregation reads like its formula.

    Operations between two states need equal names and shapes (AdapterError otherwise); nothing broadcasts.
    """

    arrays: Mapping[str, Array]

    def __post_init__(self) -> None:
        ordered = {name: np.asarray(self.arrays[name], dtype=np.float32) for name in sorted(self.arrays)}
        object.__setattr__(self, "arrays", ordered)

    def __add__(self, other: AdapterState) -> AdapterState:
        return self._zip(other, np.add)

    def __sub__(self, other: AdapterState) -> AdapterState:
        return self._zip(other, np.subtract)

    def __mul__(self, factor: float) -> AdapterState:
        return AdapterState({name: array * np.float32(factor) for name, array in self.arrays.items()})

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AdapterState) or self.shapes != other.shapes:
            return False
        return all(np.array_equal(self.arrays[name], other.arrays[name]) for name in self.arrays)

    __hash__ = None  # type: ignore[assignment]  # holds mutable arrays

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each array, by name."""
        return {name: array.shape for name, array in self.arrays.items()}

    @property
    def size(self) -> int:
        """Number of scalars d; a privacy parameter, since noise grows with its square root."""
        return sum(array.size for array in self.arrays.values())

    def norm(self) -> float:
        """L2 norm over all entries, accumulated in float64."""
        return math.sqrt(sum(float(np.sum(array.astype(np.float64) ** 2)) for array in self.arrays.values()))

    def clipped(self, bound: float) -> AdapterState:
        """This state scaled to an L2 norm of at most `bound`; a projection, so distances never grow.

        The norm of the float32 result may exceed the bound by rounding, a part in ten million.
        """
        norm = self.norm()
        return self * (bound / norm) if norm > bound else self

    def is_finite(self) -> bool:
        """True when no entry is NaN or infinite."""
        return all(bool(np.isfinite(array).all()) for array in self.arrays.values())

    def zeros(self) -> AdapterState:
        """The same names and shapes, all zero."""
        return AdapterState({name: np.zeros_like(array) for name, array in self.arrays.items()})

    def select(self, names: Iterable[str]) -> AdapterState:
        """Only the named arrays; AdapterError for an unknown name."""
        wanted = list(names)
        missing = [name for name in wanted if name not in self.arrays]
        if missing:
            raise AdapterError(f"found no parameter {missing[0]!r}; this adapter has {len(self.arrays)} others")
        return AdapterState({name: self.arrays[name] for name in wanted})

    def replace(self, part: AdapterState) -> AdapterState:
        """This state with the arrays of `part` put in; names and shapes must exist here."""
        mine = self.select(part)
        mine._same_form(part)
        return AdapterState({**self.arrays, **part.arrays})

    def pack(self) -> Array:
        """All entries in one float32 array (size,), names in sorted order."""
        if not self.arrays:
            return np.zeros(0, dtype=np.float32)
        return np.concatenate([array.ravel() for array in self.arrays.values()])

    @staticmethod
    def length(shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Number of entries that these shapes hold together."""
        return sum(math.prod(shape) for shape in shapes.values())

    @classmethod
    def unpack(cls, packed: Array, shapes: Mapping[str, tuple[int, ...]]) -> AdapterState:
        """Inverse of `pack`; AdapterError when the number of entries does not fit the shapes."""
        expected = cls.length(shapes)
        if packed.shape != (expected,):
            raise AdapterError(f"found a packed array of shape {packed.shape}; expected ({expected},)")
        arrays, start = {}, 0
        for name in sorted(shapes):
            stop = start + math.prod(shapes[name])
            arrays[name] = packed[start:stop].reshape(shapes[name])
            start = stop
        return cls(arrays)

    def _zip(self, other: AdapterState, operation: Callable[[Array, Array], Any]) -> AdapterState:
        self._same_form(other)
        return AdapterState({name: operation(array, other.arrays[name]) for name, array in self.arrays.items()})

    def _same_form(self, other: AdapterState) -> None:
        if self.shapes != other.shapes:
            mine, theirs = self.shapes, other.shapes
            odd = sorted(set(mine.items()) ^ set(theirs.items()))[0][0]
            raise AdapterError(f"{odd}: found shape {theirs.get(odd)}; expected {mine.get(odd)}")
