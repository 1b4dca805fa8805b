"""A SuperNode without its processes: what Flower's does on the wire, as a coroutine over one connection.

The requests, their order and their pauses are those of flwr 1.41 (`flwr.supernode`): activate; ask for messages every
three seconds; a heartbeat every 17.5 to 22.5 s; for a message get-run and get-fab the first time, its objects, a
confirmation, then the reply and its objects. Each is an HTTPS POST with a protobuf body and a signature of its own.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import random
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fab_pb2 import GetFabRequest, GetFabResponse
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

HOST = "127.0.0.1"
PREFIX = "/v1/fleet/"
POLL_SECONDS = 3.0
HEARTBEAT_SECONDS = (17.5, 22.5)
#: Announced to the server, which calls a device offline after twice as long.
HEARTBEAT_INTERVAL = 30.0
PATIENCE = 60.0


@dataclass
class Tally:
    """What all devices saw since `begin`: milliseconds by route, errors by kind, bytes of HTTP without TLS."""

    milliseconds: dict[str, list[float]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)
    down: int = 0
    up: int = 0

    def begin(self) -> None:
        """Forget everything."""
        self.milliseconds, self.errors, self.down, self.up = {}, Counter(), 0, 0

    def answered(self, route: str, seconds: float) -> None:
        """One good answer."""
        self.milliseconds.setdefault(route, []).append(1000 * seconds)

    @property
    def requests(self) -> int:
        """How many were answered well."""
        return sum(map(len, self.milliseconds.values()))

    def percentile(self, share: float) -> float:
        """Milliseconds within which this share of all good answers came; NaN without any."""
        return percentile([one for found in self.milliseconds.values() for one in found], share)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed; NaN for none."""
    if not values:
        return float("nan")
    return sorted(values)[max(0, int(np.ceil(share * len(values))) - 1)]


