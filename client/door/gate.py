"""Whether a message is answered at all: what the person said, what the machine does, and how much was given already.

None of it looks at events. What it says to a server is one of three codes, so that a server does not learn which:

| code | because |
|---|---|
| busy | another message is being answered, or the last one is too recent, or there were too many today |
| paused | the person does not take part, the machine runs on battery, or others use it |
| budget | the most answers that its owner allows, to this run or ever, have been given |
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, fields

import psutil  # type: ignore[import-untyped]
from flwr.app import RecordDict

from client.door import wire
from client.door.sent import SentLog
from client.profile import Profile
from shared.adapter import AdapterState
from shared.errors import ConfigError, ProtocolError
from shared.privacy.accounting import Release
from shared.protocol import Manifest, decode_request
from shared.secagg.messages import RECORD, decode_question, is_secure

#: Linux damps its shortest load average with this time, in seconds.
_LOAD_MEMORY = 60.0
_MINUTE, _DAY = 60.0, 86_400.0


@dataclass(frozen=True)
class Policy:
    """When this device trains for others, and how much. ConfigError for a number that is negative or none.

    on_ac: only with power from the mains; a machine without a battery counts as that. max_load: one-minute load of
    other programs for each core, infinity for any. min_seconds: between two answers computed from behaviour.
    max_per_day, max_per_run, max_rounds: of those answers, in 24 hours, to one run, and ever. max_messages: of any
    kind, in a minute. deadline: seconds until a message must be answered. idle_seconds: after which a process that has
    nothing to do ends, infinity to keep it (and the backbone in it).
    """

    on_ac: bool = True
    max_load: float = 1.0
    min_seconds: float = 1.0
    max_per_day: int = 200
    max_per_run: int = 500
    max_rounds: int = 5_000
    max_messages: int = 60
    deadline: float = 900.0
    idle_seconds: float = 600.0

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if not value >= 0:  # NaN too
                raise ConfigError(f"policy.{setting.name}: found {value}; expected a number from 0 on")


#: Of an answer: four bytes each, and room for its address.
MOST_ENTRIES = wire.MAX_BYTES // 4 - 10_000
#: Whatever the machine is doing; what a person said still holds.
ANY_TIME = Policy(on_ac=False, max_load=math.inf)


@dataclass(frozen=True)
class Question:
    """What a message asks for. stage: of secure aggregation, or empty."""

    manifest: Manifest
    stage: str

    @classmethod
    def read(cls, content: RecordDict) -> Question:
        """ProtocolError for a message that breaks the contract, or asks for more than a message holds."""
        if is_secure(content):
            found = cls(decode_question(content).manifest, str(content[RECORD]["stage"]))
        else:
            found = cls(decode_request(content)[0], "")
        asked = AdapterState.length(found.manifest.reply)
        if asked > MOST_ENTRIES:  # before anything is charged
            raise ProtocolError(f"found a question for {asked} entries; at most {MOST_ENTRIES}")
        return found

    @property
    def computes(self) -> bool:
        """Whether its answer is computed from behaviour."""
        return self.manifest.phase != "install" and self.stage in ("", "masked")


class Gate:
    """What `Policy` allows at this moment. clock: seconds UTC."""

    def __init__(self, profile: Profile, policy: Policy, log: SentLog, clock: Callable[[], float]) -> None:
        self._profile = profile
        self._policy = policy
        self._log = log
        self._clock = clock
        self._messages: deque[float] = deque()
        self._own_load, self._own_since = 0.0, time.monotonic()

    def admits(self) -> bool:
        """Whether one more message of any kind is within this minute's; it counts from then on."""
        now = time.monotonic()
        while self._messages and self._messages[0] <= now - _MINUTE:
            self._messages.popleft()
        if len(self._messages) >= self._policy.max_messages:
            return False
        self._messages.append(now)
        return True

    def takes_part(self) -> bool:
        """What the person said. Settings that cannot be read count as no."""
        try:
            return self._profile.preferences().participate
        except ConfigError:
            return False

    def machine_is_free(self) -> bool:
        """Whether the machine is on mains power and not in use by others, as far as the policy asks."""
        if self._policy.on_ac and not _on_mains():
            return False
        others = psutil.getloadavg()[0] - self._own(time.monotonic())
        return bool(others <= self._policy.max_load * (psutil.cpu_count() or 1))

    def worked(self, seconds: float) -> None:
        """One thread of this device was busy until now: load that is nobody else's."""
        now = time.monotonic()
        self._own_load = self._own(now) + 1 - math.exp(-seconds / _LOAD_MEMORY)
        self._own_since = now

    def refusal(self, question: Question, spent: list[Release]) -> str | None:
        """The code that a question is refused with, None when it may be answered.

        spent: what the ledger holds. It counts beside the log, so that a lost log is no new beginning.
        """
        if not question.computes:
            return None
        policy, now = self._policy, self._clock()
        charges = max(Counter(release.unit for release in spent).values(), default=0)
        if max(self._log.given(), charges) >= policy.max_rounds:
            return "budget"
        if self._log.given(run=question.manifest.run) >= policy.max_per_run:
            return "budget"
        if self._log.given(between=(now - _DAY, now + _DAY)) >= policy.max_per_day:
            return "busy"
        if self._log.given(between=(now - policy.min_seconds, now)):
            return "busy"
        return None

    def _own(self, now: float) -> float:
        return self._own_load * math.exp(-(now - self._own_since) / _LOAD_MEMORY)


def _on_mains() -> bool:
    """True also where no battery is known."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return battery is None or battery.power_plugged is not False
