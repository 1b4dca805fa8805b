"""Where the adapter's state comes from: the trunk's reading of the events, or the student's estimate of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.compact.context import context_buckets
from client.compact.features import StudentLayout, student_features
from client.compact.folder import ModelFolder
from client.compact.integers import Product, Rows
from client.compact.sessions import open_session
from client.past import Past
from client.samples import attribute_counts
from shared.schema import Event

TRUNK, TOKENS = "trunk.onnx", "tokens.safetensors"
STUDENT, STUDENT_ARRAYS = "student.onnx", "student.safetensors"
Floats32 = NDArray[np.float32]
#: What attention may not look at.
NEVER = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Known:
    """What was read of some events. state: float32 (a,). memory: keys and values of the trunk's blocks by name."""

    events: tuple[Event, ...]
    state: Floats32
    memory: dict[str, Floats32]


class Reader(Protocol):
    """Makes the adapter's state of a past."""

    def read(self, past: Past, known: Known | None) -> Known:
        """All events of a past, at least one; `known` may be continued where the past begins with its events."""
        ...


class TrunkReader:
    """The merged trunk in ONNX; one more event costs one token, until the window is full."""

    def __init__(self, folder: ModelFolder) -> None:
        self._session = open_session(folder.read(TRUNK), name=TRUNK)
        arrays = folder.arrays(TOKENS)
        self._items = Rows.read(arrays, "items")
        self._sources = tuple(folder.manifest["trunk"]["sources"])
        self._tables = {name: arrays[f"context.{name}"] for name in self._sources}
        self._attributes: Floats32 | None = arrays.get("context.attributes")
        shapes = {one.name: one.shape for one in self._session.get_inputs() if one.name.startswith("past_")}
        self._empty = {name: np.zeros((1, s[1], 0, s[3]), dtype=np.float32) for name, s in shapes.items()}
        self._outputs = [one.name for one in self._session.get_outputs()]

    def read(self, past: Past, known: Known | None) -> Known:
        """See `Reader`."""
        if known is None or past.events[: len(known.events)] != known.events:
            start, memory = 0, self._empty
        elif len(known.events) == len(past.events):
            return known
        else:
            start, memory = len(known.events), known.memory
        tokens = self._embed(past, start)
        count = tokens.shape[1]
        positions = np.arange(start, start + count, dtype=np.int64)[None]
        later = np.arange(start + count)[None] > positions[0][:, None]  # (n, p + n)
        mask = np.where(later, np.float32(NEVER), np.float32(0))[None, None]
        feed = {"tokens": tokens, "mask": mask, "positions": positions, **memory}
        expected = {one.name for one in self._session.get_inputs()}
        found = dict(zip(self._outputs, self._session.run(None, {n: feed[n] for n in expected}), strict=True))
        kept = {name: found[name.replace("past_", "new_", 1)] for name in self._empty}
        return Known(past.events, found["state"][0, -1], kept)

    def _embed(self, past: Past, start: int) -> Floats32:
        """Tokens of the events from number `start` on, float32 (1, n, d)."""
        before = min(start, 1)  # the gap of the first new event is to the one before it
        history = past.history(start - before)
        tokens = self._items[history.items[before:]]
        for name, buckets in context_buckets(history, self._sources).items():
            tokens = tokens + self._tables[name][buckets[before:]]
        if self._attributes is not None:
            tokens = tokens + attribute_counts(past.attributes) @ self._attributes
        return tokens[None]


class StudentReader:
    """A linear map of recency-weighted means, see `client.compact.features`; nothing is kept from event to event."""

    def __init__(self, folder: ModelFolder) -> None:
        self._layout = StudentLayout.read(folder.manifest["student"])
        self._map = Product(folder, [STUDENT])
        arrays = folder.arrays(STUDENT_ARRAYS)
        self._rows = Rows.read(arrays, "items")
        self._start: Floats32 = arrays["start"]

    def read(self, past: Past, known: Known | None) -> Known:
        """See `Reader`."""
        if known is not None and known.events == past.events:
            return known
        features = student_features(past.history(), self._rows, self._layout)
        return Known(past.events, self._start + self._map(features[1:]), {})
