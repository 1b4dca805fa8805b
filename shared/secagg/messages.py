"""The four stages' messages. A question is a `shared.protocol` request and one record more.

| stage | question | reply |
|---|---|---|
| keys | Start | Keys |
| shares | Neighbours | Boxes |
| masked | Delivery | a masked vector |
| unmask | Survivors | Opening |

Everything else, and every refusal, is a ProtocolError on arrival. The packed array of a question is the adapter and
belongs to stage `masked`; the other stages carry an empty one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array as WireArray
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from shared.adapter import AdapterState
from shared.errors import ProtocolError
from shared.protocol import Manifest, address_of, decode_reply, decode_request
from shared.secagg.ring import Residues

RECORD = "secure"
SESSION_BYTES = 16
MAX_ITEMS = 4096
MAX_BYTES = 1024

Body = TypeVar("Body")


@dataclass(frozen=True)
class Start:
    """Asks for keys."""


@dataclass(frozen=True)
class Keys:
    """A device's public keys (33 bytes each): for sealing shares and for agreeing on masks."""

    sealing: bytes
    masking: bytes


@dataclass(frozen=True)
class Neighbours:
    """The public keys of a device's neighbours, one entry each, and how many shares open a secret."""

    sealing: list[bytes]
    masking: list[bytes]
    threshold: int


@dataclass(frozen=True)
class Boxes:
    """One sealed box per neighbour, in the order of Neighbours, and the commitment to the own mask's seed."""

    boxes: list[bytes]
    commitment: bytes


@dataclass(frozen=True)
class Delivery:
    """Which neighbours (positions in Neighbours) sent boxes, and their boxes for this device."""

    sources: list[int]
    boxes: list[bytes]


@dataclass(frozen=True)
class Survivors:
    """Which neighbours (positions in Neighbours) sent a masked vector."""

    survivors: list[int]


@dataclass(frozen=True)
class Opening:
    """One share per source of Delivery, in its order; empty bytes where the box could not be opened."""

    shares: list[bytes]


Question = Start | Neighbours | Delivery | Survivors
Reply = Keys | Boxes | Opening
STAGES = ("keys", "shares", "masked", "unmask")
QUESTIONS: dict[str, type[Question]] = dict(zip(STAGES, (Start, Neighbours, Delivery, Survivors), strict=True))


@dataclass(frozen=True)
class SecureQuestion:
    """What a device reads. session: 16 bytes that the server draws anew for every attempt."""

    manifest: Manifest
    state: AdapterState
    session: bytes
    body: Question


def is_secure(content: RecordDict) -> bool:
    """Whether a message to a device belongs to secure aggregation."""
    return RECORD in content


def encode_question(request: RecordDict, *, session: bytes, body: Question) -> RecordDict:
    """A server's message: what `encode_request` made, which all devices share, and one device's stage."""
    stage = next(name for name, kind in QUESTIONS.items() if isinstance(body, kind))
    return RecordDict({**request, RECORD: ConfigRecord({"stage": stage, "session": session, **vars(body)})})


def decode_question(content: RecordDict) -> SecureQuestion:
    """What a device reads; ProtocolError when the message breaks the contract."""
    record = content.get(RECORD)
    if not isinstance(record, ConfigRecord):
        raise ProtocolError("found no stage of secure aggregation")
    values = dict(record)
    stage, session = values.pop("stage", None), values.pop("session", None)
    if stage not in QUESTIONS or not isinstance(session, bytes) or len(session) != SESSION_BYTES:
        raise ProtocolError(f"found stage {stage!r:.40}; expected one of {', '.join(QUESTIONS)} and a session")
    manifest, state = decode_request(RecordDict({name: content[name] for name in content if name != RECORD}))
    body = _read(QUESTIONS[str(stage)], values)
    return SecureQuestion(manifest, state, session, body)


def encode_reply(body: Reply, *, manifest: Manifest) -> RecordDict:
    """A device's answer to any stage but `masked`."""
    return RecordDict({"config": ConfigRecord(address_of(manifest)), RECORD: ConfigRecord(dict(vars(body)))})


def read_reply(content: RecordDict, kind: type[Body], *, manifest: Manifest) -> Body:
    """What the server reads in any stage but `masked`; ProtocolError for a refusal or anything unexpected."""
    _check_address(content, manifest, other=RECORD)
    record = content[RECORD]
    if not isinstance(record, ConfigRecord):
        raise ProtocolError("found no record of secure aggregation")
    return _read(kind, dict(record))


def encode_masked(vector: Residues, *, manifest: Manifest) -> RecordDict:
    """A masked vector (d,): four bytes per entry and no number besides."""
    wire = WireArray(dtype="uint32", shape=vector.shape, stype="raw", data=vector.astype("<u4").tobytes())
    return RecordDict({"config": ConfigRecord(address_of(manifest)), "arrays": ArrayRecord({"masked": wire})})


def read_masked(content: RecordDict, *, manifest: Manifest, size: int) -> Residues:
    """A masked vector (size,).

    | reply | result |
    |---|---|
    | right address, 4 * size bytes | uint32 array |
    | a refusal code | ProtocolError with that code |
    | extra or missing records or keys, another address | ProtocolError `bad-message` |
    | another dtype, shape, form or number of bytes | ProtocolError `bad-shape` |
    """
    _check_address(content, manifest, other="arrays")
    arrays = content["arrays"]
    if not isinstance(arrays, ArrayRecord) or set(arrays) != {"masked"}:
        raise ProtocolError("found other records than one masked array")
    wire = arrays["masked"]
    form = (wire.dtype, tuple(wire.shape), wire.stype, len(wire.data))
    if form != ("uint32", (size,), "raw", 4 * size):
        raise ProtocolError(f"found dtype {wire.dtype!r:.20}; expected {size} uint32 entries", code="bad-shape")
    return np.frombuffer(wire.data, dtype="<u4").astype(np.uint32)


def _check_address(content: RecordDict, manifest: Manifest, *, other: str) -> None:
    config = content.get("config")
    if isinstance(config, ConfigRecord) and "refusal" in config:
        decode_reply(content, manifest)  # raises with the refusal's code
    if set(content) != {"config", other} or dict(config or {}) != address_of(manifest):
        raise ProtocolError("the reply answers another message or carries other records")


def _read(kind: type[Body], values: Mapping[str, Any]) -> Body:
    """A message body whose fields are exactly those of its class, of the annotated types and of bounded size."""
    kinds = {item.name: str(item.type) for item in fields(kind)}  # type: ignore[arg-type]
    if set(values) != set(kinds) or not all(_fits(values[name], kinds[name]) for name in kinds):
        raise ProtocolError(f"found no sound {kind.__name__} in stage record")
    return kind(**values)


def _fits(value: Any, kind: str) -> bool:
    if kind.startswith("list["):
        return isinstance(value, list) and len(value) <= MAX_ITEMS and all(_fits(item, kind[5:-1]) for item in value)
    if kind == "bytes":
        return isinstance(value, bytes) and len(value) <= MAX_BYTES
    return type(value) is int and 0 <= value <= MAX_ITEMS
