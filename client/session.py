"""One person's ranking, kept ready: an event costs little, and the very next ranking knows of it.

| part | kept | one more event costs |
|---|---|---|
| content | decayed sum of item vectors; with sharpness a row of the catalogue's likeness to each event | O(d); O(N d) |
| prior | decayed sums of item codes, one for each half-life | O(F) |
| adapter | the trunk's keys and values of the events read so far | one token through the trunk |
| popularity | nothing | nothing |

The sum of the parts is `client.ranker.score_catalogue` of the whole history, but for rounding in float32: about 1e-5,
and up to 2.5e-3 in the prior's part of an item whose estimate is next to 0, where the logarithm is steep. Both ways of
ranking lie as far from the same sum in float64.

Everything a ranking reads hangs on one reference to a `Snapshot` that never changes: who ranks takes the reference and
no lock, and an event or a new adapter puts another snapshot in its place. The trunk reads new events when a ranking
first asks for the adapter's part, so that recording never waits for it, nor a ranking without the adapter.

When more than L events are there, each new one shifts the others' positions, and the first one's gap becomes unknown:
the trunk then reads all L events anew. All supported families (bert, gpt2, llama, qwen2) continue from keys and values.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch

from client.engine import Parts
from client.evidence import Reading
from client.past import Past, Recorder
from client.samples import ranking_windows
from client.store import History
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.content import pooled
from shared.errors import AdapterError
from shared.items import ItemTable
from shared.model import Scorer, Stage, load_parameters
from shared.prior import PRIOR, prior_scores
from shared.runtime import Runtime
from shared.schema import Event, EventKind
from shared.windows import Windows

#: Part of the numbers to read at most that must be left for a product of matrices to be worth its memory.
WORTH = 0.8


@dataclass(frozen=True)
class _Reading:
    """What the trunk made of some events.

    memory: keys and values of each block, (1, heads, n, width). state: h after the last event, (d,), or what a low-rank
    output projection takes of it.
    """

    events: tuple[Event, ...]
    memory: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    state: torch.Tensor


@dataclass(frozen=True)
class Product:
    """x M V^T for all items and x (a,): M and V in two steps, or their product (a, N) in one, see `of`."""

    first: torch.Tensor | None
    last: torch.Tensor

    @classmethod
    @torch.inference_mode()
    def of(cls, matrix: torch.Tensor, vectors: torch.Tensor) -> Product:
        """matrix: M (a, b). vectors: V (N, b). Multiplied beforehand where that leaves less to read for each x.

        Reading is what such a product takes time for. On ML-1M, 24 MB instead of 32 for the prior, and 5 instead of 23
        for the adapter.
        """
        (a, b), count = matrix.shape, len(vectors)
        if a * count < WORTH * b * (a + count):
            return cls(None, matrix @ vectors.T)
        return cls(matrix, vectors)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (a,) against all items, (N,)."""
        return x @ self.last if self.first is None else self.last @ (x @ self.first)


