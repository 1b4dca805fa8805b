"""How much noise goes into one phase, who adds it, and what that costs each unit.

Everything is in units of the reply. The protected quantity is one reply under trust = local, else the sum of a
cohort's replies, and its noise has standard deviation `std`:

| who adds | when | each device adds | the sum over n replies carries |
|---|---|---|---|
| device | trust = local | std | std sqrt(n) |
| device | trust = aggregate, event level or secure aggregation | std / sqrt(quorum) | std sqrt(n / quorum) |
| server | trust = aggregate, user level | nothing | std |

With two units one noise serves both: it is the larger of what each asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shared.errors import ProtocolError
from shared.privacy.accounting import Release
from shared.privacy.plan import lattice_sensitivity

#: A clip below this, or above its inverse, leaves the range in which float32 noise keeps its size.
LEAST_CLIP = 1e-18
MODES: dict[str, tuple[str, ...]] = {"none": (), "event": ("event",), "user": ("user",), "both": ("event", "user")}


@dataclass(frozen=True)
class Layer:
    """Protection of one unit. multiplier: z. clip: L2 sensitivity of the reply to one unit."""

    multiplier: float
    clip: float


@dataclass(frozen=True)
class Noise:
    """The noise of one phase, as the manifest states it.

    mode: none, event, user or both. trust: aggregate or local. by: device or server. quorum: least number of replies
    that will ever be summed. event, user: the protected units. bound: L2 norm every reply is clipped to, infinity
    for none. scale: integer steps per unit of the reply under secure aggregation, 0 for real numbers.
    user_rate, user_steps: Poisson rate and number of rounds that the user layer is charged for at once; 1 and 0 when
    every participation is charged on its own.
    """

    mode: str
    trust: str
    by: str
    quorum: int
    event: Layer | None = None
    user: Layer | None = None
    bound: float = math.inf
    scale: float = 0.0
    user_rate: float = 1.0
    user_steps: int = 0

    @property
    def std(self) -> float:
        """Standard deviation that the protected quantity must carry, in units of the reply; 0 without protection.

        For integer noise see `lattice_std`.
        """
        return max((layer.multiplier * layer.clip for layer in (self.event, self.user) if layer), default=0.0)

    @property
    def device_std(self) -> float:
        """Standard deviation of the noise that one device adds itself."""
        if self.by == "server":
            return 0.0
        return self.std / math.sqrt(self.quorum) if self.trust == "aggregate" else self.std

    @property
    def by_opacus(self) -> bool:
        """Whether a training reply's noise is added inside its local steps and not to the whole reply."""
        return self.mode == "event" and not self.scale

    @property
    def server_std(self) -> float:
        """Standard deviation of the noise that the server adds to the sum."""
        return self.std if self.by == "server" else 0.0

    def std_of_sum(self, replies: int) -> float:
        """Standard deviation of all the noise in the sum of so many replies."""
        return math.hypot(self.server_std, self.device_std * math.sqrt(replies))

    def lattice_std(self, dimension: int) -> float:
        """Standard deviation in integer steps that the sum must carry under secure aggregation."""
        layers = {"event": self.event, "user": self.user}
        needs = [layer.multiplier * self._steps(unit, layer, dimension)[0] for unit, layer in layers.items() if layer]
        return max(needs, default=0.0)

    def releases(self, phase: str, *, dimension: int, sample_rate: float = 1.0, steps: int = 1) -> list[Release]:
        """What a device's ledger writes down for it, one release per protected unit.

        sample_rate, steps: of event windows, as Opacus draws them.
        """
        found = []
        if self.event:
            l2, l1, z = self._price("event", self.event, dimension)
            # several local steps are noised step by step, so nothing but the planned noise is in each
            z = self.event.multiplier if steps > 1 else z
            found.append(Release(phase, z, sample_rate, steps, "event", l2, l1))
        if self.user:
            l2, l1, z = self._price("user", self.user, dimension)
            whole_run = self.user_steps > 0 and phase == "train"
            rate, times = (self.user_rate, self.user_steps) if whole_run else (1.0, 1)
            found.append(Release(phase, z, rate, times, "user", l2, l1))
        return found

    def _price(self, unit: str, layer: Layer, dimension: int) -> tuple[float, float, float]:
        """L2, L1 and z of the noise that is really added, which the other unit may have made larger."""
        if not self.scale:
            return 0.0, 0.0, self.std / layer.clip
        l2, l1 = self._steps(unit, layer, dimension)
        return l2, l1, self.lattice_std(dimension) / l2

    def _steps(self, unit: str, layer: Layer, dimension: int) -> tuple[float, float]:
        return lattice_sensitivity(unit, grid=self.scale * layer.clip, dimension=dimension)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values for a manifest."""
        values = asdict(self)
        return {**values, "bound": None if math.isinf(self.bound) else self.bound}

    @classmethod
    def from_dict(cls, values: Any) -> Noise:
        """Read from a manifest; ProtocolError for anything that would mean less noise than it says."""
        try:
            noise = cls(
                mode=str(values["mode"]),
                trust=str(values["trust"]),
                by=str(values["by"]),
                quorum=int(values["quorum"]),
                event=_layer(values["event"]),
                user=_layer(values["user"]),
                bound=math.inf if values["bound"] is None else float(values["bound"]),
                scale=float(values["scale"]),
                user_rate=float(values["user_rate"]),
                user_steps=int(values["user_steps"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ProtocolError("found no readable noise plan in the manifest") from None
        if not noise._is_sound():
            raise ProtocolError(f"found an unusable noise plan {noise}")
        return noise

    def _is_sound(self) -> bool:
        layers = {"event": self.event, "user": self.user}
        return (
            self.mode in MODES
            and self.trust in ("aggregate", "local")
            and self.by in ("device", "server")
            and (self.by == "device" or (self.trust == "aggregate" and self.user is not None))
            and tuple(unit for unit, layer in layers.items() if layer) == MODES[self.mode]
            and all(0 < layer.multiplier < math.inf for layer in layers.values() if layer)
            and all(LEAST_CLIP <= layer.clip <= 1 / LEAST_CLIP for layer in layers.values() if layer)
            and self.quorum >= 1
            and self.bound >= LEAST_CLIP
            and (self.user is None or self.bound <= self.user.clip)
            and 0 <= self.scale < math.inf
            and (self.scale == 0 or (self.by == "device" and self.trust == "aggregate" and self.bound < math.inf))
            and 0 < self.user_rate <= 1
            and self.user_steps >= 0
            and (self.user_rate == 1 or self.user_steps > 0)
        )


def _layer(values: Mapping[str, Any] | None) -> Layer | None:
    return None if values is None else Layer(float(values["multiplier"]), float(values["clip"]))
