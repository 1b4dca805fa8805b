"""A tiny catalogue, tiny random backbones and random windows, small enough to check by brute force."""

from __future__ import annotations

import numpy as np

from client.samples import stack_windows
from client.store import History
from shared.backbone import TINY_FAMILIES, open_backbone
from shared.config_rules import CONTEXTS
from shared.items import ItemTable
from shared.model import Scorer, build_scorer, load_parameters, read_parameters
from shared.schema import EventKind
from shared.sections import Lora, Model, Prior
from shared.vectors import make_views
from shared.windows import Windows

ITEMS = 24
LENGTH = 6
#: Everything that can be trained is trained: low-rank projections, all context, LoRA on both blocks.
RICH = Model(context=CONTEXTS, history=LENGTH, input_rank=3, output_rank=4, output_dim=16, gamma=2.0)
PLAIN = Model(history=LENGTH, output_dim=16, gamma=2.0)
#: Everything that reads or predicts item codes. `MANY` items leave room for identity directions beside 32 of the text.
MANY = 48
CODED = Model(history=LENGTH, output_dim=16, identity=12, input_codes=36, gamma=2.0)
PRIOR = Prior(half_lives=(0.5, 3.0), widths=(40, 6), output=20, ridge=1.0, kappa=0.8, floor=0.5, gamma=0.3, beta=0.1)

__all__ = [
    "CODED",
    "ITEMS",
    "LENGTH",
    "MANY",
    "PLAIN",
    "PRIOR",
    "RICH",
    "TINY_FAMILIES",
    "item_table",
    "random_windows",
    "shaken_scorer",
    "tiny_scorer",
]


def item_table(model: Model = RICH, *, hidden: int = 32, items: int = ITEMS) -> ItemTable:
    """Random items with random popularity."""
    generator = np.random.default_rng(7)
    raw = generator.normal(size=(items, hidden)).astype(np.float32)
    views = make_views(
        raw,
        whitening=model.whitening,
        output_dim=model.output_dim,
        output_scale=model.output_scale,
        identity=model.identity,
    )
    table = ItemTable(views)
    table.set_popularity(generator.normal(size=items).astype(np.float32))
    return table


def tiny_scorer(
    family: str = "bert", *, model: Model = RICH, lora: Lora | None = None, prior: Prior | None = None
) -> Scorer:
    """A scorer at its start values over a tiny random backbone; with `prior`, a random one is installed."""
    backbone, lora = open_backbone(f"tiny-{family}"), lora or Lora(blocks=0)
    scorer = build_scorer(backbone, model=model, lora=lora, seed=3, items=MANY, prior=prior)
    if scorer.layout is not None:
        size = (scorer.layout.features, scorer.layout.output)
        scorer.set_prior(np.random.default_rng(13).normal(0, 0.3, size).astype(np.float32))
    return scorer


def shaken_scorer(
    family: str = "bert", *, model: Model = RICH, lora: Lora | None = None, prior: Prior | None = None
) -> Scorer:
    """The same with every trainable parameter moved off its start, so that no gradient is zero by design."""
    scorer = tiny_scorer(family, model=model, lora=lora, prior=prior)
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
    """Windows of different lengths with all event kinds, time gaps and values; every window has a target."""
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
                values=generator.choice([np.nan, 0.5, 3.0, 40.0], size),
                attributes={"age": str(generator.integers(3))},
            )
        )
    return stack_windows(parts, length=length, with_targets=True)
