"""One question after another: refused, or answered by the worker; written down; only then given out."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

from flwr.app import ArrayRecord, RecordDict

from client.door import delivery, wire
from client.door.gate import Gate, Policy, Question
from client.door.process import Worker
from client.door.sent import Sent, SentLog
from client.limits import Limits
from client.profile import Profile
from shared.errors import HomerankError, ProtocolError
from shared.privacy.accounting import Release, epsilon_of
from shared.protocol import encode_refusal

log = logging.getLogger("homerank.client")


class Rounds:
    """The questions of one profile, one at a time: the caller sees to that. `pause` and `kill` may come from anywhere.

    limits, policy: the owner's. sent: the log, closed by the caller. on_adapter, clock: see `server.Door`.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        limits: Limits,
        policy: Policy,
        sent: SentLog,
        on_adapter: Callable[[Path], None],
        clock: Callable[[], float],
    ) -> None:
        self.gate = Gate(profile, policy, sent, clock)
        self.last_refusal: str | None = None
        self._profile = profile
        self._limits = limits
        self._policy = policy
        self._sent = sent
        self._on_adapter = on_adapter
        self._clock = clock
        self._state = RLock()  # over everything below
        self._worker: Worker | None = None
        self._paused, self._holds = False, 0
        self._kills = 0
        self._memory: tuple[str, RecordDict] = ("", RecordDict())  # of one secure session, with the name of its run

    @property
    def away(self) -> bool:
        """Whether this device does not take part."""
        return self._paused or self._holds > 0 or not self.gate.takes_part()

    def answer(self, data: bytes | bytearray) -> bytes:
        """What is sent back for a question, written down already. Raises HomerankError when that could not be done."""
        question = None
        try:
            if self.away or not self.gate.machine_is_free():
                raise ProtocolError("this device does not take part now", code="paused")
            content = wire.unpack(data)
            question = Question.read(content)
            before = self._spent()
            code = self.gate.refusal(question, before)
            if code is not None:
                raise ProtocolError("the owner's policy allows no more now", code=code)
            return self._answered(question, content, before)
        except ProtocolError as error:
            log.info("refused: %s", error)
            return self.refuse(error.code, question)

    def refuse(self, code: str, question: Question | None = None) -> bytes:
        """A refusal, written down."""
        return self._written(encode_refusal(code, question.manifest if question else None), question, {})

    def pause(self) -> None:
        """Answer nothing from now on, nor what is being computed."""
        with self._state:
            self._paused = True
            self.kill()

    def resume(self) -> None:
        """Take part again, if the person's preferences say so too."""
        with self._state:
            self._paused = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Answer nothing within a block; nothing of an earlier question is at work when it begins."""
        with self._state:
            self._holds += 1
            self.kill()
        try:
            yield
        finally:
            with self._state:
                self._holds -= 1

    def kill(self) -> None:
        """End the worker at once, with all that it and a secure session know; what it computes is not given out."""
        with self._state:
            self._kills += 1
            self._memory = ("", RecordDict())
            if self._worker is not None:
                self._worker.kill()

    def idle_until(self) -> float:
        """When the worker has been idle for long enough, on the monotonic clock; infinity without one."""
        with self._state:
            return math.inf if self._worker is None else self._worker.idle_since + self._policy.idle_seconds

    def end_worker(self) -> None:
        """End an idle worker; a question starts another one."""
        with self._state:
            if self._worker is not None:
                self._worker.close()
            self._worker = None

    # --- one question --------------------------------------------------------------------------------------

    def _answered(self, question: Question, content: RecordDict, before: list[Release]) -> bytes:
        worker, memory, kills = self._begin(question)
        started = time.monotonic()
        try:
            reply, memory = worker.answer(content, memory, deadline=self._policy.deadline)
        except OSError:  # killed, crashed or too slow; a secure session that was cut short does not go on
            worker.kill()
            reply, memory = encode_refusal("failed", question.manifest), RecordDict()
        finally:
            self.gate.worked(time.monotonic() - started)
        if question.manifest.phase == "install" and "refusal" not in reply["config"] and not self._delivered():
            reply = encode_refusal("failed", question.manifest)
        with self._state:
            if kills != self._kills or self.away:
                reply, memory = encode_refusal("paused" if self.away else "failed", question.manifest), RecordDict()
            self._memory = (question.manifest.run, memory)
            charged = self._spent()[len(before) :]
            free = self._limits.mode == "none" or not question.computes
            if not (charged or free or "refusal" in reply["config"]):
                raise ProtocolError("found an answer that the ledger was not charged for", code="failed")
            return self._written(reply, question, self._prices(before, charged))

    def _begin(self, question: Question) -> tuple[Worker, RecordDict, int]:
        """A worker, what the run's secure session left behind, and how often workers were killed so far."""
        with self._state:
            if self.away:
                raise ProtocolError("this device does not take part now", code="paused")
            if self._worker is None or not self._worker.alive:
                self.end_worker()
                self._worker = Worker(self._profile, self._limits)
            run, memory = self._memory
            return self._worker, memory if run == question.manifest.run else RecordDict(), self._kills

    def _delivered(self) -> bool:
        """Whether the adapter that the worker has written ranks from now on."""
        adapter = self._profile.adapter
        try:
            delivery.settle(adapter)
        except HomerankError as error:
            log.warning("refused an adapter: %s", error)
            return False
        try:
            self._on_adapter(adapter)
        except Exception as error:  # noqa: BLE001  # whatever the service finds wrong with it stays here
            log.warning("refused an adapter: %s", error if isinstance(error, HomerankError) else type(error).__name__)
            delivery.roll_back(adapter)
            return False
        return True

    # --- what is written down ------------------------------------------------------------------------------

    def _written(self, reply: RecordDict, question: Question | None, epsilon: dict[str, float]) -> bytes:
        """The reply as bytes, after the log has it; an error means that it must not leave."""
        data, refusal = wire.pack(reply), str(reply["config"].get("refusal", ""))
        asked = question.manifest if question else None
        sent = Sent(
            time=self._clock(),
            run=asked.run if asked else "",
            round=asked.round if asked else 0,
            phase=asked.phase if asked else "",
            stage=question.stage if question else "",
            bytes=len(data),
            sha256=hashlib.sha256(_payload(reply) or data).hexdigest(),
            refusal=refusal,
            delta=self._limits.delta,
            computed=bool(epsilon) or (question is not None and question.computes and not refusal),
            epsilon=epsilon,
        )
        self._sent.write(sent)
        self.last_refusal = refusal or self.last_refusal
        return data

    def _spent(self) -> list[Release]:
        """What the ledger holds; PrivacyError when it is not sound."""
        ledger = self._profile.open_ledger()
        try:
            return ledger.releases(0)
        finally:
            ledger.close()

    def _prices(self, before: list[Release], charged: list[Release]) -> dict[str, float]:
        """By how much the charges made the ledger's epsilon grow, by unit."""
        found, delta = {}, self._limits.delta
        for unit in sorted({release.unit for release in charged}):
            past, now = ([r for r in rows if r.unit == unit] for rows in (before, [*before, *charged]))
            found[unit] = epsilon_of(now, delta=delta) - epsilon_of(past, delta=delta)
        return found


def _payload(reply: RecordDict) -> bytes:
    """The bytes of the one array of an answer; none for a refusal."""
    for records in reply.values():
        for array in records.values() if isinstance(records, ArrayRecord) else ():
            return bytes(array.data)
    return b""
