"""Secure aggregation of one cohort: four stages over a Grid, of which only the sum comes out.

No single vector passes through here. What arrives is masked and added to a running sum at once; what the survivors
open afterwards is, for each device, either its own mask or its pair masks, never both.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from shared.adapter import AdapterState
from shared.errors import HomerankError, ProtocolError
from shared.protocol import Manifest, encode_request
from shared.secagg import graph, masks, shamir
from shared.secagg.messages import (
    SESSION_BYTES,
    Boxes,
    Delivery,
    Keys,
    Neighbours,
    Opening,
    Question,
    Start,
    Survivors,
    encode_question,
    read_masked,
    read_reply,
)
from shared.secagg.ring import Residues, SecurePlan

log = logging.getLogger("homerank.server")

Answer = TypeVar("Answer")


class _NoSum(HomerankError):
    """The cohort cannot be summed; the text says why."""


@dataclass(frozen=True)
class SecureSum:
    """The sum (d,) of the survivors' vectors and noise, in integer steps mod 2^32, and how many they are."""

    total: Residues
    survivors: int


@dataclass
class _Session:
    """What the server knows of a session: public keys, who said what, shares that survivors opened."""

    keys: dict[int, Keys] = field(default_factory=dict)
    neighbours: dict[int, list[int]] = field(default_factory=dict)
    boxes: dict[int, Boxes] = field(default_factory=dict)
    survivors: list[int] = field(default_factory=list)
    shares: dict[int, list[bytes]] = field(default_factory=dict)

    def threshold(self, node: int) -> int:
        return graph.threshold(len(self.neighbours[node]))

    def sources(self, node: int) -> list[int]:
        """Positions of the neighbours whose boxes the node was given."""
        return [place for place, other in enumerate(self.neighbours[node]) if other in self.boxes]


