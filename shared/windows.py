"""A batch of event windows: what the history trunk and the prior read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Upper edges of the time-gap buckets in seconds: a minute, an hour, 6 hours, a day, a week, 30 days; then
#: longer, and a last bucket for "unknown" (first event, or a source without times).
GAP_EDGES = (60.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0)
GAP_BUCKETS = len(GAP_EDGES) + 2
#: Upper edges of the value buckets: whole stars or marks up to ten, then amounts; then larger, and "no value".
VALUE_EDGES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 100.0, 1_000.0)
VALUE_BUCKETS = len(VALUE_EDGES) + 2
#: Hours of the day in UTC, and a last bucket for "unknown".
HOUR_BUCKETS = 24 + 1
#: What a device knows about its person, each statement hashed into one of so many buckets.
ATTRIBUTE_BUCKETS = 32
IGNORE = -100


@dataclass(frozen=True)
class Windows:
    """A batch of event windows, padded on the right.

    items: int64 (B, L). kinds, gaps, values, hours: int64 (B, L), bucket of each event.
    attributes: float32 (B, A), how many of the person's attributes fall into each bucket.
    content: bool (B, L), events that count towards content(u).
    seen: bool (B, L), events after which their item is no longer recommended.
    targets: int64 (B, L), the item that follows each position, IGNORE where there is nothing to predict.
    real: bool (B, L), False on padding.
    """

    items: torch.Tensor
    kinds: torch.Tensor
    gaps: torch.Tensor
    values: torch.Tensor
    hours: torch.Tensor
    attributes: torch.Tensor
    content: torch.Tensor
    seen: torch.Tensor
    targets: torch.Tensor
    real: torch.Tensor

    def __len__(self) -> int:
        return int(self.items.shape[0])

    @property
    def last(self) -> torch.Tensor:
        """Position of each window's last real event, int64 (B,); 0 for an empty window."""
        return (self.real.sum(1) - 1).clamp(min=0)

    def ages(self, *, last: bool = False) -> torch.Tensor:
        """How many events ago each event was, int64 (1, L, L): row t at position t, negative for what comes later.

        last: only at the last event of each window, (B, 1, L).
        """
        import torch

        order = torch.arange(self.items.shape[1])
        at = self.last[:, None] if last else order[None]
        return at[..., None] - order

    def shorten(self, length: int) -> Windows:
        """The first `length` columns; for dropping columns that are padding everywhere."""
        columns = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return Windows(**{name: c if name == "attributes" else c[:, :length] for name, c in columns.items()})

    def pick(self, rows: torch.Tensor) -> Windows:
        """The windows of the given rows."""
        return Windows(**{name: getattr(self, name)[rows] for name in self.__dataclass_fields__})
