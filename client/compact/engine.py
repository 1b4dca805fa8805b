"""The engine that ranks with an exported model: numpy and ONNX Runtime, no torch. See `client.engine`.

Like `client.session`, everything a ranking reads hangs on one reference to a state that never changes. The parts are
those of the full model but for int8 rounding, and for the student's estimate of the adapter's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from client.compact.folder import ModelFolder
from client.compact.integers import Floats32
from client.compact.readers import Known, Reader, StudentReader, TrunkReader
from client.compact.tables import Tables, prior_scores
from client.compact.texts import TextEncoder
from client.engine import EngineKind, Parts
from client.evidence import Reading
from client.past import Past, Recorder
from client.search import QuerySpace
from client.store import History
from shared.catalogue import Catalogue
from shared.errors import AdapterError
from shared.schema import Event, EventKind

if TYPE_CHECKING:
    from shared.model import Stage


class CompactState:
    """See `client.engine.State`."""

    def __init__(
        self, tables: Tables, reader: Reader, recorder: Recorder, past: Past, *, known: Known | None = None
    ) -> None:
        self.past = past
        self._tables, self._reader, self._recorder = tables, reader, recorder
        self._known = known
        self._lock = Lock()
        self._scored: dict[Stage, Parts] = {}

    def after(self, event: Event) -> CompactState:
        """The state once one more event has happened."""
        return self.with_past(self._recorder.after(self.past, event), known=self._known)

    def with_past(self, past: Past, *, known: Known | None = None) -> CompactState:
        """The same model with another past."""
        return CompactState(self._tables, self._reader, self._recorder, past, known=known)

    def scores(self, *, stage: Stage = "adapter", items: NDArray[np.int64] | None = None) -> Parts:
        """The parts of all items' scores, float32 (N,) each, or of those named, (n,). Not to be written into.

        All items are scored once and the parts kept.
        """
        whole = self._scored.get(stage)
        if whole is None:
            whole = self._scored[stage] = self._parts(stage)
            for part in whole.values():
                part.flags.writeable = False
        return dict(whole) if items is None else {name: part[items] for name, part in whole.items()}

    def candidates(
        self, *, stage: Stage = "adapter", count: int = 1_000, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64] | None:
        """None: the whole catalogue is scored, whatever its size."""
        return None

    def _parts(self, stage: Stage) -> Parts:
        tables, weights = self._tables, self._tables.weights[stage]
        parts: Parts = {
            "content": self._content(weights["gamma"]),
            "adapter": np.zeros_like(tables.popularity),
            "popularity": np.float32(weights["beta"]) * tables.popularity,
        }
        if stage == "adapter" and self.past.events:
            parts["adapter"] = tables.adapter(self._read())
        if stage != "start" and tables.prior is not None:
            q = tables.prior(self.past.features)
            parts["prior"] = prior_scores(q, tables.share, settings=tables.config.prior)
        return parts

    def reading(self) -> Reading:
        """How these scores come from events."""
        return self._tables.reading

    def check(self) -> None:
        """Rank once. AdapterError when that does not give a finite number for each part and item."""
        probe = self if self.past.events else self.after(Event(0, float("nan"), EventKind.CLICK))
        for name, part in probe.scores().items():
            if part.shape != self._tables.popularity.shape or not np.isfinite(part).all():
                raise AdapterError(
                    f"found a model whose {name} part is not one finite number for each of"
                    f" {len(self._tables.popularity)} items; export it again"
                )

    def _content(self, weight: float) -> Floats32:
        plain, past = self._tables.plain, self.past
        if weight == 0 or not past.mass:
            return np.zeros(len(plain), dtype=np.float32)
        sharpness = self._tables.config.model.sharpness
        if not sharpness:
            return plain @ (weight * past.content / max(past.mass, 1e-9)).astype(np.float32)
        shares = self._recorder.shares(past)
        if not shares.any():
            return np.zeros(len(plain), dtype=np.float32)
        total = np.zeros(len(plain), dtype=np.float32)
        for share, near in zip(shares, past.near, strict=True):
            if near is not None:
                total += share * near
        pooled = 1 + np.log(np.maximum(total, np.float32(1e-30))) / np.float32(sharpness)
        return (weight * pooled).astype(np.float32)

    def _read(self) -> Floats32:
        """The adapter's state after the last event. The first to ask reads; the others wait for that."""
        with self._lock:
            self._known = self._reader.read(self.past, self._known)
            return self._known.state


