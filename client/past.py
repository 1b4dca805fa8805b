"""What a person did, as running sums that one more event changes in time O(d): what content and the prior read.

    s <- 0.5^(1/h) s + x_new - 0.5^(L/h) x_gone         the sum of 0.5^(age/h) x over the newest L events

A ranking reads the newest L events only, so the one that leaves is taken out again. Sums are float64. Rounding fades
like the events themselves, and a remaining event always weighs more than one that leaves, so what is taken out leaves
no error to speak of behind, however long this goes on; when no event counts any more, sums are set to zero outright.

With sharpness, content is a sum over events for each *item*, of terms that differ by a factor of up to
exp(2 sharpness): taking the term of a leaving event out again could cost all digits of a small remainder. There the
term of each event is kept, one row of N numbers (4 L N bytes), and weighted anew for each ranking. That costs less
than the product that made the newest row, and nothing can drift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from client.samples import seen_items
from client.store import History
from shared.errors import DataError
from shared.layout import PriorLayout
from shared.schema import POSITIVE_KINDS, SEEN_KINDS, Event, EventKind
from shared.sections import Model

Sums = NDArray[np.float64]


class CodeRows(Protocol):
    """Item codes by catalogue index: an array (N, c), or rows that are decoded when they are asked for."""

    def __getitem__(self, item: int, /) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Past:
    """One person's events and their sums. Never changed: `Recorder.after` makes the next one.

    events: the newest L, oldest first. count: of all events there were. seen: bool (N,), items that a ranking leaves
    out. attributes: what the device knows about the person. content: float64 (d,), decayed sum of the plain vectors
    that count as content; 0 with sharpness. mass: sum of their weights. features: f(u) of the prior, float64 (F,), see
    `shared.prior`; F is 0 without one. near: with sharpness, each event's exp(sharpness (<p_t, p_i> - 1)), float32
    (N,), None where an event is not content.
    """

    events: tuple[Event, ...]
    count: int
    seen: NDArray[np.bool_]
    attributes: Mapping[str, str]
    content: Sums
    mass: float
    features: Sums
    near: tuple[NDArray[np.float32] | None, ...] = field(repr=False)

    def history(self, start: int = 0) -> History:
        """The events kept, from number `start` of them on."""
        events = self.events[start:]
        return History(
            items=np.array([event.item for event in events], dtype=np.int64),
            times=np.array([event.time for event in events], dtype=np.float64),
            kinds=np.array([event.kind for event in events], dtype=np.int64),
            roles=np.zeros(len(events), dtype=np.int64),
            values=np.array([event.value for event in events], dtype=np.float64),
            attributes=self.attributes,
        )


class Recorder:
    """Makes and extends `Past` for one model and catalogue; it depends on no adapter."""

    def __init__(
        self, model: Model, layout: PriorLayout | None, *, plain: NDArray[np.float32], codes: CodeRows
    ) -> None:
        """plain: unit rows that content compares, float32 (N, d). codes: as wide as the prior reads them."""
        self._plain, self._codes = plain, codes
        self._length, self._sharpness = model.history, model.sharpness
        self._decay = 0.5 ** (1 / model.content_half_life)
        self._gone = 0.5 ** (model.history / model.content_half_life)
        layout = layout or PriorLayout((), (), 0)
        self._widths, self._penalty = layout.widths, layout.skip_penalty
        each = np.repeat(np.array(layout.half_lives, dtype=np.float64), self._widths)  # (F,)
        self._decays, self._gones = 0.5 ** (1 / each), 0.5 ** (model.history / each)

    def read(self, history: History) -> Past:
        """The past of a whole history."""
        seen = np.zeros(len(self._plain), dtype=np.bool_)
        seen[seen_items(history)] = True
        newest = history[-self._length :]
        past = Past(
            events=(),
            count=len(history) - len(newest),
            seen=seen,
            attributes=dict(history.attributes),
            content=np.zeros(self._plain.shape[1]),
            mass=0.0,
            features=np.zeros(len(self._decays)),
            near=(),
        )
        columns = (newest.items.tolist(), newest.times.tolist(), newest.kinds.tolist(), newest.values.tolist())
        for item, time, kind, value in zip(*columns, strict=True):
            past = self.after(past, Event(item, time, EventKind(kind), value))
        return past

    def after(self, past: Past, event: Event) -> Past:
        """The past with one more event. DataError when the catalogue has no such item."""
        if not 0 <= event.item < len(past.seen):
            raise DataError(
                f"found an event on item number {event.item}; this catalogue has 0 to {len(past.seen) - 1}."
                " Record events on its items only"
            )
        full = len(past.events) == self._length
        leaving = past.events[0] if full else None
        events = (*past.events[full:], event)
        features = self._features(past, event, leaving)
        if not any(self._counted(kept) for kept in events):
            features = np.zeros_like(features)
        mass = self._decay * past.mass + self._liked(event)
        mass -= self._gone * self._liked(leaving)
        any_content = any(kept.kind in POSITIVE_KINDS for kept in events)
        changed = replace(
            past,
            events=events,
            count=past.count + 1,
            seen=_with(past.seen, event),
            mass=mass if any_content else 0.0,
            features=features,
        )
        if self._sharpness:
            return replace(changed, near=(*past.near[full:], self._near(event)))
        content = self._decay * past.content
        if event.kind in POSITIVE_KINDS:
            content += self._plain[event.item]
        if leaving is not None and leaving.kind in POSITIVE_KINDS:
            content -= self._gone * self._plain[leaving.item]
        return replace(changed, content=content if any_content else np.zeros_like(content))

    def shares(self, past: Past) -> NDArray[np.float32]:
        """w: what part of content(u) each kept event makes up, float32 (n,), as in `shared.content`."""
        ages = np.arange(len(past.events) - 1, -1, -1)
        liked = np.array([self._liked(event) for event in past.events])
        weights = (self._decay**ages * liked).astype(np.float32)
        return weights / max(weights.sum(), np.float32(1e-9))

    def _features(self, past: Past, event: Event, leaving: Event | None) -> Sums:
        """f(u) after the event."""
        features = self._decays * past.features
        if weight := self._counted(event):
            features += weight * self._code(event)
        if leaving is not None and (weight := self._counted(leaving)):
            features -= self._gones * (weight * self._code(leaving))
        return features

    def _code(self, event: Event) -> Sums:
        """The item's code as far as each half-life reads it, (F,)."""
        if not self._widths:
            return np.zeros(0)
        code = self._codes[event.item]
        return np.concatenate([code[:width] for width in self._widths], dtype=np.float64)

    def _near(self, event: Event) -> NDArray[np.float32] | None:
        """How near all items are to the event's, as `shared.content.nearness` has it, (N,)."""
        if event.kind not in POSITIVE_KINDS:
            return None
        likeness = self._plain @ self._plain[event.item]
        return np.exp(np.float32(self._sharpness) * (likeness - np.float32(1)))

    def _counted(self, event: Event) -> float:
        """What the event counts in the prior's features."""
        if event.kind in POSITIVE_KINDS:
            return 1.0
        return -self._penalty if event.kind in SEEN_KINDS else 0.0

    @staticmethod
    def _liked(event: Event | None) -> float:
        return 1.0 if event is not None and event.kind in POSITIVE_KINDS else 0.0


def _with(seen: NDArray[np.bool_], event: Event) -> NDArray[np.bool_]:
    if event.kind not in SEEN_KINDS or seen[event.item]:
        return seen
    seen = seen.copy()
    seen[event.item] = True
    return seen