class SecureExchange:
    """One secure aggregation. state and manifest: the question every device answers, as in a plain exchange.

    Devices may drop out in every stage while at least the plan's quorum sends masked vectors and each device's
    neighbours can open it. After `run`, `refused` counts by code who did not answer (as in Exchange), and `reason`
    says why there is no sum.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Sequence[int],
        *,
        manifest: Manifest,
        state: AdapterState,
        plan: SecurePlan,
        timeout: float,
    ) -> None:
        self.refused: Counter[str] = Counter()
        self.reason = ""
        self._grid = grid
        self._nodes = nodes
        self._manifest = manifest
        self._state = state
        self._quorum = max(plan.quorum, graph.LEAST_COHORT)
        self._timeout = timeout
        self._session = secrets.token_bytes(SESSION_BYTES)
        self._size = AdapterState.length(manifest.reply)

    def run(self) -> SecureSum | None:
        """The sum of the survivors' vectors, or None and `reason`. A session is run once."""
        session = _Session()
        try:
            self._collect_keys(session)
            self._collect_boxes(session)
            total = self._collect_vectors(session)
            self._collect_shares(session)
            return SecureSum(self._unmask(total, session), len(session.survivors))
        except _NoSum as error:
            self.reason = str(error)
            log.warning("round %s %s: no sum: %s", self._manifest.round, self._manifest.phase, self.reason)
            return None

    def _collect_keys(self, session: _Session) -> None:
        read = _reader(Keys, self._manifest, check=_check_keys)
        seen: set[bytes] = set()
        for node, keys in self._ask({node: Start() for node in self._nodes}, read):
            if keys.masking in seen:
                self.refused["bad-message"] += 1
                continue
            seen.add(keys.masking)
            session.keys[node] = keys
        self._require_quorum(len(session.keys), "keys")
        nodes = list(session.keys)
        lists = graph.neighbour_lists(len(nodes))
        session.neighbours = {node: [nodes[i] for i in found] for node, found in zip(nodes, lists, strict=True)}

    def _collect_boxes(self, session: _Session) -> None:
        questions = {}
        for node, others in session.neighbours.items():
            known = [session.keys[other] for other in others]
            sealing, masking = [keys.sealing for keys in known], [keys.masking for keys in known]
            questions[node] = Neighbours(sealing, masking, session.threshold(node))
        for node, boxes in self._ask(questions, _reader(Boxes, self._manifest)):
            if len(boxes.boxes) == len(session.neighbours[node]):
                session.boxes[node] = boxes
            else:
                self.refused["bad-shape"] += 1
        self._require_quorum(len(session.boxes), "shares")

    def _collect_vectors(self, session: _Session) -> Residues:
        """The sum of all masked vectors. Each is added as it arrives and not kept."""
        total = np.zeros(self._size, dtype=np.uint32)
        questions = {}
        for node in session.boxes:
            sources = session.sources(node)
            givers = [session.neighbours[node][place] for place in sources]
            sent = [session.boxes[giver].boxes[session.neighbours[giver].index(node)] for giver in givers]
            questions[node] = Delivery(sources, sent)

        def read(content: RecordDict) -> Residues:
            return read_masked(content, manifest=self._manifest, size=self._size)

        for node, vector in self._ask(questions, read, state=self._state):
            total += vector
            session.survivors.append(node)
        self._require_quorum(len(session.survivors), "masked")
        return total

    def _collect_shares(self, session: _Session) -> None:
        alive = set(session.survivors)
        questions = {
            node: Survivors([place for place in session.sources(node) if session.neighbours[node][place] in alive])
            for node in session.survivors
        }
        for node, opening in self._ask(questions, _reader(Opening, self._manifest)):
            sources = session.sources(node)
            if len(opening.shares) != len(sources):
                self.refused["bad-shape"] += 1
                continue
            for place, share in zip(sources, opening.shares, strict=True):
                owner = session.neighbours[node][place]
                if shamir.is_share(share, number=session.neighbours[owner].index(node) + 1):
                    session.shares.setdefault(owner, []).append(share)

    def _unmask(self, total: Residues, session: _Session) -> Residues:
        """The sum without the survivors' own masks and without the pair masks that a missing device left behind."""
        for node in session.survivors:
            total = total - masks.mask(self._seed(node, session), session=self._session, size=self._size)
        for node in set(session.boxes) - set(session.survivors):
            left = [other for other in session.neighbours[node] if other in session.survivors]
            if not left:
                continue
            secret, own = self._masking_key(node, session), session.keys[node].masking
            masking = [session.keys[other].masking for other in left]
            for other, key in zip(masking, masks.agree(secret, masking), strict=True):
                pair = masks.mask(key, session=self._session, size=self._size)
                # The half of the pair that the missing device would have sent.
                total = masks.add_pair(total, pair, own=own, other=other)
        return total

    def _seed(self, node: int, session: _Session) -> bytes:
        seed = self._join(node, session)
        if masks.commitment(seed, session=self._session) != session.boxes[node].commitment:
            raise _NoSum("found shares of a mask that do not fit its commitment")
        return seed

    def _masking_key(self, node: int, session: _Session) -> bytes:
        secret = self._join(node, session)
        try:
            fits = masks.public_key(secret) == session.keys[node].masking
        except ProtocolError:
            fits = False
        if not fits:
            raise _NoSum("found shares of a key that do not fit its public key")
        return secret

    def _join(self, node: int, session: _Session) -> bytes:
        try:
            return shamir.join(session.shares.get(node, []), threshold=session.threshold(node))
        except ProtocolError as error:
            raise _NoSum(f"unmask: {error}") from None

    def _require_quorum(self, number: int, stage: str) -> None:
        if number < self._quorum:
            raise _NoSum(f"stage {stage}: found {number} devices; expected at least {self._quorum}")

    def _ask(
        self,
        questions: Mapping[int, Question],
        read: Callable[[RecordDict], Answer],
        *,
        state: AdapterState | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        """Put one question to each device and yield what could be read, by node; count the rest in `refused`."""
        kind = "train" if self._manifest.phase == "train" else "query"
        sent = state or AdapterState({})
        request = encode_request(replace(self._manifest, shapes=sent.shapes), sent)
        messages = [
            Message(encode_question(request, session=self._session, body=body), node, kind)
            for node, body in questions.items()
        ]
        answered: set[str] = set()
        for answer in self._grid.send_and_receive(messages, timeout=self._timeout):
            asked, node = answer.metadata.reply_to_message_id, answer.metadata.src_node_id
            if asked in answered:
                self.refused["duplicate"] += 1
                continue
            answered.add(asked)
            if answer.has_error() or node not in questions:
                self.refused["no-answer"] += 1
                continue
            try:
                found = read(answer.content)
            except ProtocolError as error:
                self.refused[error.code] += 1
                continue
            yield node, found
        if len(answered) < len(questions):
            self.refused["late"] += len(questions) - len(answered)


def _reader(
    kind: type[Answer], manifest: Manifest, *, check: Callable[[Answer], None] | None = None
) -> Callable[[RecordDict], Answer]:
    def read(content: RecordDict) -> Answer:
        found = read_reply(content, kind, manifest=manifest)
        if check:
            check(found)
        return found

    return read


def _check_keys(keys: Keys) -> None:
    masks.check_public(keys.sealing)
    masks.check_public(keys.masking)
