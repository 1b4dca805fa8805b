"""The door itself: takes one connection at a time, turns the others away at once, and never ends for a message."""

from __future__ import annotations

import logging
import math
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock as Mutex
from threading import Thread

from client.door import delivery, wire
from client.door.gate import Policy
from client.door.lock import Lock, default_socket, listen, served_at
from client.door.rounds import Rounds
from client.door.sent import Sent, SentLog
from client.limits import Limits
from client.profile import Profile
from shared.errors import HomerankError, ProtocolError
from shared.protocol import encode_refusal

log = logging.getLogger("homerank.client")

#: Seconds for a question to arrive, and for an answer to be taken.
_PATIENCE = 30.0
_BACKLOG = 128


@dataclass(frozen=True)
class Status:
    """What the door does and did last.

    state: idle, training (a message is being answered) or paused. last_round: the newest answer that was computed from
    behaviour. last_refusal: the newest code that was given since the start.
    """

    state: str
    last_round: Sent | None
    last_refusal: str | None


class Door:
    """Serves one profile's training socket from a thread of its own, between `start` and `close` or in a `with` block.

    limits: the owner's, for `Device`. path: of the socket, `lock.default_socket` when None. on_adapter: called with
    the adapter folder after a delivered adapter is in its place; when it raises, the one before comes back and the
    server gets `failed`. clock: seconds UTC.

    Everything that leaves is an answer whose charge stands in the ledger, or a code of `shared.protocol.REFUSALS`:

    | message | what comes back | in the log |
    |---|---|---|
    | none, the connection is closed | nothing | no |
    | while another one is answered, or too many in a minute | busy | no |
    | while the person does not take part, or the machine is not free | paused | yes |
    | too long, cut off, not records, not a question | bad-message, schema | yes |
    | more than the policy allows | busy, budget | yes |
    | cut short by `pause` | paused | yes, with what was charged |
    | cut short by `kill`, the deadline or a crash | failed | yes, with what was charged |
    | ledger or log cannot be used | failed | no |
    | anything else | what `Device.answer` says | yes |
    """

    def __init__(
        self,
        profile: Profile,
        *,
        limits: Limits,
        policy: Policy | None = None,
        path: Path | None = None,
        on_adapter: Callable[[Path], None] = lambda folder: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.profile = profile
        self.path = default_socket(profile) if path is None else path
        self._limits = limits
        self._policy = Policy() if policy is None else policy
        self._on_adapter = on_adapter
        self._clock = clock
        self._slot = Mutex()  # held by the one message that is being answered
        self._closing = False

    def start(self) -> None:
        """Listen. DeploymentError when another process serves this profile or this path, DataError without a log."""
        self._lock = Lock(self.profile, self.path)
        try:
            delivery.recover(self.profile.adapter)
            self._sent = SentLog(self.profile.sent)
            self._listener = listen(self.path, backlog=_BACKLOG)
        except BaseException:
            self._lock.release()
            raise
        self._rounds = Rounds(
            self.profile,
            limits=self._limits,
            policy=self._policy,
            sent=self._sent,
            on_adapter=self._on_adapter,
            clock=self._clock,
        )
        self._woken, self._waker = os.pipe()
        self._thread = Thread(target=self._listen, name="training-door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, cut short what is being answered, remove the socket. Does nothing the second time."""
        if self._closing:
            return
        self._closing = True
        self._rounds.pause()
        self._wake()
        self._thread.join()
        with self._slot:  # the last message is done with
            self._rounds.end_worker()
            self._sent.close()
            self._listener.close()
            self.path.unlink(missing_ok=True)
            os.close(self._waker)
            os.close(self._woken)
            self._lock.release()

    def __enter__(self) -> Door:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pause(self) -> None:
        """Answer nothing from now on, nor what is being computed. Not kept: that is `Preferences.participate`."""
        self._rounds.pause()

    def resume(self) -> None:
        """Take part again, if the person's preferences say so too."""
        self._rounds.resume()

    def kill(self) -> None:
        """End the training process at once, and forget a secure session."""
        self._rounds.kill()

    def held(self) -> AbstractContextManager[None]:
        """A block in which nothing is answered and no process reads the person's events: forget them within one."""
        return self._rounds.held()

    def status(self) -> Status:
        """What the door does and did last."""
        state = "paused" if self._rounds.away else "training" if self._slot.locked() else "idle"
        return Status(state, self._sent.last_round(), self._rounds.last_refusal)

    # --- connections ---------------------------------------------------------------------------------------

    def _listen(self) -> None:
        with selectors.DefaultSelector() as ready:
            for source in (self._listener, self._woken):
                ready.register(source, selectors.EVENT_READ)
            while not self._closing:
                for key, _ in ready.select(self._until_idle()):
                    if key.fileobj is self._listener:
                        with suppress(OSError):
                            self._let_in(self._listener.accept()[0])
                    else:
                        os.read(self._woken, 1024)
                self._end_idle_worker()

    def _let_in(self, connection: socket.socket) -> None:
        """Give the slot to a connection, or turn it away without reading what it says."""
        if self._slot.acquire(blocking=False):
            if self._rounds.gate.admits():
                Thread(target=self._serve, args=(connection,), daemon=True).start()
                return
            self._slot.release()
        self._rounds.last_refusal = "busy"
        with suppress(OSError), connection:
            wire.write(connection, wire.pack(encode_refusal("busy")), timeout=0.5)

    def _serve(self, connection: socket.socket) -> None:
        """Answer a connection; the slot is free again before the answer leaves, or the next question came too soon."""
        with connection:
            try:
                reply = self._reply(connection)
            except HomerankError as error:  # ledger or log cannot be used
                log.warning("refused: %s", error)
                reply = wire.pack(encode_refusal("failed"))
            except Exception as error:  # noqa: BLE001  # its text must not leave, and the service goes on
                log.warning("failed: %s", type(error).__name__)
                reply = wire.pack(encode_refusal("failed"))
            finally:
                self._wake()
                self._slot.release()  # last: `close` takes the slot, and then the waker
            with suppress(OSError):
                if reply:
                    wire.write(connection, reply, timeout=_PATIENCE)

    def _reply(self, connection: socket.socket) -> bytes:
        try:
            data = wire.read(connection, timeout=_PATIENCE)
        except EOFError:
            return b""
        except (OSError, ProtocolError):
            return self._rounds.refuse("bad-message")
        return self._rounds.answer(data)

    def _wake(self) -> None:
        """Have the listening thread look again; it may be gone already."""
        with suppress(OSError):
            os.write(self._waker, b".")

    def _until_idle(self) -> float | None:
        """Seconds until there may be an idle worker to end, None for never."""
        left = self._rounds.idle_until() - time.monotonic()
        return None if left == math.inf else max(1.0, left)

    def _end_idle_worker(self) -> None:
        if time.monotonic() >= self._rounds.idle_until() and self._slot.acquire(blocking=False):
            self._rounds.end_worker()
            self._slot.release()


@contextmanager
def open_door(profile: Profile, *, limits: Limits, policy: Policy) -> Iterator[tuple[Path, bool]]:
    """The socket of the service that serves this profile, or else of a door of our own; and whether it is our own."""
    served = served_at(profile)
    if served is not None:
        yield served, False
        return
    with Door(profile, limits=limits, policy=policy) as door:
        yield door.path, True
