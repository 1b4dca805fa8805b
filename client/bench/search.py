"""Searches among more items than a test has catalogue for: made vectors and queries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import numpy as np

from client.bench.timing import Figures, Request, measure
from client.bench.workbench import Workbench
from client.cells import Cells
from client.retrieval import Floats, Indices, Scan, largest
from shared.errors import ConfigError

#: Items of the two sizes and the entries of their vectors; how many are looked for.
MANY, WIDE = 100_000, 384
VERY_MANY, NARROW = 1_000_000, 64
BEST = 100
#: Spread of made items around a real one, in that of real ones.
AROUND = 0.5
#: Rows that a search of the graph keeps in mind.
SEARCHING = 800
#: Queries whose answer is compared with the true one.
COMPARED = 50


def exact(bench: Workbench) -> Figures:
    """All of 100,000 random vectors: the hardest there are, as none is like another. memory: vectors and index."""
    generator = bench.generator()
    rows = generator.standard_normal((MANY, WIDE), dtype=np.float32)
    queries = generator.standard_normal((COMPARED, WIDE), dtype=np.float32)
    scan = Scan(rows)
    return _searched(bench, scan.best, rows=rows, queries=queries, memory=rows.nbytes + scan.bytes)


def cells(bench: Workbench) -> Figures:
    """A million vectors like those of the catalogue, of which a few per cent are read."""
    rows, queries = around_real_ones(bench)
    found = Cells(rows)
    return _searched(bench, found.best, rows=rows, queries=queries, memory=rows.nbytes + found.bytes)


def scan(bench: Workbench) -> Figures:
    """The same million, all read."""
    rows, queries = around_real_ones(bench)
    found = Scan(rows)
    return _searched(bench, found.best, rows=rows, queries=queries, memory=rows.nbytes + found.bytes)


def graph(bench: Workbench) -> Figures:
    """The same million in a graph of neighbours by usearch: to compare with. Takes minutes to build."""
    if find_spec("usearch") is None:
        raise ConfigError("found no usearch, which this row compares with; install homerank[bench]")
    from usearch.index import Index

    rows, queries = around_real_ones(bench)
    index = Index(ndim=NARROW, metric="ip", dtype="f16", expansion_add=64, expansion_search=SEARCHING)
    index.add(np.arange(len(rows)), rows)

    def best(query: Floats, count: int) -> Indices:
        return index.search(query, count, threads=1).keys.astype(np.int64)

    return _searched(bench, best, rows=rows, queries=queries, memory=rows.nbytes + int(index.memory_usage))


def around_real_ones(bench: Workbench) -> tuple[Floats, Floats]:
    """Unit vectors (1,000,000, 64), each near a random item of the catalogue, and queries: means of five of them.

    Items are seen in their 64 leading directions, half-whitened as the model's output vectors are.
    """
    plain, generator = bench.engine.plain, bench.generator()
    centred = plain - plain.mean(axis=0)
    variance, directions = np.linalg.eigh((centred.T @ centred / len(plain)).astype(np.float64))
    leading = centred @ (directions[:, ::-1][:, :NARROW] * variance[::-1][:NARROW] ** -0.25).astype(np.float32)
    spread = AROUND * leading.std(axis=0)
    rows = generator.standard_normal((VERY_MANY, NARROW), dtype=np.float32) * spread
    rows += leading[generator.integers(0, len(leading), VERY_MANY)]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = rows[generator.integers(0, VERY_MANY, (COMPARED, 5))].mean(axis=1)
    return rows, queries


def _searched(
    bench: Workbench, best: Callable[[Floats, int], Indices], *, rows: Floats, queries: Floats, memory: int
) -> Figures:
    """Time and recall of the 100 best."""

    def cases() -> Iterator[Request]:
        while True:
            for query in queries:
                yield partial(best, query, BEST)

    found = measure(cases(), requests=bench.requests)
    shares = [np.isin(best(query, BEST), largest(rows @ query, BEST)).mean() for query in queries]
    return replace(found, memory=memory, recall=float(np.mean(shares)))
