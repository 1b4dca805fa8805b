"""Which engine a profile ranks with."""

from __future__ import annotations

from pathlib import Path

from client.engine import Engine, EngineKind
from client.service.shop import OpenEngine
from client.store import History
from shared.catalogue import Catalogue

#: Every kind of engine, by the name the command line takes.
KINDS: tuple[EngineKind, ...] = ("full", "int8", "student")


def opener(kind: EngineKind = "full", *, model: Path | None = None) -> OpenEngine:
    """How engines of a kind are made. model: the exported model's folder, for the kinds that need no torch."""

    def full(catalogue: Catalogue, history: History, folder: Path | None) -> Engine:
        import torch

        from client.full import FullEngine

        torch.set_num_threads(1)
        return FullEngine.open(catalogue, history, folder=folder)

    return full
