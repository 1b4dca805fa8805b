"""The engine that runs the whole model: frozen backbone, LoRA, prior and all, in torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.engine import EngineKind
from client.personal import fit_weights
from client.search import QuerySpace
from client.session import Session, Snapshot
from client.store import History
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_adapter
from shared.backbone import encode_texts
from shared.catalogue import Catalogue
from shared.config import Config, merge
from shared.errors import AdapterError, ConfigError
from shared.runtime import Runtime, public_settings
from shared.schema import Event
from shared.vectors import raw_vectors


class FullEngine:
    """See `client.engine.Engine`. Build it while nobody trains the runtime.

    runtime: what the catalogue's vectors come from; what is installed there later is not this engine's.
    """

    kind: EngineKind = "full"

    def __init__(self, runtime: Runtime, history: History, *, adapter: dict[str, object] | None = None) -> None:
        self.catalogue = runtime.catalogue
        self.adapter: dict[str, object] = adapter or {}
        self.runtime = runtime
        self._session = Session(runtime, history)
        self._session.now.ranker.shelves.prepare()

    @classmethod
    def open(cls, catalogue: Catalogue, history: History, *, folder: Path | None = None) -> FullEngine:
        """The engine of an adapter folder; without one the default settings' start, which needs no training.

        Raises AdapterError for a folder that is damaged or belongs to another catalogue or backbone.
        """
        runtime, told = open_runtime(catalogue, folder)
        engine = cls(runtime, history, adapter=told)
        engine.now.check()
        return engine

    @property
    def plain(self) -> NDArray[np.float32]:
        """Unit rows that content compares, float32 (N, d)."""
        return self.runtime.table.plain.numpy()

    @property
    def popularity(self) -> NDArray[np.float32]:
        """Log popularity, float32 (N,)."""
        return self._session.now.ranker.popularity.numpy()

    @property
    def now(self) -> Snapshot:
        """The state of this moment."""
        return self._session.now

    @property
    def length(self) -> int:
        """Newest events that a ranking reads."""
        return self.runtime.config.model.history

    def add(self, event: Event) -> None:
        """Record an event."""
        self._session.add(event)

    def replace(self, history: History) -> None:
        """Put another history in place."""
        self._session.replace(history)

    def imagined(self, history: History) -> Snapshot:
        """The state if this had been the history."""
        return self._session.imagined(history)

    def install(self, folder: Path) -> bool:
        """Change to another adapter of the same settings, without dropping a request; False where settings differ.

        Raises AdapterError when the new one is damaged, does not fit or fails its self-check; the old one stays then.
        """
        state, popularity, manifest = load_adapter(folder)
        if public_settings(_settings(folder, manifest)) != public_settings(self.runtime.config):
            return False
        _check(folder, manifest, self.runtime)
        whole = AdapterState({**state.arrays, POPULARITY: popularity})
        if (refused := self._session.install(whole)) is not None:
            raise refused
        self.runtime.install(whole)
        self.adapter = _told(manifest)
        return True

    def own_weights(self, history: History) -> NDArray[np.float32]:
        """A person's weights learned from a history, float32 (3,)."""
        return fit_weights(self.runtime, history)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Raw vectors of texts, float32 (n, d)."""
        return encode_texts(self.runtime.backbone, texts, model=self._encoder)

    @cached_property
    def space(self) -> QuerySpace:
        """How raw vectors become comparable with `plain`."""
        raw = raw_vectors(self.runtime.backbone, self.catalogue)
        whitening = self.runtime.config.model.content_whitening
        return QuerySpace.of(raw, plain=self.plain, content_whitening=whitening)

    @cached_property
    def _encoder(self) -> Any:
        return self.runtime.backbone.text_encoder()


def open_runtime(catalogue: Catalogue, folder: Path | None) -> tuple[Runtime, dict[str, object]]:
    """A runtime with the adapter of a folder installed, and what its manifest tells of it; see `FullEngine.open`."""
    if folder is None:
        return Runtime(Config(), catalogue), {}
    state, popularity, manifest = load_adapter(folder)
    runtime = Runtime(_settings(folder, manifest), catalogue)
    _check(folder, manifest, runtime)
    runtime.install(AdapterState({**state.arrays, POPULARITY: popularity}))
    return runtime, _told(manifest)


def _settings(folder: Path, manifest: dict[str, Any]) -> Config:
    try:
        return merge(Config(), manifest["settings"])
    except (ConfigError, KeyError, TypeError) as error:
        raise AdapterError(f"{folder}: found model settings that this version does not know ({error})") from None


def _check(folder: Path, manifest: dict[str, Any], runtime: Runtime) -> None:
    expected = {"catalogue": runtime.catalogue.fingerprint, "backbone": runtime.backbone.digest}
    for name, fingerprint in expected.items():
        if manifest.get(name) != fingerprint:
            raise AdapterError(
                f"{folder}: found an adapter for another {name} ({str(manifest.get(name))[:12]}); expected"
                f" {fingerprint[:12]}. Import the {name} it was trained for, or another adapter"
            )


def _told(manifest: dict[str, Any]) -> dict[str, object]:
    return {name: manifest[name] for name in ("run", "round", "outcome") if name in manifest}
