"""The student: a linear map from recency-weighted means to the adapter's state, fitted without anybody's behaviour.

Histories are drawn from the teacher itself: the first item by popularity, each further one from the teacher's softmax
over what was not drawn before, and what is known besides an item evenly from its buckets. Adapter and popularity are
released, the catalogue is public, so the student costs no privacy. The map is ridge regression in closed form,

    S = (Phi^T Phi + lambda I)^-1 Phi^T H              Phi: features (n, G), H: states (n, a), both less their means

from the states that the teacher's trunk reached on the way (knowledge distillation, Hinton et al. 2015, on states
instead of scores, because scores are linear in them). lambda is the share of the features' mean variance, out of
`RIDGES`, that explains most on histories kept back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.compact.context import BUCKETS
from client.compact.features import StudentLayout
from client.compact.integers import Rows
from client.samples import ranking_windows
from client.store import History
from shared.content import nearness, pooled
from shared.items import ItemTable
from shared.model import Scorer
from shared.prior import prior_scores
from shared.schema import POSITIVE_KINDS, SEEN_KINDS, EventKind
from shared.windows import ATTRIBUTE_BUCKETS, GAP_BUCKETS, HOUR_BUCKETS, IGNORE, VALUE_BUCKETS, Windows

HALF_LIVES = (0.01, 2.0, 32.0)
HISTORIES, BATCH = 768, 128
#: Part of the drawn events that are likes of any form; the others are impressions and skips, where kinds are read.
LIKED = 0.85
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: Share of the drawn histories on which fits are compared.
KEPT_BACK = 0.125


@dataclass(frozen=True)
class Drawn:
    """Histories from a teacher, B of T events. buckets: of the context's sources, int64 (B, T) each.

    items, kinds: int64 (B, T). attributes: float32 (B, A). states: after each event, float32 (B, T, a).
    """

    items: NDArray[np.int64]
    kinds: NDArray[np.int64]
    buckets: dict[str, NDArray[np.int64]]
    attributes: NDArray[np.float32]
    states: NDArray[np.float32]


@dataclass(frozen=True)
class Student:
    """rows: [token | alone] of each item. start: float32 (a,). matrix: float32 (G - 1, a).

    explained: share of the states' variance, on histories kept back.
    """

    layout: StudentLayout
    rows: Rows
    start: NDArray[np.float32]
    matrix: NDArray[np.float32]
    explained: float


def distil(scorer: Scorer, table: ItemTable, *, seed: int, histories: int = HISTORIES) -> Student:
    """Fit a student to a scorer."""
    tokens, alone = item_tokens(scorer, table), states_alone(scorer, table)
    layout = StudentLayout(
        half_lives=HALF_LIVES,
        token=tokens.shape[1],
        alone=alone.shape[1],
        sources=scorer.input.sources,
        attributes=scorer.input.attributes is not None,
    )
    rows = Rows.of(np.concatenate([tokens, alone], axis=1))
    decoded, generator = rows.decoded(), np.random.default_rng(seed)
    size, width, kept = layout.size - 1, alone.shape[1], []
    sums = _Moments.zero(size, width)
    for first in range(0, histories, BATCH):
        drawn = draw_histories(scorer, table, generator, count=min(BATCH, histories - first))
        features, states = drawn_features(drawn, decoded, layout)[..., 1:], drawn.states
        back = max(1, round(KEPT_BACK * len(states)))
        kept.append((features[:back].reshape(-1, size), states[:back].reshape(-1, width)))
        sums = sums.plus(features[back:].reshape(-1, size), states[back:].reshape(-1, width))
    features, states = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    total = max(float(np.square(states - states.mean(axis=0)).sum()), 1e-12)
    fits = [sums.solve(ridge) for ridge in RIDGES]
    left = [float(np.square(states - start - features @ matrix).sum()) for start, matrix in fits]
    start, matrix = fits[int(np.argmin(left))]
    return Student(layout, rows, start, matrix, explained=1 - min(left) / total)


@torch.inference_mode()
def item_tokens(scorer: Scorer, table: ItemTable) -> NDArray[np.float32]:
    """What the trunk reads of each item, all projections done, float32 (N, d)."""
    codes = table.input_codes(scorer.code_dim)
    return scorer.input.of_items(table.token * scorer.settings.token_scale, codes).numpy()


@torch.inference_mode()
def states_alone(scorer: Scorer, table: ItemTable) -> NDArray[np.float32]:
    """The adapter's state after one click on each item and nothing else, float32 (N, a)."""
    nothing = np.full(1, np.nan)
    click, role = np.array([int(EventKind.CLICK)]), np.zeros(1, dtype=np.int64)
    clicks = [History(np.array([item]), nothing, click, role, nothing) for item in range(len(table.plain))]
    found = []
    for first in range(0, len(clicks), BATCH):
        batch = ranking_windows(clicks[first : first + BATCH], length=1)
        found.append(scorer.output[:-1](scorer.history_states(batch, table)[:, 0]).numpy())
    return np.concatenate(found)