class ThinDevice:
    """One registered device. `live` runs until it is cancelled."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, node: int, *, port: int, tls: ssl.SSLContext) -> None:
        self._key, self._node, self._port, self._tls = key, Node(node_id=node), port, tls
        self._public = public_key_to_bytes(key.public_key())
        self._encoded = base64.b64encode(self._public).decode()
        self._link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._turn = asyncio.Lock()  # one connection, one request at a time
        self._runs: set[int] = set()
        self.active = False

    async def live(self, tally: Tally, *, delay: float) -> None:
        """Wait `delay` seconds, then do what a SuperNode does; it goes on after an error, as a SuperNode does."""
        await asyncio.sleep(delay)
        next_heartbeat = 0.0
        try:
            while True:
                try:
                    if not self.active:
                        asked = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_INTERVAL)
                        await self.ask("activate-node", asked, ActivateNodeResponse, tally)
                        self.active, next_heartbeat = True, monotonic() + random.uniform(*HEARTBEAT_SECONDS)
                    if monotonic() >= next_heartbeat:
                        beat = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_INTERVAL)
                        await self.ask("send-node-heartbeat", beat, SendNodeHeartbeatResponse, tally)
                        next_heartbeat = monotonic() + random.uniform(*HEARTBEAT_SECONDS)
                    if await self._pull(tally):
                        continue
                except (OSError, EOFError, TimeoutError, ValueError) as error:
                    tally.errors[str(error) if isinstance(error, ValueError) else type(error).__name__] += 1
                    self.close()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self.close()

    async def _pull(self, tally: Tally) -> bool:
        """Ask for a message and answer it; False when there is none."""
        found = await self.ask("pull-messages", PullMessagesRequest(node=self._node), PullMessagesResponse, tally)
        if not found.messages_list:
            return False
        message, tree = message_from_proto(found.messages_list[0]), found.message_object_trees[0]
        run, name = message.metadata.run_id, message.metadata.message_id
        if run not in self._runs:
            told = await self.ask("get-run", GetRunRequest(node=self._node, run_id=run), GetRunResponse, tally)
            fab = GetFabRequest(node=self._node, hash_str=told.run.fab_hash, run_id=run)
            await self.ask("get-fab", fab, GetFabResponse, tally)
            self._runs.add(run)
        size = 0
        for part in iterate_object_tree(tree):
            size = max(size, len(await self._pull_object(run, part.object_id, tally)))
        received = ConfirmMessageReceivedRequest(node=self._node, run_id=run, message_object_id=name)
        await self.ask("confirm-message-received", received, ConfirmMessageReceivedResponse, tally)
        await self._push(message, size // 4, tally)
        return True

    async def _pull_object(self, run: int, name: str, tally: Tally) -> bytes:
        """One object of a message; the message can be there before its objects are, so it is asked for again."""
        wanted, delay = PullObjectRequest(node=self._node, run_id=run, object_id=name), 1.0
        while True:
            found = await self.ask("pull-object", wanted, PullObjectResponse, tally)
            if found.object_available:
                return bytes(found.object_content)
            if not found.object_found:
                raise ValueError("an object that is not there")
            await asyncio.sleep(delay * random.uniform(0.8, 1.2))
            delay = min(2 * delay, 10.0)

    async def _push(self, question: Message, entries: int, tally: Tally) -> None:
        """Answer with an array about as long as the one that came; no training happens here.

        Its values are random: what one device has sent already, Flower does not take from the next.
        """
        record = ArrayRecord({"x": Array(np.random.default_rng().normal(size=entries).astype(np.float32))})
        reply = Message(RecordDict({"arrays": record}), reply_to=question)
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            tree, parts = get_object_tree(reply), get_all_nested_objects(reply)
            data = {name: part.deflate() for name, part in parts.items()}
            head = message_to_proto(remove_content_from_message(reply))
        pushed = PushMessagesRequest(
            node=self._node, messages_list=[head], message_object_trees=[tree], clientapp_runtime_list=[0.0]
        )
        taken = await self.ask("push-messages", pushed, PushMessagesResponse, tally)
        for name in taken.objects_to_push:
            part = PushObjectRequest(
                node=self._node,
                run_id=question.metadata.run_id,
                object_id=name,
                object_content=data[name],
                session_id=taken.session_id,
            )
            await self.ask("push-object", part, PushObjectResponse, tally)

    async def ask(self, route: str, message: Any, answer: Callable[[], Any], tally: Tally) -> Any:
        """One request and its answer. ValueError with the status when it is not 200, OSError when nobody answers."""
        async with self._turn, asyncio.timeout(PATIENCE):
            reader, writer = await self._connected()
            data = self._request(route, message.SerializeToString())
            started = monotonic()
            writer.write(data)
            status, headers, body = await read_answer(reader)
            tally.up, tally.down = tally.up + len(data), tally.down + len(headers) + len(body)
            if b"connection: close" in headers.lower():
                self.close()
        if status != 200:
            raise ValueError(f"{status} {route}")
        tally.answered(route, monotonic() - started)
        found = answer()
        found.ParseFromString(body)
        return found

    def _request(self, route: str, body: bytes) -> bytes:
        """A signed request as it travels."""
        stamp = datetime.datetime.now(datetime.UTC).isoformat()
        signature = base64.b64encode(sign_message(self._key, stamp.encode())).decode()
        head = (
            f"POST {PREFIX}{route} HTTP/1.1\r\nhost: {HOST}:{self._port}\r\naccept: {PROTOBUF_MEDIA_TYPE}\r\n"
            f"content-type: {PROTOBUF_MEDIA_TYPE}\r\ncontent-length: {len(body)}\r\nflwr-timestamp: {stamp}\r\n"
            f"flwr-public-key: {self._encoded}\r\nflwr-signature: {signature}\r\n\r\n"
        )
        return head.encode("ascii") + body

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._link is None:
            self._link = await asyncio.open_connection(HOST, self._port, ssl=self._tls, limit=2**20)
        return self._link

    def close(self) -> None:
        """Drop the connection; the next request opens another."""
        if self._link is not None:
            self._link[1].transport.abort()
            self._link = None


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Status, head and body of an HTTP answer that states its length. EOFError when it breaks off."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        if name.lower() == b"transfer-encoding":
            raise ValueError("an answer in chunks")
    return int(head.split(b" ", 2)[1]), head, await reader.readexactly(length)
