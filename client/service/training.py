"""What the service knows of training rounds: whether one runs, what was sent, and how to stop it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

from client.service.answered import SentOut


@dataclass(frozen=True)
class Sent:
    """What has left the device: rounds taken part in, bytes in all, the newest rows."""

    rounds: int = 0
    bytes: int = 0
    rows: list[SentOut] = field(default_factory=list)


class Training(Protocol):
    """The door for training rounds."""

    def state(self) -> str:
        """In a word: off, idle, training or paused."""
        ...

    def sent(self, limit: int) -> Sent:
        """What has left the device, the newest `limit` rows."""
        ...

    def pause(self) -> None:
        """Stop a round under way; nothing of it is sent."""
        ...

    def held(self) -> AbstractContextManager[None]:
        """Stop it, drop what is in memory of the person, and answer nothing within a block."""
        ...


class NoTraining:
    """A device that takes part in nothing."""

    def state(self) -> str:
        """Off."""
        return "off"

    def sent(self, limit: int) -> Sent:
        """Nothing."""
        return Sent()

    def pause(self) -> None:
        """There is nothing to stop."""

    def held(self) -> AbstractContextManager[None]:
        """There is nothing to stop."""
        return nullcontext()