@torch.inference_mode()
def draw_histories(scorer: Scorer, table: ItemTable, generator: np.random.Generator, *, count: int) -> Drawn:
    """Histories of the longest length the ranker reads, or as long as the catalogue lasts."""
    from transformers import DynamicCache

    length = min(scorer.settings.history, len(table.plain))
    columns = _context(scorer, generator, count, length)
    items = np.zeros((count, length), dtype=np.int64)
    states = np.zeros((count, length, _state_width(scorer)), dtype=np.float32)
    teacher, memory = _Teacher(scorer, table, count), DynamicCache()
    for step in range(length):
        scores = teacher.scores() + torch.from_numpy(generator.gumbel(size=(count, len(table.plain)))).float()
        items[:, step] = scores.argmax(dim=1).numpy()
        batch = _column(items, columns, step)
        tokens = scorer.tokens(batch, table)
        hidden = scorer.trunk(inputs_embeds=tokens, past_key_values=memory, use_cache=True).last_hidden_state
        state = scorer.output[:-1](hidden[:, -1])
        states[:, step] = state.numpy()
        teacher.read(batch, state)
    kinds, attributes = columns["kinds"], columns["attributes"]
    known = {"kind": kinds, "gap": columns["gaps"], "value": columns["values"], "hour": columns["hours"]}
    return Drawn(items, kinds, {name: known[name] for name in scorer.input.sources}, attributes, states)


def drawn_features(drawn: Drawn, rows: NDArray[np.float32], layout: StudentLayout) -> NDArray[np.float32]:
    """`client.compact.features.student_features` after each event, float32 (B, T, G). rows: (N, token + alone)."""
    count, length = drawn.items.shape
    sources = {name: np.eye(BUCKETS[name], dtype=np.float32) for name in layout.sources}
    widths = [*(width for _, width in layout.groups), *map(len, sources.values())]
    out = np.ones((count, length, layout.size), dtype=np.float32)
    sums = [np.zeros((count, len(layout.half_lives), width)) for width in widths]
    decay, mass = 0.5 ** (1 / np.array(layout.half_lives)), np.zeros(len(layout.half_lives))
    end = layout.size - layout.attributes * ATTRIBUTE_BUCKETS
    for step in range(length):
        here, counted = rows[drawn.items[:, step]], drawn.kinds[:, step]
        new = [kinds[counted][:, None] * here[:, :width] for kinds, width in layout.groups]
        new += [one[drawn.buckets[name][:, step]] for name, one in sources.items()]
        sums = [decay[:, None] * total + row[:, None] for total, row in zip(sums, new, strict=True)]
        mass = decay * mass + 1
        parts = [(total / mass[:, None]).reshape(count, -1) for total in sums]
        out[:, step, 1:end] = np.concatenate(parts, axis=1)
    if layout.attributes:
        out[..., end:] = drawn.attributes[:, None]
    return out


