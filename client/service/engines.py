"""Which engine a profile ranks with."""

from __future__ import annotations

from pathlib import Path

from client.engine import Engine, EngineKind
from client.service.shop import OpenEngine
from client.store import History
from shared.catalogue import Catalogue
from shared.errors import ConfigError

#: Every kind of engine, by the name the command line takes.
KINDS: tuple[EngineKind, ...] = ("full", "int8", "student")


def opener(kind: EngineKind = "full", *, model: Path | None = None) -> OpenEngine:
    """How engines of a kind are made.

    model: the exported model's folder, for the kinds that need no torch; they rank with it whatever adapter lies in
    the profile. ConfigError for such a kind without a folder, or a folder beside `full`.
    """
    if (kind == "full") != (model is None):
        raise ConfigError(
            f"found --engine {kind} {'without' if model is None else 'with'} --model; expected both or none"
        )
    return _full if model is None else _Exported(kind, model)


def _full(catalogue: Catalogue, history: History, folder: Path | None) -> Engine:
    import torch

    from client.full import FullEngine

    torch.set_num_threads(1)
    return FullEngine.open(catalogue, history, folder=folder)


class _Exported:
    """Opens one exported model."""

    def __init__(self, kind: EngineKind, model: Path) -> None:
        self._kind, self._model = kind, model.expanduser()

    def __call__(self, catalogue: Catalogue, history: History, folder: Path | None) -> Engine:
        from client.compact.engine import CompactEngine

        return CompactEngine.open(self._model, catalogue, history, kind=self._kind)
