"""One message to many devices, and what comes back: checked, counted, one reply per device."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from shared.adapter import AdapterState
from shared.errors import ProtocolError
from shared.protocol import Manifest, decode_reply, encode_request, request_digest

log = logging.getLogger("homerank.server")


class Exchange:
    """Iterating sends the message and yields each accepted reply as it arrives, so replies need not be kept.

    After the iteration `accepted` is their number and `refused` counts the rest by code: what the protocol refuses,
    `duplicate` (a second reply to one message), `no-answer` (the device failed), `late` (no reply in time).
    """

    def __init__(
        self, grid: Grid, nodes: Sequence[int], *, manifest: Manifest, state: AdapterState, timeout: float
    ) -> None:
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self._grid = grid
        self._nodes = nodes
        self._manifest = manifest
        self._content = encode_request(manifest, state)
        self._timeout = timeout

    @property
    def digest(self) -> bytes:
        """SHA-256 of the question."""
        return request_digest(self._content)

    def __iter__(self) -> Iterator[AdapterState]:
        kind = "train" if self._manifest.phase == "train" else "query"
        messages = [Message(self._content, dst_node_id=node, message_type=kind) for node in self._nodes]
        answered: set[str] = set()
        for answer in self._grid.send_and_receive(messages, timeout=self._timeout):
            question = answer.metadata.reply_to_message_id
            if question in answered:
                self.refused["duplicate"] += 1
                continue
            answered.add(question)
            update = self._check(answer)
            if update is not None:
                self.accepted += 1
                yield update
        missing = len(self._nodes) - len(answered)
        if missing > 0:
            self.refused["late"] += missing
        if self.refused:
            log.warning("round %s %s: %s", self._manifest.round, self._manifest.phase, dict(self.refused))

    def _check(self, answer: Message) -> AdapterState | None:
        if answer.has_error():
            self.refused["no-answer"] += 1
            return None
        try:
            return decode_reply(answer.content, self._manifest)
        except ProtocolError as error:
            self.refused[error.code] += 1
            return None
