"""A tiny catalogue, tiny random backbones and random windows, small enough to check by brute force."""

from __future__ import annotations

import numpy as np

from client.samples import stack_windows
from client.store import History
from shared.backbone import TINY_FAMILIES, open_backbone
from shared.config import Lora, Model
from shared.model import ItemTable, Scorer, Windows, build_scorer, load_parameters, read_parameters
from shared.schema import EventKind
from shared.vectors import make_views

ITEMS = 24
LENGTH = 6
#: Everything that can be trained is trained: low-rank projections, event context, LoRA on both blocks.
RICH = Model(history=LENGTH, input_rank=3, output_rank=4, output_dim=16, gamma=2.0)
PLAIN = Model(history=LENGTH, output_dim=16, gamma=2.0)

__all__ = [
    "ITEMS",
    "LENGTH",
    "PLAIN",
    "RICH",
    "TINY_FAMILIES",
    "item_table",
    "random_windows",
    "shaken_scorer",
    "tiny_scorer",
]


def item_table(model: Model = RICH, *, hidden: int = 32) -> ItemTable:
    """Random items with random popularity."""
    generator = np.random.default_rng(7)
    raw = generator.normal(size=(ITEMS, hidden)).astype(np.float32)
    views = make_views(raw, whitening=model.whitening, output_dim=model.output_dim, output_scale=model.output_scale)
    table = ItemTable(views)
    table.set_popularity(generator.normal(size=ITEMS).astype(np.float32))
    return table


def tiny_scorer(family: str = "bert", *, model: Model = RICH, lora: Lora | None = None) -> Scorer:
    """A scorer at its start values over a tiny random backbone."""
    return build_scorer(open_backbone(f"tiny-{family}"), model=model, lora=lora or Lora(blocks=0), seed=3)


def shaken_scorer(family: str = "bert", *, model: Model = RICH, lora: Lora | None = None) -> Scorer:
    """The same with every trainable parameter moved off its start, so that no gradient is zero by design."""
    scorer = tiny_scorer(family, model=model, lora=lora)
    generator = np.random.default_rng(11)
    load_parameters(
        scorer,
        {
            name: array + generator.normal(0, 0.2, array.shape).astype(np.float32)
            for name, array in read_parameters(scorer).items()
        },
    )
    return scorer


def random_windows(count: int, *, seed: int = 0, length: int = LENGTH) -> Windows:
    """Windows of different lengths with all event kinds and time gaps; every window has a target."""
    generator = np.random.default_rng(seed)
    parts = []
    for _ in range(count):
        size = int(generator.integers(2, length + 1))
        kinds = generator.integers(0, len(EventKind), size)
        kinds[-1] = EventKind.CLICK
        parts.append(
            History(
                items=generator.integers(0, ITEMS, size),
                times=np.cumsum(10 ** generator.uniform(0, 7, size)),
                kinds=kinds,
                roles=np.zeros(size, dtype=np.int64),
            )
        )
    return stack_windows(parts, length=length, with_targets=True)
