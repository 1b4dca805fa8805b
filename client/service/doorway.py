"""The service's side of the training door (`client.door`): delivered adapters rank at once, the page sees rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from client.door.gate import ANY_TIME, Policy
from client.door.sent import read_sent
from client.door.server import Door
from client.service.answered import SentOut
from client.service.person import Person
from client.service.training import Sent, Training
from shared.errors import AdapterError


class Doorway:
    """An open door, as `Training`."""

    def __init__(self, door: Door) -> None:
        self._door = door

    def state(self) -> str:
        """In a word: idle, training or paused."""
        return self._door.status().state

    def sent(self, limit: int) -> Sent:
        """What has left the device, the newest `limit` rows. DataError when the log cannot be read."""
        rows, totals = read_sent(self._door.profile.sent, limit)
        shown = [
            SentOut(
                time=row.time,
                run=row.run,
                round=row.round,
                phase=row.phase,
                bytes=row.bytes,
                digest=row.sha256,
                refusal=row.refusal,
                epsilon=dict(row.epsilon),
            )
            for _, row in rows
        ]
        return Sent(rounds=totals.rounds, bytes=totals.bytes, rows=shown)

    def pause(self) -> None:
        """Cut short what is being answered. Whether later rounds are answered stands in the preferences."""
        self._door.kill()

    def held(self) -> AbstractContextManager[None]:
        """Cut it short, and answer nothing within a block."""
        return self._door.held()


@contextmanager
def doorway(person: Person, path: Path | None, *, any_time: bool) -> Iterator[Training | None]:
    """A door at `path` for the length of a `with` block, None without a path.

    any_time: answer on battery too, and while the machine is in use. Errors as for `Door.start`.
    """
    if path is None:
        yield None
        return

    def change_to(adapter: Path) -> None:
        problem = person.delivered(adapter)
        if problem:
            raise AdapterError(problem)

    policy = ANY_TIME if any_time else Policy()
    with Door(person.profile, limits=person.limits, policy=policy, path=path, on_adapter=change_to) as door:
        yield Doorway(door)
