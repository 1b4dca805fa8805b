"""A cohort of devices behind a Grid that keeps each device's state as bytes, drops chosen answers and records all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Error, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecords
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from client.secure import SecureDevice
from server.secure import SecureExchange
from shared.adapter import AdapterState
from shared.errors import ProtocolError
from shared.protocol import Manifest, encode_refusal
from shared.secagg.messages import decode_question
from shared.secagg.ring import SecurePlan, ring_scale

Vectors = Mapping[int, NDArray[np.float64]]
ADAPTER = AdapterState({"w": np.arange(3, dtype=np.float32)})


def to_bytes(records: RecordDict) -> bytes:
    return bytes(recorddict_to_proto(records).SerializeToString())


def from_bytes(data: bytes) -> RecordDict:
    proto = ProtoRecords()
    proto.ParseFromString(data)
    return recorddict_from_proto(proto)


def manifest(size: int, *, number: int = 1) -> Manifest:
    return Manifest("run", number, "train", "b" * 64, "c" * 64, reply={"w": (size,)}, settings={"rank": 4})


def plan(cohort: int, *, quorum: int | None = None, variance: float = 0.0, bound: float = 1.0) -> SecurePlan:
    return SecurePlan(bound, ring_scale(bound, cohort=cohort), quorum or max(3, int(0.6 * cohort)), variance)


def vectors(cohort: int, size: int, *, seed: int = 0) -> dict[int, NDArray[np.float64]]:
    """One vector of norm 1 per node 1 … cohort."""
    rows = np.random.default_rng(seed).normal(size=(cohort, size))
    return {node: row / np.linalg.norm(row) for node, row in enumerate(rows, start=1)}


class CohortGrid(Grid):
    """Node n holds `vectors[n]`. drop: the nodes that do not answer a stage. edit: changes a reply on its way."""

    def __init__(
        self,
        vectors: Vectors,
        plan: SecurePlan,
        *,
        drop: Mapping[str, Iterable[int]] | None = None,
        edit: Callable[[int, str, RecordDict], RecordDict] | None = None,
        seed: int | None = None,
    ) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.vectors, self.plan, self.edit = vectors, plan, edit
        self.drop = {stage: set(nodes) for stage, nodes in (drop or {}).items()}
        self.rng = None if seed is None else np.random.default_rng(seed)
        self.states: dict[int, bytes] = defaultdict(bytes)
        self.received: list[tuple[int, str, bytes]] = []
        self.sent: list[tuple[int, str, bytes]] = []
        self.computed: list[int] = []
        self._run = Run.create_empty(run_id=1)

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(self, *arguments: Any, **options: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.vectors)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        answers = (self._deliver(message) for message in messages)
        return [answer for answer in answers if answer is not None]

    def _deliver(self, message: Message) -> Message | None:
        node, data = message.metadata.dst_node_id, to_bytes(message.content)
        stage = str(message.content["secure"]["stage"])
        message.metadata.__dict__["_message_id"] = f"{stage}-{node}"
        self.sent.append((node, stage, data))
        if node in self.drop.get(stage, ()):
            return None if node % 2 else Message(Error(code=0, reason="gone"), reply_to=message)
        reply = self.answer(node, data)
        if self.edit:
            reply = self.edit(node, stage, reply)
        self.received.append((node, stage, to_bytes(reply)))
        return Message(from_bytes(to_bytes(reply)), reply_to=message)

    def answer(self, node: int, data: bytes) -> RecordDict:
        """As a fresh process would: the state read from bytes before and written to bytes after."""

        def compute() -> NDArray[np.float64]:
            self.computed.append(node)
            return self.vectors[node]

        memory = from_bytes(self.states[node])
        question = decode_question(from_bytes(data))
        try:
            return SecureDevice(memory, self.plan, compute, self.rng).answer(question)
        except ProtocolError as error:
            return encode_refusal(error.code, question.manifest)
        finally:
            self.states[node] = to_bytes(memory)

    def exchange(self, nodes: Iterable[int] | None = None) -> SecureExchange:
        """A new session over the nodes."""
        size = len(next(iter(self.vectors.values())))
        chosen = list(nodes or self.vectors)
        return SecureExchange(self, chosen, manifest=manifest(size), state=ADAPTER, plan=self.plan, timeout=5.0)
