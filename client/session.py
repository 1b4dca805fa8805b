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

What a ranking of one moment computed is kept with its snapshot: another page, filter or search of it costs no product.
Of a large catalogue only some items are scored, which the snapshot proposes (`client.candidates`), and nothing is kept.

When more than L events are there, each new one shifts the others' positions, and the first one's gap becomes unknown:
the trunk then reads all L events anew. All supported families (bert, gpt2, llama, qwen2) continue from keys and values.
"""

from __future__ import annotations

from threading import Lock

import numpy as np
import torch
from numpy.typing import NDArray

from client.adapted import Ranker, TrunkReading
from client.candidates import PROPOSED, Wanted
from client.engine import Parts
from client.evidence import Reading
from client.past import Past, Recorder
from client.product import EVERY, Rows
from client.store import History
from shared.adapter import AdapterState
from shared.content import pooled
from shared.errors import AdapterError
from shared.model import Stage
from shared.prior import prior_scores
from shared.runtime import Runtime
from shared.schema import Event, EventKind


class Snapshot:
    """A person's state at one moment under one adapter. Any number of threads may rank with it."""

    def __init__(self, ranker: Ranker, recorder: Recorder, past: Past, known: TrunkReading | None = None) -> None:
        self.past = past
        self.ranker = ranker
        self.known = known  # what was read of these events, or of earlier ones
        self._recorder = recorder
        self._lock = Lock()
        self._scored: dict[Stage, Parts] = {}

    def after(self, event: Event) -> Snapshot:
        """The state once one more event has happened."""
        return Snapshot(self.ranker, self._recorder, self._recorder.after(self.past, event), self.known)

    def scores(self, *, stage: Stage = "adapter", items: NDArray[np.int64] | None = None) -> Parts:
        """The parts of scores by name: content, adapter, popularity, and prior if there is one at this stage. Their sum
        is the score.

        items: which items, (n,) of 0 to N - 1; None is all. float32 (n,) each, not to be written into. All items of a
        catalogue that is not large are scored once and the parts kept.
        """
        if self.ranker.shelves.large:
            return self._parts(stage, EVERY if items is None else torch.from_numpy(items))
        whole = self._scored.get(stage)
        if whole is None:
            whole = self._scored[stage] = self._parts(stage, EVERY)
        return dict(whole) if items is None else {name: part[items] for name, part in whole.items()}

    @torch.inference_mode()
    def candidates(
        self, *, stage: Stage = "adapter", count: int = PROPOSED, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64] | None:
        """Items that are worth scoring, see `client.engine.State.candidates`; None where all are."""
        ranker = self.ranker
        if not ranker.shelves.large:
            return None
        return ranker.shelves.proposer.propose(self._wanted(stage), count=count, allowed=allowed)

    @torch.inference_mode()
    def _parts(self, stage: Stage, rows: Rows) -> Parts:
        """The parts of all items, or of those named."""
        ranker, scorer = self.ranker, self.ranker.scorer
        popularity = ranker.popularity[rows]
        parts = {
            "content": self._content(scorer.weight("gamma", stage=stage), rows),
            "adapter": torch.zeros_like(popularity),
            "popularity": scorer.weight("beta", stage=stage) * popularity,
        }
        if stage == "adapter" and self.past.events:
            parts["adapter"] = ranker.adapter(self._read(), rows)
        if stage != "start" and (expected := ranker.expected(self._features, rows)) is not None:
            parts["prior"] = expected
        found = {name: part.numpy() for name, part in parts.items()}
        for part in found.values():
            part.flags.writeable = False
        return found

    def _wanted(self, stage: Stage) -> Wanted:
        """What is looked for among the catalogue's vectors."""
        ranker, scorer, past = self.ranker, self.ranker.scorer, self.past
        gamma, added = scorer.weight("gamma", stage=stage), scorer.weight("beta", stage=stage) * ranker.popularity
        if scorer.settings.sharpness:
            liked, added = torch.zeros(len(past.content)), added + self._content(gamma, EVERY)
        else:
            liked = gamma * self._mean
        learned = torch.zeros(scorer.output_dim)
        if stage == "adapter" and past.events:
            learned = ranker.adapter.state(self._read())
        taste = torch.cat([liked, learned]).numpy()
        if stage == "start" or ranker.prior is None:
            return Wanted(taste, added.numpy())

        def prior(q: NDArray[np.float32]) -> NDArray[np.float32]:
            estimates = torch.from_numpy(q)
            return prior_scores(estimates, ranker.share, settings=scorer.prior_settings, fused=True).numpy()

        return Wanted(taste, added.numpy(), ranker.prior.state(self._features).numpy(), prior)

    def reading(self) -> Reading:
        """How these scores come from events, for explanations."""
        ranker = self.ranker
        return Reading.of(ranker.scorer, ranker.table, share=ranker.share.numpy())

    @property
    def _features(self) -> torch.Tensor:
        """f(u), (F,)."""
        return torch.from_numpy(self.past.features.astype(np.float32))

    @property
    def _mean(self) -> torch.Tensor:
        """Mean of the plain vectors that count as content, (d,); 0 without any."""
        return torch.from_numpy((self.past.content / max(self.past.mass, 1e-9)).astype(np.float32))

    def _content(self, weight: float, rows: Rows) -> torch.Tensor:
        """The weighted content of all items, (N,), or of those named."""
        past = self.past
        total = torch.zeros_like(self.ranker.popularity[rows])
        if weight == 0 or not past.mass:
            return total
        sharpness = self.ranker.scorer.settings.sharpness
        if not sharpness:
            return self.ranker.table.plain[rows] @ (weight * self._mean)
        shares = self._recorder.shares(past)
        if not shares.any():
            return total
        for share, near in zip(shares.tolist(), past.near, strict=True):
            if near is not None:
                total.add_(torch.from_numpy(near)[rows], alpha=share)
        return weight * pooled(total, sharpness=sharpness)

    def _read(self) -> torch.Tensor:
        """The trunk's state after the last event. The first to ask has the trunk read; the others wait for that."""
        with self._lock:
            self.known = self.ranker.read(self.past, self.known)
            return self.known.state

    def under(self, ranker: Ranker, known: TrunkReading | None = None) -> Snapshot:
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

    def scores(self, *, stage: Stage = "adapter", items: NDArray[np.int64] | None = None) -> Parts:
        """The parts of scores now, see `Snapshot.scores`."""
        return self._now.scores(stage=stage, items=items)

    def add(self, event: Event) -> None:
        """Record an event: every ranking that starts after this returned knows of it. DataError for an unknown item."""
        with self._writing:
            self._now = self._now.after(event)

    def replace(self, history: History) -> None:
        """Put another history in place of all events so far: after an import, a change of attributes, or forgetting."""
        past = self._recorder.read(history)
        with self._writing:
            self._now = Snapshot(self._now.ranker, self._recorder, past)

    def imagined(self, history: History) -> Snapshot:
        """The state if this had been the history; nothing here changes."""
        return Snapshot(self._now.ranker, self._recorder, self._recorder.read(history))

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