class _Teacher:
    """The likelihood's scores of all items after the events read so far, for a batch of histories."""

    def __init__(self, scorer: Scorer, table: ItemTable, count: int) -> None:
        self._scorer, self._table = scorer, table
        self._output = table.rows[:, table.plain.shape[1] : -1]
        self._content = torch.zeros(count, len(table.plain) if scorer.settings.sharpness else table.plain.shape[1])
        self._mass = torch.zeros(count, 1)
        self._features = torch.zeros(count, scorer.layout.features if scorer.layout else 0)
        self._learned = torch.zeros(count, self._output.shape[1])
        self._drawn = torch.zeros(count, len(table.plain), dtype=torch.bool)
        self._started = False

    def scores(self) -> torch.Tensor:
        """(B, N); -inf for items drawn before."""
        scorer, table = self._scorer, self._table
        if not self._started:
            return torch.log(table.share).expand(len(self._mass), -1)
        found = self._learned @ self._output.T + scorer.weight("beta", stage="adapter") * table.rows[:, -1]
        gamma, sharpness = scorer.weight("gamma", stage="adapter"), scorer.settings.sharpness
        mean = self._content / self._mass.clamp(min=1e-9)
        liked = pooled(mean, sharpness=sharpness) if sharpness else mean @ table.plain.T
        found = found + gamma * torch.where(self._mass > 0, liked, 0.0)
        if (prior := scorer.prior_of("adapter")) is not None:
            layout, matrix = prior
            q = self._features @ matrix @ table.codes[:, : layout.output].T
            found = found + prior_scores(q, table.share, settings=scorer.prior_settings, fused=False)
        return found.masked_fill(self._drawn, -torch.inf)

    def read(self, batch: Windows, state: torch.Tensor) -> None:
        """One event more of each history, and what the trunk made of it."""
        scorer, table = self._scorer, self._table
        items, liked = batch.items[:, 0], batch.content.float()  # (B,), (B, 1)
        new = table.plain[items]
        if sharpness := scorer.settings.sharpness:
            new = nearness(new @ table.plain.T, sharpness=sharpness)
        decay = 0.5 ** (1 / scorer.settings.content_half_life)
        self._content = decay * self._content + liked * new
        self._mass = decay * self._mass + liked
        if (layout := scorer.layout) is not None and layout.half_lives:
            counted = liked - layout.skip_penalty * (batch.seen & ~batch.content)
            widths = zip(layout.half_lives, layout.widths, strict=True)
            rows = torch.cat([table.codes[items, :width] for _, width in widths], dim=1)
            each = torch.tensor(layout.half_lives).repeat_interleave(torch.tensor(layout.widths))
            self._features = 0.5 ** (1 / each) * self._features + counted * rows
        self._learned = scorer.output[-1](state)
        self._drawn[torch.arange(len(items)), items] = True
        self._started = True


@dataclass(frozen=True)
class _Moments:
    """Sums over states that ridge regression needs."""

    count: int
    features: NDArray[np.float64]
    states: NDArray[np.float64]
    squares: NDArray[np.float64]
    products: NDArray[np.float64]

    @classmethod
    def zero(cls, size: int, width: int) -> _Moments:
        return cls(0, np.zeros(size), np.zeros(width), np.zeros((size, size)), np.zeros((size, width)))

    def plus(self, features: NDArray[np.float32], states: NDArray[np.float32]) -> _Moments:
        return _Moments(
            self.count + len(features),
            self.features + features.sum(axis=0, dtype=np.float64),
            self.states + states.sum(axis=0, dtype=np.float64),
            self.squares + features.T @ features,
            self.products + features.T @ states,
        )

    def solve(self, ridge: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Start (a,) and matrix (G - 1, a)."""
        f, h = self.features / self.count, self.states / self.count
        square = self.squares / self.count - np.outer(f, f)
        product = self.products / self.count - np.outer(f, h)
        square[np.diag_indices(len(f))] += ridge * max(float(np.trace(square)) / len(f), 1e-12)
        matrix = np.linalg.solve(square, product)
        return (h - f @ matrix).astype(np.float32), matrix.astype(np.float32)


def _context(scorer: Scorer, generator: np.random.Generator, count: int, length: int) -> dict[str, Any]:
    """What is known beside items, drawn evenly, as columns of windows."""
    liked, other = sorted(POSITIVE_KINDS), sorted(set(EventKind) - POSITIVE_KINDS)
    kinds = generator.choice([int(kind) for kind in liked], size=(count, length))
    if "kind" in scorer.input.sources:
        shown = generator.random((count, length)) > LIKED
        kinds[shown] = generator.choice([int(kind) for kind in other], size=int(shown.sum()))
    shape = (count, length)
    attributes = np.zeros((count, ATTRIBUTE_BUCKETS), dtype=np.float32)
    attributes[np.arange(count), generator.integers(ATTRIBUTE_BUCKETS, size=count)] = 1
    return {
        "kinds": kinds.astype(np.int64),
        "gaps": generator.integers(GAP_BUCKETS, size=shape),
        "values": generator.integers(VALUE_BUCKETS, size=shape),
        "hours": generator.integers(HOUR_BUCKETS, size=shape),
        "attributes": attributes,
    }


def _column(items: NDArray[np.int64], columns: dict[str, Any], step: int) -> Windows:
    """One event of each history as windows of length 1."""
    here = slice(step, step + 1)
    arrays = {"items": items[:, here], **{n: c if n == "attributes" else c[:, here] for n, c in columns.items()}}
    kinds = arrays["kinds"]
    arrays["content"] = np.isin(kinds, [int(kind) for kind in POSITIVE_KINDS])
    arrays["seen"] = np.isin(kinds, [int(kind) for kind in SEEN_KINDS])
    arrays["targets"] = np.full_like(kinds, IGNORE)
    arrays["real"] = np.ones_like(kinds, dtype=np.bool_)
    return Windows(**{name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()})


def _state_width(scorer: Scorer) -> int:
    return int(scorer.output[-1].get_parameter("weight").shape[1])
