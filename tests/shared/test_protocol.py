"""What may travel, and what hostile messages get."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array as WireArray
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from shared import protocol
from shared.adapter import AdapterState
from shared.errors import ProtocolError
from shared.protocol import (
    MAX_MANIFEST_CHARS,
    REFUSALS,
    Manifest,
    decode_reply,
    decode_request,
    encode_refusal,
    encode_reply,
    encode_request,
)

SENT = {"up": (2, 2), "down": (3,)}
ASKED = {"up": (2, 2)}


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "run": "r1",
        "round": 4,
        "phase": "train",
        "backbone": "b" * 64,
        "catalogue": "c" * 64,
        "shapes": SENT,
        "reply": ASKED,
        "settings": {"noise": {"multiplier": 1.5}},
    }
    return Manifest(**{**values, **changes})


def state(shapes: dict[str, tuple[int, ...]], *, first: float = 0.5) -> AdapterState:
    size = sum(math.prod(shape) for shape in shapes.values())
    packed = np.arange(size, dtype=np.float32)
    packed[:1] = first
    return AdapterState.unpack(packed, shapes)


def reply(*, config: Any = None, **arrays: Any) -> RecordDict:
    """A reply to `manifest()` with parts replaced. Values of `arrays` are numpy or wire arrays."""
    address = {"schema": protocol.SCHEMA_VERSION, "run": "r1", "round": 4, "phase": "train"}
    contents = arrays or {"packed": np.ones(4, dtype=np.float32)}
    wired = {name: value if isinstance(value, WireArray) else WireArray(value) for name, value in contents.items()}
    return RecordDict(
        {
            "config": ConfigRecord({**address, **(config or {})}),
            "arrays": ArrayRecord(wired),
        }
    )


def without(content: RecordDict, record: str, key: str | None = None) -> RecordDict:
    if key is None:
        del content[record]
    else:
        del content[record][key]
    return content


def test_a_request_comes_through() -> None:
    sent = state(SENT)
    got, received = decode_request(encode_request(manifest(), sent))
    assert got == manifest()
    assert received == sent


def test_a_reply_comes_through() -> None:
    sent = state(ASKED)
    assert decode_reply(encode_reply(manifest(), sent), manifest()) == sent


def test_a_reply_carries_the_address_and_one_array_and_nothing_else() -> None:
    content = encode_reply(manifest(), state(ASKED))
    assert set(content) == {"config", "arrays"}
    assert dict(content["config"]) == {"schema": 1, "run": "r1", "round": 4, "phase": "train"}
    assert set(content["arrays"]) == {"packed"}
    wire = content["arrays"]["packed"]
    assert (wire.dtype, tuple(wire.shape)) == ("float32", (4,))
    # 128 bytes of numpy header and the entries themselves: no room for anything about a person
    assert len(wire.data) == 128 + 4 * 4


def test_the_size_of_a_reply_depends_on_the_request_alone() -> None:
    small, large = (encode_reply(manifest(), state(ASKED, first=value)) for value in (0.0, 3e38))
    assert len(small["arrays"]["packed"].data) == len(large["arrays"]["packed"].data)


def test_a_reply_in_another_form_is_not_sent() -> None:
    with pytest.raises(ProtocolError) as caught:
        encode_reply(manifest(), state({"up": (4,)}))
    assert caught.value.code == "failed"


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_is_a_code(code: str) -> None:
    content = encode_refusal(code, manifest())
    assert set(content) == {"config"}
    assert set(content["config"]) == {"schema", "run", "round", "phase", "refusal"}
    with pytest.raises(ProtocolError) as caught:
        decode_reply(content, manifest())
    assert caught.value.code == code


@pytest.mark.parametrize("text", ["Traceback: user 17 saw item 4", "", "BUDGET"])
def test_error_text_never_leaves_a_device_and_is_not_believed_on_arrival(text: str) -> None:
    content = encode_refusal(text)
    assert dict(content["config"]) == {"refusal": "failed"}
    content["config"]["refusal"] = text
    with pytest.raises(ProtocolError) as caught:
        decode_reply(content, manifest())
    assert caught.value.code == "bad-message"
    assert not text or text not in str(caught.value)


def raw(data: bytes, *, dtype: str = "float32", shape: tuple[int, ...] = (4,)) -> WireArray:
    return WireArray(dtype=dtype, shape=shape, stype="numpy.ndarray", data=data)


def npy(array: Any, *, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), version=version, allow_pickle=True)
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, packed=np.ones(4, dtype=np.float32))
    return buffer.getvalue()


GOOD = npy(np.ones(4, dtype=np.float32))
HUGE = GOOD.replace(b"(4,), }" + b" " * 12, b"(9999999999999,), }")

#: Every row of the table in `decode_reply`.
REFUSED: dict[str, tuple[Callable[[], RecordDict], str]] = {
    "extra record": (lambda: RecordDict({**reply(), "metrics": MetricRecord({"loss": 0.1})}), "bad-message"),
    "no arrays": (lambda: without(reply(), "arrays"), "bad-message"),
    "no config": (lambda: without(reply(), "config"), "bad-message"),
    "nothing": (RecordDict, "bad-message"),
    "other record type": (
        lambda: RecordDict({"config": ConfigRecord({}), "arrays": ConfigRecord({})}),
        "bad-message",
    ),
    "swapped records": (
        lambda: RecordDict({"config": reply()["arrays"], "arrays": reply()["config"]}),
        "bad-message",
    ),
    "extra key": (lambda: reply(config={"num-examples": 3}), "bad-message"),
    "missing key": (lambda: without(reply(), "config", "round"), "bad-message"),
    "extra array": (
        lambda: reply(packed=np.ones(4, dtype=np.float32), more=np.ones(1, dtype=np.float32)),
        "bad-message",
    ),
    "other array name": (lambda: reply(weights=np.ones(4, dtype=np.float32)), "bad-message"),
    "wrong run": (lambda: reply(config={"run": "r2"}), "bad-message"),
    "wrong round": (lambda: reply(config={"round": 3}), "bad-message"),
    "wrong phase": (lambda: reply(config={"phase": "validate"}), "bad-message"),
    "wrong schema": (lambda: reply(config={"schema": 2}), "bad-message"),
    "refusal beside an array": (lambda: reply(config={"refusal": "budget"}), "bad-message"),
    "float64": (lambda: reply(packed=np.ones(4)), "bad-shape"),
    "int32": (lambda: reply(packed=np.ones(4, dtype=np.int32)), "bad-shape"),
    "too few": (lambda: reply(packed=np.ones(3, dtype=np.float32)), "bad-shape"),
    "too many": (lambda: reply(packed=np.ones(5, dtype=np.float32)), "bad-shape"),
    "none": (lambda: reply(packed=np.ones(0, dtype=np.float32)), "bad-shape"),
    "a scalar that would broadcast": (lambda: reply(packed=np.array(1, dtype=np.float32)), "bad-shape"),
    "one entry that would broadcast": (lambda: reply(packed=np.ones(1, dtype=np.float32)), "bad-shape"),
    "a matrix": (lambda: reply(packed=np.ones((2, 2), dtype=np.float32)), "bad-shape"),
    "no bytes": (lambda: reply(packed=raw(b"")), "bad-shape"),
    "junk bytes": (lambda: reply(packed=raw(b"\x00" * 200)), "bad-shape"),
    "cut off": (lambda: reply(packed=raw(GOOD[:-1])), "bad-shape"),
    "longer than it says": (lambda: reply(packed=raw(GOOD + b"user 17")), "bad-shape"),
    "float64 under a float32 label": (lambda: reply(packed=raw(npy(np.ones(4)))), "bad-shape"),
    "text under a float32 label": (lambda: reply(packed=raw(npy(np.array(["a"] * 4)))), "bad-shape"),
    "a pickle": (lambda: reply(packed=raw(npy(np.array([{}] * 4, dtype=object)))), "bad-shape"),
    "big-endian": (lambda: reply(packed=raw(npy(np.ones(4, dtype=">f4")))), "bad-shape"),
    "a zip file": (lambda: reply(packed=raw(npz())), "bad-shape"),
    "a header that asks for 40 TB": (lambda: reply(packed=raw(HUGE)), "bad-shape"),
    "a lying shape": (lambda: reply(packed=raw(GOOD, shape=(3,))), "bad-shape"),
    "a lying dtype": (lambda: reply(packed=raw(GOOD, dtype="int8")), "bad-shape"),
    "NaN": (lambda: reply(packed=np.array([1, 2, math.nan, 3], dtype=np.float32)), "not-finite"),
    "infinity": (lambda: reply(packed=np.array([1, 2, -math.inf, 3], dtype=np.float32)), "not-finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_every_other_reply_is_refused_with_its_code(name: str) -> None:
    build, code = REFUSED[name]
    with pytest.raises(ProtocolError) as caught:
        decode_reply(build(), manifest())
    assert caught.value.code == code


def test_the_reply_that_all_those_are_changes_of_is_accepted() -> None:
    assert b"9999999999999" in HUGE
    assert decode_reply(reply(packed=raw(GOOD)), manifest()).pack().tolist() == [1.0] * 4
    assert decode_reply(reply(), manifest()).pack().tolist() == [1.0] * 4


def test_too_many_entries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_ENTRIES", 3)
    with pytest.raises(ProtocolError) as caught:
        decode_reply(reply(), manifest())
    assert caught.value.code == "bad-shape"


def test_received_arrays_can_be_installed() -> None:
    received = decode_reply(reply(), manifest())
    assert all(array.flags.writeable for array in received.arrays.values())


VALID: dict[str, Any] = json.loads(manifest().to_json())


def changed(**changes: Any) -> str:
    return json.dumps({**VALID, **changes})


HOSTILE = {
    "not JSON": "{",
    "empty": "",
    "an array": "[]",
    "a number": "17",
    "null": "null",
    "too long": changed(run="x" * MAX_MANIFEST_CHARS),
    "deep": '{"schema": ' + "[" * 50_000 + "]" * 50_000 + "}",
    "deep settings": '{"schema": 1, "settings": ' + "[" * 50_000 + "]" * 50_000 + "}",
    "a number of 5,000 digits": '{"schema": 1, "round": ' + "9" * 5_000 + "}",
    "unknown field": changed(webhook="http://example.org"),
    "missing fields": json.dumps({"schema": 1}),
    "unknown phase": changed(phase="exfiltrate"),
    "phase of another type": changed(phase=["train"]),
    "round as text": changed(round="4"),
    "round as a float": changed(round=4.5),
    "round as a truth value": changed(round=True),
    "negative round": changed(round=-1),
    "run of another type": changed(run=7),
    "run of several lines": changed(run="a\nb"),
    "run with half a surrogate": changed(run="\ud800"),
    "long run": changed(run="x" * 201),
    "backbone of another type": changed(backbone=None),
    "catalogue of another type": changed(catalogue={"a": 1}),
    "settings as a list": changed(settings=[1, 2]),
    "settings as nothing": changed(settings=None),
    "NaN in settings": changed(settings={"epsilon": math.nan}),
    "infinity in settings": changed(settings={"clip": math.inf}),
    "shapes as a list": changed(shapes=[["up", 2]]),
    "a shape as a number": changed(shapes={"up": 4}),
    "a shape as text": changed(shapes={"up": "22"}),
    "a shape as an object": changed(shapes={"up": {"2": 1}}),
    "a negative side": changed(shapes={"up": [-2, -2]}),
    "a fractional side": changed(shapes={"up": [2.5, 2]}),
    "a side as text": changed(shapes={"up": ["2", "2"]}),
    "a side as a truth value": changed(shapes={"up": [True]}),
    "a NaN side": changed(shapes={"up": [math.nan]}),
    "an infinite side": changed(reply={"up": [math.inf]}),
    "a side of 1e400": changed().replace('"up": [2, 2]', '"up": [1e400]'),
    "a huge side": changed(reply={"up": [10**12]}),
    "huge together": changed(reply={"up": [10**7, 10**7]}),
    "huge over many names": changed(reply={f"p{n}": [10**7] for n in range(10)}),
    "a nested shape": changed(shapes={"up": [[2], [2]]}),
    "many sides": changed(shapes={"up": [1] * 9}),
    "too many names": changed(shapes={f"{n}": [] for n in range(10_001)}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_manifests_are_refused(name: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        Manifest.from_json(HOSTILE[name])
    assert caught.value.code in ("bad-message", "schema")


@pytest.mark.parametrize("version", [0, 2, "1", 1.0, True, None])
def test_another_schema_version_has_a_code_of_its_own(version: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        Manifest.from_json(changed(schema=version))
    assert caught.value.code == "schema"


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(VALID)), junk)
def test_one_junk_field_is_refused_or_harmless(field: str, value: Any) -> None:
    text = changed(**{field: value})
    try:
        got = Manifest.from_json(text)
    except ProtocolError:
        return
    assert got == Manifest.from_json(got.to_json())
    sides = [side for shapes in (got.shapes, got.reply) for shape in shapes.values() for side in shape]
    assert all(type(side) is int and side >= 0 for side in sides)


@given(st.text(max_size=200))
def test_any_text_is_a_manifest_or_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError):
        Manifest.from_json(text)


@given(st.binary(max_size=300))
def test_any_bytes_are_an_array_or_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_reply(reply(packed=raw(data)), manifest())


@pytest.mark.parametrize("text", [b"{}", 3, ["{}"], 2.5])
def test_a_manifest_that_is_not_text_is_refused(text: Any) -> None:
    content = encode_request(manifest(), state(SENT))
    content["config"]["manifest"] = text
    with pytest.raises(ProtocolError):
        decode_request(content)


def test_a_request_whose_array_does_not_fit_its_manifest_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"expected \(7,\)"):
        decode_request(encode_request(manifest(), state(ASKED)))


def test_a_request_with_more_than_a_manifest_is_refused() -> None:
    content = encode_request(manifest(), state(SENT))
    content["config"]["command"] = "send everything"
    with pytest.raises(ProtocolError):
        decode_request(content)