class Ranker:
    """One adapter for good: everything that training or installing changes is its own, the rest is the runtime's.

    popularity: log popularity, (N,). share: (N,), see `ItemTable`. adapter: from the trunk's state as the last output
    projection takes it to the adapter's part. prior: from f(u) to q, None without a prior.
    """

    def __init__(self, scorer: Scorer, table: ItemTable, popularity: torch.Tensor, share: torch.Tensor) -> None:
        self.scorer, self.table = scorer, table
        self.popularity, self.share = popularity, share
        up: torch.Tensor = scorer.output[-1].get_parameter("weight")  # (k, d), or (k, rank)
        self.adapter = Product.of(up.T, table.rows[:, table.plain.shape[1] : -1])
        self.prior: Product | None = None
        if (prior := scorer.prior_of("prior")) is not None:
            layout, matrix = prior
            self.prior = Product.of(matrix, table.codes[:, : layout.output])

    @classmethod
    def of(cls, runtime: Runtime) -> Ranker:
        """What is installed in a runtime now."""
        table = runtime.table
        return cls(_own(runtime.scorer), table, table.rows[:, -1].clone(), table.share.clone())

    def with_adapter(self, state: AdapterState) -> Ranker:
        """Another adapter beside this one, which stays as it is; arrays as for `Runtime.install`."""
        if not state.is_finite():
            raise AdapterError("found an adapter with entries that are not finite; the one in use stays")
        arrays = dict(state.arrays)
        popularity, prior = arrays.pop(POPULARITY, None), arrays.pop(PRIOR, None)
        if popularity is not None and popularity.shape != tuple(self.popularity.shape):
            raise AdapterError(
                f"found popularity of shape {popularity.shape}; expected {tuple(self.popularity.shape)},"
                " one entry for each item of the catalogue"
            )
        scorer = _own(self.scorer)
        scorer.set_prior(prior)
        load_parameters(scorer, arrays)
        if popularity is None:
            return Ranker(scorer, self.table, self.popularity, self.share)
        logs = torch.from_numpy(popularity.copy())
        return Ranker(scorer, self.table, logs, torch.softmax(logs, dim=0))

    def read(self, past: Past, known: _Reading | None) -> _Reading:
        """The trunk's reading of all events of a past; `known` is continued where the past begins with its events."""
        from transformers import DynamicCache

        if known is None or past.events[: len(known.events)] != known.events:
            start, memory = 0, DynamicCache()
        else:
            start, memory = len(known.events), DynamicCache(known.memory)
        if known is not None and start == len(past.events):
            return known
        before = min(start, 1)  # the gap of the first new event is to the one before it
        history = past.history(start - before)
        batch = _without_first(ranking_windows([history], length=len(history)), before)
        tokens = self.scorer.tokens(batch, self.table)  # (1, n, d)
        found = self.scorer.trunk(inputs_embeds=tokens, past_key_values=memory, use_cache=True)
        kept = tuple((layer.keys, layer.values) for layer in found.past_key_values.layers)
        return _Reading(past.events, kept, self.scorer.output[:-1](found.last_hidden_state[0, -1]))


class Snapshot:
    """A person's state at one moment under one adapter. Any number of threads may rank with it."""

    def __init__(self, ranker: Ranker, recorder: Recorder, past: Past, known: _Reading | None = None) -> None:
        self.past = past
        self.ranker = ranker
        self.known = known  # what was read of these events, or of earlier ones
        self._recorder = recorder
        self._lock = Lock()

    def after(self, event: Event) -> Snapshot:
        """The state once one more event has happened."""
        return Snapshot(self.ranker, self._recorder, self._recorder.after(self.past, event), self.known)

    @torch.inference_mode()
    def scores(self, *, stage: Stage = "adapter") -> Parts:
        """The parts of all items' scores by name, float32 (N,) each: content, adapter, popularity, and prior if there
        is one at this stage. Their sum is the score.
        """
        ranker, scorer = self.ranker, self.ranker.scorer
        parts = {
            "content": self._content(scorer.weight("gamma", stage=stage)),
            "adapter": torch.zeros_like(ranker.popularity),
            "popularity": scorer.weight("beta", stage=stage) * ranker.popularity,
        }
        if stage == "adapter" and self.past.events:
            parts["adapter"] = ranker.adapter(self._read())
        if stage != "start" and ranker.prior is not None:
            q = ranker.prior(torch.from_numpy(self.past.features.astype(np.float32)))
            parts["prior"] = prior_scores(q, ranker.share, settings=scorer.prior_settings, fused=True)
        return {name: part.numpy() for name, part in parts.items()}

    def reading(self) -> Reading:
        """How these scores come from events, for explanations."""
        ranker = self.ranker
        return Reading.of(ranker.scorer, ranker.table, share=ranker.share.numpy())

    def _content(self, weight: float) -> torch.Tensor:
        """The weighted content of all items, (N,)."""
        table, past = self.ranker.table, self.past
        total = torch.zeros(len(table.plain))
        if weight == 0 or not past.mass:
            return total
        sharpness = self.ranker.scorer.settings.sharpness
        if not sharpness:
            mean = (past.content / max(past.mass, 1e-9)).astype(np.float32)
            return table.plain @ torch.from_numpy(weight * mean)
        shares = self._recorder.shares(past)
        if not shares.any():
            return total
        for share, near in zip(shares.tolist(), past.near, strict=True):
            if near is not None:
                total.add_(torch.from_numpy(near), alpha=share)
        return weight * pooled(total, sharpness=sharpness)

    def _read(self) -> torch.Tensor:
        """The trunk's state after the last event. The first to ask has the trunk read; the others wait for that."""
        with self._lock:
            self.known = self.ranker.read(self.past, self.known)
            return self.known.state

    def under(self, ranker: Ranker, known: _Reading | None = None) -> Snapshot:
        """The same events under another adapter. known: what that adapter has read of them so far."""
        return Snapshot(ranker, self._recorder, self.past, known)

    def check(self) -> None:
        """Rank once. AdapterError when that does not give a finite number for each part and item."""
        probe = self if self.past.events else self.after(Event(0, float("nan"), EventKind.CLICK))
        for name, part in probe.scores().items():
            if part.shape != tuple(self.ranker.popularity.shape) or not np.isfinite(part).all():
                raise AdapterError(
                    f"found an adapter whose {name} part is not one finite number for each of"
                    f" {len(self.ranker.popularity)} items; the one in use stays"
                )


