"""What may travel between server and device: one packed float32 array and a manifest, in both directions.

A device never sends counts, metrics, losses or error text. A reply is an array whose form the server already
knows, or a refusal code from a fixed list. Everything else is refused on arrival.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import Array as WireArray
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from shared.adapter import AdapterState
from shared.errors import AdapterError, ProtocolError

SCHEMA_VERSION = 1
PHASES = ("popularity", "prior", "train", "validate", "install")
#: What each means is a table in docs/privacy.md.
REFUSALS = ("bad-message", "budget", "catalogue", "backbone", "trust", "schema", "busy", "paused", "failed")
#: Entry of a training reply that says whether the update's norm was within the clip.
BELOW_CLIP = "below_clip"
#: A device's answer to the comparison is half an NDCG difference, so it lies between minus this and this.
DIFFERENCE_BOUND = 0.5
MAX_MANIFEST_CHARS = 200_000
MAX_ENTRIES = 50_000_000

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Manifest:
    """What a message is about.

    run: name of the experiment. round: 0 for queries before training; the group of devices when the prior is asked
    for. phase: popularity, prior, train, validate or install. backbone, catalogue: SHA-256 fingerprints both sides
    must share. shapes: names and shapes packed in the array. reply: names and shapes the answer must have. settings:
    the public plan (model, training and noise).
    """

    run: str
    round: int
    phase: str
    backbone: str
    catalogue: str
    shapes: Shapes = field(default_factory=dict)
    reply: Shapes = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read and check a manifest; ProtocolError (code bad-message or schema) when it is not one."""
        if len(text) > MAX_MANIFEST_CHARS:
            raise ProtocolError(f"found a manifest of {len(text)} characters; at most {MAX_MANIFEST_CHARS}")
        try:
            values = json.loads(text, parse_constant=_no_constant)
            if not isinstance(values, dict):
                raise TypeError("not an object")
            if type(values.get("schema")) is not int or values["schema"] != SCHEMA_VERSION:
                raise ProtocolError(
                    f"found message schema {values.get('schema')!r}; this side speaks {SCHEMA_VERSION}",
                    code="schema",
                )
            unknown = set(values) - {item.name for item in fields(cls)}
            if unknown:
                raise TypeError(f"unknown field {min(unknown)!r}")
            shapes = {name: _shapes(values.pop(name, {})) for name in ("shapes", "reply")}
            manifest = cls(**{**values, **shapes})
        except (ValueError, TypeError, RecursionError) as error:
            raise ProtocolError(f"found an unreadable manifest ({error})") from None
        texts = (manifest.run, manifest.backbone, manifest.catalogue)
        if not all(isinstance(text, str) and text.isprintable() and len(text) <= 200 for text in texts):
            raise ProtocolError("found a run or fingerprint that is not a short line of text")
        if manifest.phase not in PHASES or type(manifest.round) is not int or manifest.round < 0:
            raise ProtocolError(f"found phase {manifest.phase!r}, round {manifest.round!r}; expected a known phase")
        if not isinstance(manifest.settings, dict):
            raise ProtocolError("found settings that are not an object")
        return manifest


def encode_request(manifest: Manifest, state: AdapterState) -> RecordDict:
    """A server's message. The manifest's shapes must be those of `state`."""
    return _record({"manifest": manifest.to_json()}, state.pack())


def decode_request(content: RecordDict) -> tuple[Manifest, AdapterState]:
    """What a device reads; ProtocolError when the message breaks the contract."""
    config, packed = _parts(content, {"manifest"})
    manifest = _read_manifest(str(config["manifest"]))
    try:
        return manifest, AdapterState.unpack(packed, manifest.shapes)
    except AdapterError as error:
        raise ProtocolError(str(error)) from None


@lru_cache(maxsize=4)
def _read_manifest(text: str) -> Manifest:
    return Manifest.from_json(text)


def request_digest(content: RecordDict) -> bytes:
    """SHA-256 of a request that `decode_request` accepted: equal for equal questions."""
    return _digest(str(content["config"]["manifest"]), content["arrays"]["packed"].data)


@lru_cache(maxsize=4)
def _digest(manifest: str, data: bytes) -> bytes:
    """Cached, because one simulation process gets the same message for every device of a cohort."""
    return hashlib.sha256(manifest.encode() + data).digest()


def encode_reply(manifest: Manifest, state: AdapterState) -> RecordDict:
    """A device's answer: the packed array and which message it answers."""
    if state.shapes != manifest.reply:
        raise ProtocolError("the reply does not have the names and shapes the request asked for", code="failed")
    return _record(address_of(manifest), state.pack())


