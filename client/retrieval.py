"""The best rows of a table for a query, by inner product, without reading all of it as it is.

Reading is what a search takes time for, so rows are read as int8, a quarter of the bytes, and only those that may be
among the best are read again as they are. With columns scaled to the range of int8, v = c (a + u) with |u| <= 1/2 in
each entry, and the query scaled and rounded likewise, z' = c z = t (b + w):

    <v, z> = t <a, b> + t <a, w> + <u, z'>,    |second + third| <= t max|a| |w| + max|u| |z'|      (Cauchy-Schwarz)

so a row whose estimate t <a, b> lies further below what k rows are known to reach cannot be among the k best, and the
result is exact but for rounding in float32. Integer products come from NumKong (the extra `large`); without it all rows
are read as they are.

Beyond `SCANNED` rows only some are read: those of the cells whose centres are nearest to the query (`client.cells`).
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from client.slate import best_items

#: Rows up to which all are read.
SCANNED = 100_000
#: Width of rows up to which packing them pays.
NARROW = 128
#: What rounding in float32 may make of a product, as a part of it.
ROUNDING = 1e-5
_LARGEST = 127
_BLOCK = 50_000
#: Entries that a sample for a threshold is made of.
_SAMPLE = 20_000

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]


class Quantised:
    """Rows as int8, each column on a scale of its own. codes: (N, d), a above. scale: float32 (d,), c above."""

    def __init__(self, rows: Floats) -> None:
        blocks = [slice(start, start + _BLOCK) for start in range(0, len(rows), _BLOCK)]
        largest = np.zeros(rows.shape[1], dtype=np.float32)
        for block in blocks:
            largest = np.maximum(largest, np.abs(rows[block]).max(axis=0))
        self.scale = np.maximum(largest, np.float32(1e-30)) / _LARGEST
        self.codes = np.empty(rows.shape, dtype=np.int8)
        self._length = self._loss = 0.0  # max |a|, max |u|
        for block in blocks:
            scaled = rows[block] / self.scale
            rounded = np.rint(scaled)
            self.codes[block] = rounded
            self._length, self._loss = max(self._length, _longest(rounded)), max(self._loss, _longest(scaled - rounded))

    def give_away(self) -> NDArray[np.int8]:
        """The codes, which are then no longer kept here."""
        codes, self.codes = self.codes, self.codes[:0].copy()
        return codes

    def asked(self, query: Floats) -> tuple[NDArray[np.int8], float, float]:
        """A query (d,) as int8 (1, d), b above; t; and how far an estimate may be from the product at most."""
        scaled = query.astype(np.float64) * self.scale
        step = max(float(np.abs(scaled).max()) / _LARGEST, 1e-300)
        rounded = np.rint(scaled / step)
        lost = float(np.linalg.norm(scaled / step - rounded))
        bound = step * self._length * lost + self._loss * float(np.linalg.norm(scaled))
        return rounded.astype(np.int8)[None], step, bound


class IntegerRows:
    """Int8 rows (n, d) for exact products with an int8 query. bytes: memory they take.

    Two kernels of NumKong: up to a width of `NARROW` the one for packed rows is quicker, which take 136 bytes at least,
    beyond it the one for rows as they are (100,000 rows of 64: 0.2 ms against 1.4; of 384: 2.4 against 1.7).
    """

    def __init__(self, codes: NDArray[np.int8]) -> None:
        import numkong

        self._packed = numkong.dots_pack(codes) if codes.shape[1] <= NARROW and len(codes) else None
        self._codes = codes if self._packed is None else codes[:0]
        self.bytes = self._codes.nbytes if self._packed is None else int(self._packed.nbytes)

    def products(self, asked: NDArray[np.int8], step: float) -> Floats:
        """Products with a query (1, d), times `step`; float32 (n,)."""
        import numkong

        if self._packed is None and not len(self._codes):
            return np.zeros(0, dtype=np.float32)
        if self._packed is None:
            found = np.asarray(numkong.cdist(asked, self._codes, "dot", out_dtype="float32"))[0]
        else:
            found = np.asarray(numkong.dots_packed(asked, self._packed))[0]  # int32
        return np.multiply(found, np.float32(step), dtype=np.float32, casting="unsafe")


class Scan:
    """Reads all rows, as int8 where it can. bytes: what it keeps beside the rows (N, d), which it does not copy."""

    def __init__(self, rows: Floats) -> None:
        self._rows = rows
        self._quantised = Quantised(rows) if integer_products() and rows.size else None
        self.bytes = 0
        if self._quantised is not None:
            self._integers = IntegerRows(self._quantised.give_away())
            self.bytes = self._integers.bytes

    def estimates(self, query: Floats) -> tuple[Floats, float]:
        """Products of all rows with the query (d,), float32 (N,), and how far each may be from the true one at most."""
        if self._quantised is None:
            return self._rows @ query, 0.0
        asked, step, bound = self._quantised.asked(query)
        return self._integers.products(asked, step), bound

    def best(self, query: Floats, count: int) -> Indices:
        """The `count` rows with the largest product, best first, ties to the lower index; int64."""
        found, bound = self.estimates(query)
        if not bound or count < 1:
            return best_items(found, np.ones(len(found), dtype=np.bool_), max(0, count))
        reached = float((self._rows[largest(found, count)] @ query).min())  # by at least `count` rows
        near = np.flatnonzero(found >= reached - bound - ROUNDING * abs(reached))
        return ranked(self._rows, near, query, count)


def largest(values: Floats, count: int) -> Indices:
    """Where the `count` largest of (N,) are, in no order; which of several equal ones is left open.

    A threshold from a sample spares most of them the search, which otherwise takes longer than to multiply.
    """
    step = len(values) // _SAMPLE
    wanted = 2 * count // max(step, 1) + 8
    if step > 1 and wanted < _SAMPLE // 2:
        sample = values[::step]
        near = np.flatnonzero(values >= np.partition(sample, len(sample) - wanted)[len(sample) - wanted])
        if len(near) >= count:
            return near[_largest(values[near], count)]
    return _largest(values, count)


def ranked(rows: Floats, near: Indices, query: Floats, count: int) -> Indices:
    """The `count` best of some rows, best first, by the rows as they are. near: in ascending order."""
    return near[best_items(rows[near] @ query, np.ones(len(near), dtype=np.bool_), count)]


def integer_products() -> bool:
    """Whether int8 rows can be multiplied faster than float32 ones here."""
    return find_spec("numkong") is not None


def _largest(values: Floats, count: int) -> Indices:
    count = min(count, len(values))
    return np.argpartition(values, len(values) - count)[len(values) - count :] if count else np.zeros(0, dtype=np.int64)


def _longest(rows: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64).max()))
