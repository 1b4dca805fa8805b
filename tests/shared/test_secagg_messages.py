"""Masks, shares and the messages of secure aggregation."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from flwr.app import Array as WireArray
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shared.adapter import AdapterState
from shared.errors import ProtocolError
from shared.protocol import encode_refusal, encode_request
from shared.secagg import masks, messages, shamir
from tests.secure_cohort import manifest

SESSION = bytes(16)

# --- masks -------------------------------------------------------------------------------------------------


def test_two_devices_agree_on_a_mask_and_others_do_not() -> None:
    a, b, c = (masks.new_secret_key() for _ in range(3))
    key = masks.agree(a, [masks.public_key(b)])[0]
    assert key == masks.agree(b, [masks.public_key(a)])[0] != masks.agree(c, [masks.public_key(a)])[0]
    mask = masks.mask(key, session=SESSION, size=1000)
    assert np.array_equal(mask, masks.mask(key, session=SESSION, size=1000))
    assert not np.array_equal(mask, masks.mask(key, session=b"x" * 16, size=1000))
    own, other = masks.public_key(a), masks.public_key(b)
    zero = np.zeros(1000, dtype=np.uint32)
    both = masks.add_pair(masks.add_pair(zero, mask, own=own, other=other), mask, own=other, other=own)
    assert not both.any()


def test_masks_are_uniform_and_depend_on_every_bit_of_the_key() -> None:
    key = bytes(range(32))
    mask = masks.mask(key, session=SESSION, size=2**16)
    assert stats.chisquare(np.bincount(mask >> 24, minlength=256)).pvalue > 1e-4
    assert stats.chisquare(np.bincount(mask & 255, minlength=256)).pvalue > 1e-4
    # folded to 32 bits, as Flower's generator folds its seed, these two keys would be one
    swapped = key[4:8] + key[:4] + key[8:]
    assert np.mean(mask == masks.mask(swapped, session=SESSION, size=2**16)) < 1e-3


@given(st.binary(min_size=32, max_size=32), st.integers(1, 20), st.integers(0, 20), st.randoms())
def test_any_threshold_shares_give_the_secret(secret: bytes, threshold: int, more: int, order: Random) -> None:
    shares = shamir.split(secret, threshold=threshold, shares=threshold + more)
    order.shuffle(shares)
    assert {len(share) for share in shares} == {shamir.SHARE_BYTES}
    assert shamir.join(shares, threshold=threshold) == secret


def test_the_secret_is_where_the_line_through_two_shares_starts() -> None:
    shares = shamir.split((5).to_bytes(32, "big"), threshold=2, shares=2)
    first, second = (int.from_bytes(share[2:], "big") for share in shares)
    assert (2 * first - second) % shamir.PRIME == 5


def test_fewer_shares_than_the_threshold_fit_every_secret() -> None:
    low, high = (bytes(32), b"\xff" * 32)
    values = [
        [int.from_bytes(shamir.split(secret, threshold=2, shares=3)[0][2:], "big") for _ in range(2000)]
        for secret in (low, high)
    ]
    for found in values:
        assert stats.kstest([value / shamir.PRIME for value in found], "uniform").pvalue > 1e-6


def test_joining_walks_its_table() -> None:
    shares = shamir.split(b"s" * 32, threshold=3, shares=5)
    zero, large = bytes(2) + shares[0][2:], shares[0][:2] + b"\xff" * 66
    for bad in (shares[:2], [*shares[:2], shares[0]], [*shares[:2], b"x"], [*shares[:2], zero], [large, *shares[1:3]]):
        with pytest.raises(ProtocolError, match="share"):
            shamir.join(bad, threshold=3)
    other = shamir.split(b"o" * 32, threshold=3, shares=5)
    with pytest.raises(ProtocolError, match="belong together"):
        shamir.join([*shares[:2], other[2]], threshold=3)


@pytest.mark.parametrize(("secret", "threshold", "shares"), [(b"short", 2, 3), (bytes(32), 0, 3), (bytes(32), 4, 3)])
def test_splitting_refuses_what_cannot_be_joined(secret: bytes, threshold: int, shares: int) -> None:
    with pytest.raises(ProtocolError):
        shamir.split(secret, threshold=threshold, shares=shares)


@pytest.mark.parametrize("public", [b"", b"\x02" + b"\xff" * 32, b"\x04" + bytes(64), bytes(33)])
def test_bytes_that_are_no_key_are_refused(public: bytes) -> None:
    with pytest.raises(ProtocolError, match="no public key"):
        masks.check_public(public)


def test_bytes_that_are_no_private_key_are_refused() -> None:
    with pytest.raises(ProtocolError, match="no private key"):
        masks.public_key(bytes(32))


def test_a_sealed_box_opens_only_unaltered_and_with_its_key() -> None:
    publics = [masks.public_key(masks.new_secret_key()) for _ in range(2)]
    key, other = masks.agree(masks.new_secret_key(), publics)
    box = masks.seal(key, b"share")
    assert masks.unseal(key, box) == b"share"
    assert masks.unseal(other, box) is None
    assert masks.unseal(key, box[:-4] + b"AAAA") is None
    assert masks.unseal(key, b"") is None


# --- messages ----------------------------------------------------------------------------------------------

REQUEST = encode_request(manifest(4), AdapterState({}))
BODIES: list[messages.Question] = [
    messages.Start(),
    messages.Neighbours([b"a", b"b"], [b"c", b"d"], 2),
    messages.Delivery([0, 1], [b"x", b"y"]),
    messages.Survivors([]),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_questions_come_back_as_they_were(body: messages.Question) -> None:
    content = messages.encode_question(REQUEST, session=SESSION, body=body)
    assert messages.is_secure(content)
    assert not messages.is_secure(REQUEST)
    found = messages.decode_question(content)
    assert (found.body, found.session, found.manifest) == (body, SESSION, manifest(4))


def spoiled(**changes: Any) -> RecordDict:
    content = messages.encode_question(REQUEST, session=SESSION, body=BODIES[2])
    record = {**content["secure"], **changes}
    content["secure"] = ConfigRecord({name: value for name, value in record.items() if value is not None})
    return content


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "sum"},
        {"stage": 3},
        {"session": b"short"},
        {"session": None},
        {"sources": None},
        {"extra": 1},
        {"sources": [0, -1]},
        {"sources": [0.0, 1.0]},
        {"sources": 3},
        {"boxes": ["x", "y"]},
        {"boxes": [bytes(messages.MAX_BYTES + 1)]},
        {"sources": [0] * (messages.MAX_ITEMS + 1)},
        {"stage": "unmask"},
    ],
    ids=str,
)
def test_spoiled_questions_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError) as caught:
        messages.decode_question(spoiled(**changes))
    assert caught.value.code == "bad-message"


def test_a_plain_request_is_no_secure_question() -> None:
    with pytest.raises(ProtocolError, match="no stage"):
        messages.decode_question(REQUEST)


def masked(change: Callable[[RecordDict], None]) -> RecordDict:
    content = messages.encode_masked(np.arange(4, dtype=np.uint32), manifest=manifest(4))
    change(content)
    return content


def put(**fields: Any) -> Callable[[RecordDict], None]:
    values = {"dtype": "uint32", "shape": (4,), "stype": "raw", "data": bytes(16)} | fields

    def change(content: RecordDict) -> None:
        content["arrays"] = ArrayRecord({"masked": WireArray(**values)})

    return change


def test_masked_vectors_come_back_as_they_were() -> None:
    found = messages.read_masked(masked(lambda _: None), manifest=manifest(4), size=4)
    assert found.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (put(dtype="float32"), "bad-shape"),
        (put(shape=(2, 2)), "bad-shape"),
        (put(stype="numpy.ndarray"), "bad-shape"),
        (put(data=bytes(20)), "bad-shape"),
        (lambda content: content.update({"arrays": ArrayRecord()}), "bad-message"),
        (lambda content: content.update({"more": ConfigRecord({"loss": 1.0})}), "bad-message"),
        (lambda content: content["config"].update({"count": 3}), "bad-message"),
        (lambda content: content["config"].update({"round": 2}), "bad-message"),
        (lambda content: content.pop("arrays"), "bad-message"),
    ],
)
def test_spoiled_vectors_are_refused(change: Callable[[RecordDict], None], code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        messages.read_masked(masked(change), manifest=manifest(4), size=4)
    assert caught.value.code == code


def test_replies_come_back_as_they_were_and_refusals_by_code() -> None:
    body = messages.Boxes([b"x"], b"commitment")
    content = messages.encode_reply(body, manifest=manifest(4))
    assert messages.read_reply(content, messages.Boxes, manifest=manifest(4)) == body
    for bad in (messages.Keys, messages.Opening):
        with pytest.raises(ProtocolError, match="no sound"):
            messages.read_reply(content, bad, manifest=manifest(4))
    with pytest.raises(ProtocolError, match="another message"):
        messages.read_reply(content, messages.Boxes, manifest=manifest(4, number=2))
    with pytest.raises(ProtocolError) as caught:
        messages.read_reply(encode_refusal("budget", manifest(4)), messages.Keys, manifest=manifest(4))
    assert caught.value.code == "budget"
