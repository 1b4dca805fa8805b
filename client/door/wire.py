"""One question and one answer over a local stream socket: four bytes of length, then Flower's own form of the records.

Content only: no message id, no name of a node, no error text has a place in it.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from pathlib import Path
from time import monotonic

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as Proto

from shared.errors import ProtocolError

#: Of one message. Sixteen million float32 entries; the largest recipe sends 4.4 million.
MAX_BYTES = 64 * 1024**2
_LENGTH = struct.Struct(">I")
_CONNECT_SECONDS = 10.0


def pack(content: RecordDict) -> bytes:
    """Records as bytes."""
    return bytes(recorddict_to_proto(content).SerializeToString())


def unpack(data: bytes | bytearray) -> RecordDict:
    """Records from bytes; ProtocolError (`bad-message`) for any others."""
    try:
        proto = Proto()
        proto.ParseFromString(bytes(data))
        return recorddict_from_proto(proto)
    except Exception as error:  # noqa: BLE001  # Flower promises none in particular for bytes that a hostile sender chose
        raise ProtocolError(f"found bytes that are no records ({type(error).__name__})") from None


def write(channel: socket.socket, data: bytes, *, timeout: float | None) -> None:
    """Send one message; seconds until the other side must have taken it. OSError when it does not."""
    if len(data) > MAX_BYTES:
        raise ProtocolError(f"found a message of {len(data)} bytes; at most {MAX_BYTES}", code="failed")
    channel.settimeout(timeout)
    channel.sendall(_LENGTH.pack(len(data)) + data)


def read(channel: socket.socket, *, timeout: float | None) -> bytearray:
    """Receive one message within so many seconds in all, None for any number.

    | the other side | result |
    |---|---|
    | sends a whole message | its bytes |
    | announces more than `MAX_BYTES` | ProtocolError, nothing of it is read |
    | closes before the first byte | EOFError |
    | closes later | ConnectionError |
    | is too slow | TimeoutError |
    """
    until = None if timeout is None else monotonic() + timeout
    head = _exactly(channel, _LENGTH.size, until)
    (length,) = _LENGTH.unpack(head)
    if length > MAX_BYTES:
        raise ProtocolError(f"found a message of {length} bytes; at most {MAX_BYTES}")
    try:
        return _exactly(channel, length, until)
    except EOFError:
        raise ConnectionError("found the end inside a message") from None


def _exactly(channel: socket.socket, size: int, until: float | None) -> bytearray:
    """So many bytes; EOFError when there are none at all."""
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        channel.settimeout(None if until is None else max(1e-3, until - monotonic()))
        count = channel.recv_into(view[done:])
        if count == 0:
            raise EOFError if done == 0 else ConnectionError("found the end inside a message")
        if until is not None and monotonic() > until:
            raise TimeoutError("found a message that takes too long")
        done += count
    return data


def ask(path: Path, content: RecordDict, *, timeout: float | None = None) -> RecordDict:
    """The answer of whoever listens at `path`. OSError when nobody does, or it is gone before it has answered."""
    data = pack(content)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_CONNECT_SECONDS)
        channel.connect(str(path))
        with suppress(BrokenPipeError, ConnectionResetError):  # refused without being read: the code is there to read
            write(channel, data, timeout=timeout)
        try:
            return unpack(read(channel, timeout=timeout))
        except EOFError:
            raise ConnectionError("found no answer") from None
