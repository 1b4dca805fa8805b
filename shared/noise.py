"""How much noise each side adds so that the released quantity carries the planned amount.

| trust | the device adds | the sum over n replies carries |
|---|---|---|
| local | z C | z C sqrt(n) |
| aggregate | z C / sqrt(quorum) | z C sqrt(n / quorum), at least z C once the quorum is met |
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from shared.errors import ProtocolError
from shared.privacy.accounting import Release


@dataclass(frozen=True)
class Noise:
    """The noise of one phase, as the manifest states it.

    mode: none or event. trust: aggregate or local. multiplier: z of the protected quantity, 0 only with mode none.
    clip: L2 sensitivity C of one unit. quorum: least number of replies that will ever be summed.
    """

    mode: str
    trust: str
    multiplier: float
    clip: float
    quorum: int

    @property
    def share(self) -> float:
        """Noise multiplier of the noise that one device adds itself."""
        if self.mode == "none":
            return 0.0
        return self.multiplier / math.sqrt(self.quorum) if self.trust == "aggregate" else self.multiplier

    def std_of_sum(self, replies: int) -> float:
        """Standard deviation of the noise in the sum of so many replies."""
        return self.share * self.clip * math.sqrt(replies)

    def release(self, phase: str, *, sample_rate: float = 1.0, steps: int = 1) -> Release:
        """What a device's ledger writes down for it."""
        return Release(phase, self.multiplier, sample_rate, steps)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Noise:
        """Read from a manifest; ProtocolError for anything that would mean less noise than it says."""
        try:
            noise = cls(
                mode=str(values["mode"]),
                trust=str(values["trust"]),
                multiplier=float(values["multiplier"]),
                clip=float(values["clip"]),
                quorum=int(values["quorum"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ProtocolError("found no readable noise plan in the manifest") from None
        known = noise.mode in ("none", "event") and noise.trust in ("aggregate", "local")
        enough = noise.mode == "none" or (0 < noise.multiplier < math.inf and 0 < noise.clip < math.inf)
        if not (known and enough and noise.quorum >= 1):
            raise ProtocolError(f"found an unusable noise plan {noise}")
        return noise
