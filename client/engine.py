"""What a device ranks with, whatever it runs on.

The full model (`client.full`) needs torch; an exported one (`client.compact`) does not. Everything above the engine
works in numpy and asks for no more than what stands here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from client.store import History
from shared.catalogue import Catalogue
from shared.schema import Event

if TYPE_CHECKING:
    from client.evidence import Reading
    from client.past import Past
    from client.search import QuerySpace
    from shared.model import Stage

#: Names of the kinds of engine, as `kind` gives them and the command line takes them.
EngineKind = Literal["full", "int8", "student"]
#: The parts of items' scores by name, float32 (N,) each, or (n,) where some are named; their sum is the score.
Parts = dict[str, NDArray[np.float32]]


class State(Protocol):
    """A person's state at one moment under one adapter. It never changes, and any number of threads rank with it."""

    past: Past

    def scores(self, *, stage: Stage = "adapter", items: NDArray[np.int64] | None = None) -> Parts:
        """The parts content, adapter, popularity, and prior if there is one, see `Parts`; not to be written into.

        items: only these items' parts, (n,) each in the order given: what the whole catalogue's parts have there, but
        for rounding in float32. None is all items.
        """
        ...

    def candidates(
        self, *, stage: Stage = "adapter", count: int = 1_000, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64] | None:
        """Items among which the best ones are, int64, each once; None where the whole catalogue is scored in no time.

        allowed: bool (N,), which items may be shown; None is all. About `count` of them, or all where few are allowed.
        So a ranking is `items = state.candidates(allowed=allowed)`, then `state.scores(items=items)`.
        """
        ...

    def reading(self) -> Reading:
        """How this state's scores come from events, for explanations."""
        ...


class Engine(Protocol):
    """Ranks one person's next item. An event that `add` has returned from is known to every ranking that starts later.

    kind: what it is. catalogue: the N items it ranks. adapter: which adapter it holds, as its manifest tells (run and
    round), empty without one. plain: unit rows that content compares, float32 (N, d). popularity: log popularity, (N,).
    """

    kind: EngineKind
    catalogue: Catalogue
    adapter: dict[str, object]

    @property
    def plain(self) -> NDArray[np.float32]: ...

    @property
    def popularity(self) -> NDArray[np.float32]: ...

    @property
    def now(self) -> State:
        """The state of this moment."""
        ...

    @property
    def length(self) -> int:
        """Newest events that a ranking reads, L."""
        ...

    def add(self, event: Event) -> None:
        """Record an event in the state. DataError for an unknown item."""
        ...

    def replace(self, history: History) -> None:
        """Put another history in place of all events so far."""
        ...

    def imagined(self, history: History) -> State:
        """The state if this had been the history; the engine stays as it is."""
        ...

    def install(self, folder: Path) -> bool:
        """Change to another adapter without dropping a request; False where another engine must be made for it.

        AdapterError when it is damaged, does not fit or fails its self-check; the old one stays then.
        """
        ...

    def own_weights(self, history: History) -> NDArray[np.float32] | None:
        """A person's weights learned from a history, (3,), see `client.personal`; None where this engine cannot."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Raw vectors of texts, float32 (n, d), for search and steering."""
        ...

    @property
    def space(self) -> QuerySpace:
        """How raw vectors of texts become comparable with `plain`."""
        ...