class Session:
    """What ranking one person needs, for any number of threads.

    It starts with what is installed in the runtime and copies what can change there (the trainable parameters and two
    columns of popularity), so that the runtime may be trained or installed into while the session ranks. Build it
    while nobody trains.
    """

    def __init__(self, runtime: Runtime, history: History) -> None:
        plain, codes = runtime.table.plain.numpy(), runtime.table.codes.numpy()
        recorder = Recorder(runtime.config.model, runtime.scorer.layout, plain=plain, codes=codes)
        self._recorder = recorder
        self._writing, self._installing = Lock(), Lock()
        self._now = Snapshot(Ranker.of(runtime), recorder, recorder.read(history))

    @property
    def now(self) -> Snapshot:
        """The state of this moment: with every event whose `add` has returned."""
        return self._now

    def scores(self, *, stage: Stage = "adapter") -> Parts:
        """The parts of all items' scores now, see `Snapshot.scores`."""
        return self._now.scores(stage=stage)

    def add(self, event: Event) -> None:
        """Record an event: every ranking that starts after this returned knows of it. DataError for an unknown item."""
        with self._writing:
            self._now = self._now.after(event)

    def replace(self, history: History) -> None:
        """Put another history in place of all events so far: after an import, a change of attributes, or forgetting."""
        past = self._recorder.read(history)
        with self._writing:
            self._now = Snapshot(self._now.ranker, self._recorder, past)

    def install(self, state: AdapterState) -> AdapterError | None:
        """Change to another global adapter, its popularity and its prior; arrays as for `Runtime.install`.

        The new one is built beside the old one, reads the history and is checked before one reference changes; rankings
        that began earlier finish with the old one. Returns None, or why the old one stayed.
        """
        with self._installing:
            before = self._now
            try:
                ranker = before.ranker.with_adapter(state)
                ready = before.under(ranker)
                ready.check()
            except AdapterError as error:
                return error
            with self._writing:
                self._now = self._now.under(ranker, ready.known)  # continued with what was recorded meanwhile
        return None


def _own(scorer: Scorer) -> Scorer:
    """A copy with parameters of its own where they are trained; frozen ones, buffers and the prior are shared."""
    trained = {id(parameter) for parameter in scorer.adapter_parameters.values()}
    fixed = [tensor for tensor in (*scorer.parameters(), *scorer.buffers()) if id(tensor) not in trained]
    if scorer.prior is not None:
        fixed.append(scorer.prior)
    return copy.deepcopy(scorer, {id(tensor): tensor for tensor in fixed})


def _without_first(batch: Windows, count: int) -> Windows:
    """The windows without their first `count` columns."""
    return Windows(**{name: c if name == "attributes" else c[:, count:] for name, c in vars(batch).items()})
