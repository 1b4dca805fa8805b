"""What a device's owner allows: the least protection, and the budget of the device's whole life."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import ConfigError, ProtocolError
from shared.noise import MODES, Noise


@dataclass(frozen=True)
class Limits:
    """What this device accepts: the least protection, and the budget of its whole life.

    mode: none accepts anything; event, user and both refuse rounds that leave one of their units unprotected.
    trust: local refuses to rely on the sum. epsilon: budget of each unit at delta. user_epsilon: the person's own
    budget where it differs, else 0. secure: refuse rounds in which the server could see this device's own update.
    """

    mode: str
    trust: str
    epsilon: float
    delta: float
    user_epsilon: float = 0.0
    secure: bool = False

    @classmethod
    def of_owner(
        cls, *, mode: str, trust: str, epsilon: float, delta: float, user_epsilon: float = 0.0, secure: bool = False
    ) -> Limits:
        """What the owner asks for on a command line. ConfigError for an unknown mode or trust, or a useless delta."""
        for name, value, known in (
            ("privacy", mode, ("event", "user", "both", "none")),
            ("trust", trust, ("aggregate", "local")),
        ):
            if value not in known:
                raise ConfigError(f"--{name}: found {value!r}; expected one of {', '.join(known)}")
        if user_epsilon and mode != "both":
            raise ConfigError("--user-epsilon belongs to --privacy both; use --epsilon")
        if not delta > 0:
            raise ConfigError(f"--delta: found {delta}; expected more than 0, for example 1e-5")
        return cls(mode, trust, epsilon=epsilon, delta=delta, user_epsilon=user_epsilon, secure=secure)

    @property
    def budgets(self) -> dict[str, float]:
        """Epsilon by unit."""
        return {"event": self.epsilon, "user": self.user_epsilon or self.epsilon}

    def check(self, noise: Noise, *, secure: bool, simulated: bool) -> None:
        """ProtocolError for a round that protects less than this.

        secure: whether the message belongs to secure aggregation. simulated: a virtual device, whose server really
        draws cohorts at random; a real device cannot see how, nor how often, it is drawn.
        """
        if bool(noise.scale) != secure:
            raise ProtocolError("found integer noise without secure aggregation, or the other way round")
        if not set(MODES[self.mode]) <= set(MODES[noise.mode]):
            raise ProtocolError("the server asks for less protection than this device accepts", code="trust")
        if noise.mode != "none" and self.trust == "local" and noise.trust != "local":
            raise ProtocolError("the server asks this device to rely on the sum", code="trust")
        if self.secure and not secure:
            raise ProtocolError("this device answers under secure aggregation only", code="trust")
        if (noise.user_rate < 1 or noise.user_steps) and not simulated:
            raise ProtocolError("a device cannot see how cohorts are drawn, nor how often", code="trust")
