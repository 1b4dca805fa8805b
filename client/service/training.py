"""What the service knows of training rounds: whether one runs, what was sent, and how to stop it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from client.door.sent import read_sent
from client.profile import Profile
from client.service.answered import SentOut

if TYPE_CHECKING:
    from client.door.server import Door


@dataclass(frozen=True)
class Sent:
    """What has left the device: rounds taken part in, bytes in all, the newest rows."""

    rounds: int = 0
    bytes: int = 0
    rows: list[SentOut] = field(default_factory=list)


def sent_by(profile: Profile, limit: int) -> Sent:
    """What has left this device, newest first. DataError for a log that cannot be read."""
    if not profile.sent.exists():
        return Sent()
    newest, totals = read_sent(profile.sent, limit)
    rows = [
        SentOut(
            time=one.time,
            run=one.run,
            round=one.round,
            phase=one.phase,
            bytes=one.bytes,
            digest=one.sha256,
            refusal=one.refusal,
            epsilon=dict(one.epsilon),
        )
        for _, one in newest
    ]
    return Sent(totals.rounds, totals.bytes, rows)


class Training(Protocol):
    """The door for training rounds."""

    def state(self) -> str:
        """In a word: off, idle, training or paused."""
        ...

    def pause(self) -> None:
        """Stop a round under way, and answer none until `resume`; nothing of it is sent."""
        ...

    def resume(self) -> None:
        """Take part again."""
        ...

    def held(self) -> AbstractContextManager[object]:
        """No round while the block lasts, and nothing of the person is left in the memory of one."""
        ...


class NoTraining:
    """A device that takes part in nothing."""

    def state(self) -> str:
        """Off."""
        return "off"

    def pause(self) -> None:
        """There is nothing to stop."""

    def resume(self) -> None:
        """There is nothing to go on with."""

    def held(self) -> AbstractContextManager[object]:
        """There is nothing to hold."""
        return nullcontext()


class DoorTraining:
    """A door that is open."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def state(self) -> str:
        """In a word."""
        return self._door.status().state

    def pause(self) -> None:
        """Answer nothing from now on."""
        self._door.pause()

    def resume(self) -> None:
        """Take part again."""
        self._door.resume()

    def held(self) -> AbstractContextManager[object]:
        """End the training process, and start none."""
        return self._door.held()