def encode_refusal(code: str, manifest: Manifest | None = None) -> RecordDict:
    """A device's refusal: a code from REFUSALS and nothing else."""
    known = code if code in REFUSALS else "failed"
    address = address_of(manifest) if manifest else {}
    return RecordDict({"config": ConfigRecord({**address, "refusal": known})})


def decode_reply(content: RecordDict, manifest: Manifest) -> AdapterState:
    """Check one reply against the request it must answer.

    | reply | result |
    |---|---|
    | right address, right number of finite float32 entries | AdapterState |
    | a refusal code | ProtocolError with that code |
    | extra or missing records or keys, wrong run, round or phase | ProtocolError `bad-message` |
    | wrong dtype or number of entries, bytes that are no float32 array | ProtocolError `bad-shape` |
    | NaN or infinity | ProtocolError `not-finite` |
    """
    refusal = _refusal(content)
    if refusal is not None:
        raise ProtocolError(f"the device refused: {refusal}", code=refusal)
    config, packed = _parts(content, set(address_of(manifest)))
    if dict(config) != address_of(manifest):
        raise ProtocolError("the reply answers another message")
    expected = AdapterState.length(manifest.reply)
    if packed.shape != (expected,):
        raise ProtocolError(f"found {packed.shape} entries; expected ({expected},)", code="bad-shape")
    if not np.isfinite(packed).all():
        raise ProtocolError("found NaN or infinite entries", code="not-finite")
    return AdapterState.unpack(packed, manifest.reply)


def address_of(manifest: Manifest) -> dict[str, Any]:
    """What every reply repeats of its question."""
    return {
        "schema": manifest.schema,
        "run": manifest.run,
        "round": manifest.round,
        "phase": manifest.phase,
    }


def _record(config: Mapping[str, Any], packed: NDArray[np.float32]) -> RecordDict:
    return RecordDict({"config": ConfigRecord(dict(config)), "arrays": ArrayRecord({"packed": WireArray(packed)})})


def _refusal(content: RecordDict) -> str | None:
    config = content.get("config")
    if isinstance(config, ConfigRecord) and "refusal" in config and set(content) == {"config"}:
        code = str(config["refusal"])
        return code if code in REFUSALS else "bad-message"
    return None


def _parts(content: RecordDict, keys: set[str]) -> tuple[ConfigRecord, NDArray[np.float32]]:
    config, arrays = content.get("config"), content.get("arrays")
    right = set(content) == {"config", "arrays"} and isinstance(config, ConfigRecord)
    if not (right and isinstance(arrays, ArrayRecord) and set(arrays) == {"packed"} and set(config) == keys):
        raise ProtocolError("found other records than one manifest and one packed array")
    return config, _read_array(arrays["packed"])


#: The only header a packed array may have: numpy's own for a little-endian one-dimensional float32 array.
#: `numpy.load` would let a sender choose another dtype, a zip file or a huge allocation.
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '<f4', 'fortran_order': (?:False|True), 'shape': \((\d{1,9}),\), \} *\n",
    re.DOTALL,
)


def _read_array(wire: WireArray) -> NDArray[np.float32]:
    """A writable float32 array (n,) whose bytes, header and announced shape agree."""
    header = _HEADER.match(wire.data)
    if header is None or wire.dtype != "float32" or len(wire.data) - header.end() != 4 * int(header[1]):
        raise ProtocolError(f"found dtype {wire.dtype!r} or unreadable bytes; expected float32", code="bad-shape")
    values = np.frombuffer(wire.data, dtype="<f4", offset=header.end()).astype(np.float32)
    if tuple(wire.shape) != values.shape or len(values) > MAX_ENTRIES:
        raise ProtocolError(f"found shape {wire.shape} over {len(values)} entries", code="bad-shape")
    return values


def _shapes(values: Any) -> Shapes:
    if not isinstance(values, dict) or len(values) > 10_000:
        raise TypeError("shapes must be an object")
    sound = all(
        isinstance(shape, list) and len(shape) <= 8 and all(type(n) is int and 0 <= n <= MAX_ENTRIES for n in shape)
        for shape in values.values()
    )
    out: Shapes = {name: tuple(shape) for name, shape in values.items()} if sound else {}
    if not sound or sum(map(math.prod, out.values())) > MAX_ENTRIES:
        raise TypeError(f"shapes must be lists of at most 8 sides, together at most {MAX_ENTRIES} entries")
    return out


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
