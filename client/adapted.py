"""One adapter as a device ranks with it, beside others of the same catalogue."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import torch

from client.candidates import WHOLE, Proposer
from client.past import Past
from client.product import EVERY, Product, Rows
from client.samples import ranking_windows
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.deviation import Deviation
from shared.errors import AdapterError
from shared.items import ItemTable
from shared.layout import PriorLayout
from shared.model import Scorer, load_parameters
from shared.prior import PRIOR, prior_scores
from shared.runtime import Runtime
from shared.schema import Event
from shared.windows import Windows


@dataclass(frozen=True)
class TrunkReading:
    """What the trunk made of some events.

    memory: keys and values of each block, (1, heads, n, width). state: h after the last event, (d,), or what a low-rank
    output projection takes of it.
    """

    events: tuple[Event, ...]
    memory: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    state: torch.Tensor


class Shelves:
    """What is the catalogue's alone and serves every adapter: how a large one is searched. Built when first needed.

    layout: of the prior, None without one.
    """

    def __init__(self, table: ItemTable, layout: PriorLayout | None) -> None:
        self._table, self._layout = table, layout
        self._lock = Lock()

    @property
    def large(self) -> bool:
        """Whether a ranking scores some items instead of all."""
        return len(self._table.plain) > WHOLE

    @property
    def codes(self) -> torch.Tensor:
        """What the prior predicts, (N, k)."""
        return self._table.codes[:, : self._layout.output if self._layout else 0]

    @property
    def proposer(self) -> Proposer:
        """Which items are worth scoring. The first to ask builds it, the others wait: seconds for 100,000 items."""
        with self._lock:
            return self._proposer

    @property
    def deviation(self) -> Deviation:
        """How std q follows from what the codes are multiplied with."""
        with self._lock:
            return self._deviation

    def prepare(self) -> None:
        """Build what a large catalogue needs now, so that no ranking waits for it."""
        if self.large:
            _ = self.proposer, self.deviation

    @cached_property
    def _proposer(self) -> Proposer:
        codes = self.codes.numpy() if self._layout else None
        return Proposer(self._table.rows[:, :-1].numpy(), codes)

    @cached_property
    def _deviation(self) -> Deviation:
        return Deviation(self.codes.numpy())


class Ranker:
    """One adapter for good: everything that training or installing changes is its own, the rest is the runtime's.

    popularity: log popularity, (N,). share: (N,), see `ItemTable`. adapter: from the trunk's state as the last output
    projection takes it to the adapter's part. prior: from f(u) to q, None without a prior.
    """

    def __init__(
        self, scorer: Scorer, table: ItemTable, popularity: torch.Tensor, share: torch.Tensor, shelves: Shelves
    ) -> None:
        self.scorer, self.table, self.shelves = scorer, table, shelves
        self.popularity, self.share = popularity, share
        up: torch.Tensor = scorer.output[-1].get_parameter("weight")  # (k, d), or (k, rank)
        self.adapter = Product.of(up.T, table.rows[:, table.plain.shape[1] : -1])
        self.prior: Product | None = None
        if (prior := scorer.prior_of("prior")) is not None:
            self.prior = Product.of(prior[1], shelves.codes)

    @classmethod
    def of(cls, runtime: Runtime) -> Ranker:
        """What is installed in a runtime now."""
        table, scorer = runtime.table, _own(runtime.scorer)
        return cls(scorer, table, table.rows[:, -1].clone(), table.share.clone(), Shelves(table, scorer.layout))

    def expected(self, features: torch.Tensor, rows: Rows = EVERY) -> torch.Tensor | None:
        """The prior's part of the scores after f(u) (F,), (N,) or of some items (n,); None without a prior."""
        if self.prior is None:
            return None
        q, deviation = self.prior(features, rows), None
        if not isinstance(rows, slice):
            deviation = self.shelves.deviation(self.prior.state(features).numpy())
        settings = self.scorer.prior_settings
        return prior_scores(q, self.share[rows], settings=settings, fused=True, deviation=deviation)

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
            return Ranker(scorer, self.table, self.popularity, self.share, self.shelves)
        logs = torch.from_numpy(popularity.copy())
        return Ranker(scorer, self.table, logs, torch.softmax(logs, dim=0), self.shelves)

    def read(self, past: Past, known: TrunkReading | None) -> TrunkReading:
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
        return TrunkReading(past.events, kept, self.scorer.output[:-1](found.last_hidden_state[0, -1]))


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