class CompactEngine:
    """See `client.engine.Engine`; `open` makes one."""

    def __init__(self, folder: ModelFolder, catalogue: Catalogue, history: History, *, kind: EngineKind) -> None:
        self.kind, self.catalogue = kind, catalogue
        self.adapter: dict[str, object] = dict(folder.manifest["adapter"])
        self._folder, self._tables = folder, Tables(folder)
        codes = self._tables.codes
        reader: Reader = TrunkReader(folder) if kind == "int8" else StudentReader(folder)
        recorder = Recorder(self._tables.config.model, self._tables.layout, plain=self._tables.plain, codes=codes)
        self._recorder, self._writing = recorder, Lock()
        self._now = CompactState(self._tables, reader, recorder, recorder.read(history))

    @classmethod
    def open(
        cls, folder: Path, catalogue: Catalogue, history: History, *, kind: EngineKind | None = None
    ) -> CompactEngine:
        """The engine of a model folder. kind: where it holds both, int8 or student; None takes the student then.

        AdapterError for a folder that is damaged, belongs to another catalogue or does not hold that kind.
        """
        model = ModelFolder.open(folder)
        kinds = model.manifest["kinds"]
        chosen = kind or ("student" if "student" in kinds else "int8")
        if chosen not in kinds:
            raise AdapterError(f"{folder}: found a model of kind {' and '.join(kinds)}; expected {chosen}")
        if model.manifest["catalogue"] != catalogue.fingerprint:
            raise AdapterError(
                f"{folder}: found a model for another catalogue ({str(model.manifest['catalogue'])[:12]}); expected"
                f" {catalogue.fingerprint[:12]}. Import the catalogue it was made for, or export the model again"
            )
        engine = cls(model, catalogue, history, kind=chosen)
        engine.now.check()
        return engine

    @property
    def plain(self) -> NDArray[np.float32]:
        """Unit rows that content compares, float32 (N, d)."""
        return self._tables.plain

    @property
    def popularity(self) -> NDArray[np.float32]:
        """Log popularity, float32 (N,)."""
        return self._tables.popularity

    @property
    def now(self) -> CompactState:
        """The state of this moment."""
        return self._now

    @property
    def length(self) -> int:
        """Newest events that a ranking reads."""
        return self._tables.config.model.history

    def add(self, event: Event) -> None:
        """Record an event. DataError for an unknown item."""
        with self._writing:
            self._now = self._now.after(event)

    def replace(self, history: History) -> None:
        """Put another history in place."""
        past = self._recorder.read(history)
        with self._writing:
            self._now = self._now.with_past(past)

    def imagined(self, history: History) -> CompactState:
        """The state if this had been the history; the engine stays as it is."""
        return self._now.with_past(self._recorder.read(history))

    def install(self, folder: Path) -> bool:
        """AdapterError: an exported model is what it is."""
        raise AdapterError(
            f"{folder}: found an adapter, but an exported model ranks here; export the adapter where torch is installed"
            " (homerank-client export-model) and start with that model"
        )

    def own_weights(self, history: History) -> NDArray[np.float32] | None:
        """None: learning a person's weights takes the full model."""
        return None

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Raw vectors of texts, float32 (n, d)."""
        return self._encoder(texts)

    @property
    def space(self) -> QuerySpace:
        """How raw vectors become comparable with `plain`."""
        return self._tables.space

    @cached_property
    def _encoder(self) -> TextEncoder:
        return TextEncoder(self._folder)
