"""Which directions of the item codes the prior reads and predicts: what can be known of it without torch."""

from __future__ import annotations

from dataclasses import dataclass

from shared.sections import Prior

#: Names of the moments in a reply.
MOMENTS = ("prior_features", "prior_targets")


@dataclass(frozen=True)
class PriorLayout:
    """Which directions of the codes the prior reads and predicts.

    half_lives: in events. widths: directions read at each of them. output: directions predicted, k.
    skip_penalty: what a skip counts against its item in the features; a like counts 1.
    """

    half_lives: tuple[float, ...]
    widths: tuple[int, ...]
    output: int
    skip_penalty: float = 0.0

    @classmethod
    def of(cls, settings: Prior, *, available: int) -> PriorLayout:
        """The layout that settings ask for, cut to the directions that the codes have."""
        widths = settings.widths or (settings.output,) * len(settings.half_lives)
        widths = tuple(min(width, available) for width in widths)
        return cls(settings.half_lives, widths, min(settings.output, available), settings.skip_penalty)

    @property
    def features(self) -> int:
        """Entries F of f(u)."""
        return sum(self.widths)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of a device's moments: the upper triangle of A, and T."""
        return {MOMENTS[0]: (self.features * (self.features + 1) // 2,), MOMENTS[1]: (self.features, self.output)}
