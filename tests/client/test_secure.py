"""What a device answers, remembers and refuses in secure aggregation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from numpy.typing import NDArray

from client.secure import MEMORY, SecureDevice
from shared.adapter import AdapterState
from shared.errors import ProtocolError
from shared.protocol import Manifest
from shared.secagg import masks, shamir
from shared.secagg.messages import (
    Boxes,
    Delivery,
    Keys,
    Neighbours,
    Opening,
    Question,
    SecureQuestion,
    Start,
    Survivors,
    read_masked,
    read_reply,
)
from shared.secagg.ring import SecurePlan, encode, reduce
from tests.secure_cohort import from_bytes, manifest, to_bytes

SIZE, OTHERS = 8, 5
VECTOR = np.full(SIZE, 0.25)
PLAN = SecurePlan(1.0, 1000.0, 3)


class Fixture:
    """One device and the keys of its neighbours, all of which the test knows."""

    def __init__(self, plan: SecurePlan = PLAN, vector: NDArray[np.float64] = VECTOR, others: int = OTHERS) -> None:
        self.memory = RecordDict()
        self.plan, self.vector, self.computed = plan, vector, 0
        self.session = bytes(16)
        self.sealing = [masks.new_secret_key() for _ in range(others)]
        self.masking = [masks.new_secret_key() for _ in range(others)]

    def compute(self) -> NDArray[np.float64]:
        self.computed += 1
        return self.vector

    def ask(self, body: Question, *, about: Manifest | None = None) -> RecordDict:
        """One message to a fresh process that finds the memory as bytes."""
        memory = from_bytes(to_bytes(self.memory))
        device = SecureDevice(memory, self.plan, self.compute)
        question = SecureQuestion(about or manifest(SIZE), AdapterState({}), self.session, body)
        try:
            return device.answer(question)
        finally:
            self.memory = memory

    def keys(self) -> Keys:
        return read_reply(self.ask(Start()), Keys, manifest=manifest(SIZE))

    def neighbours(self, threshold: int = 3) -> Neighbours:
        public = masks.public_key
        return Neighbours([public(key) for key in self.sealing], [public(key) for key in self.masking], threshold)

    def boxes(self) -> Boxes:
        return read_reply(self.ask(self.neighbours()), Boxes, manifest=manifest(SIZE))

    def delivery(self, mine: Keys, sources: list[int]) -> Delivery:
        """What the neighbours seal for the device: shares that say whose they are and of what."""
        sealed = []
        for source in sources:
            key = masks.agree(self.sealing[source], [mine.sealing])[0]
            head = self.session + masks.public_key(self.masking[source]) + mine.masking
            sealed.append(masks.seal(key, head + share("seed", source) + share("key", source)))
        return Delivery(sources, sealed)

    def until(self, stage: str) -> Keys:
        """Everything up to and with a stage, in order."""
        mine = self.keys()
        if stage != "keys":
            self.boxes()
        if stage == "masked":
            self.ask(self.delivery(mine, [0, 1, 2, 3]))
        return mine


def share(kind: str, source: int) -> bytes:
    return f"{kind} {source}".encode().ljust(shamir.SHARE_BYTES)


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.code


# --- answers -----------------------------------------------------------------------------------------------


def test_the_masked_vector_is_the_rounded_one_under_the_masks_of_exactly_the_sources() -> None:
    device = Fixture()
    mine, boxes = device.keys(), device.boxes()
    reply = device.ask(device.delivery(mine, [4, 0, 2]))
    vector = read_masked(reply, manifest=manifest(SIZE), size=SIZE)
    shares = []
    for place, box in enumerate(boxes.boxes):
        content = masks.unseal(masks.agree(device.sealing[place], [mine.sealing])[0], box)
        assert content is not None
        assert content[:82] == device.session + mine.masking + masks.public_key(device.masking[place])
        shares.append((content[82:150], content[150:]))
    seed = shamir.join([seed for seed, _ in shares[2:]], threshold=3)
    assert masks.commitment(seed, session=device.session) == boxes.commitment
    assert masks.public_key(shamir.join([key for _, key in shares[:3]], threshold=3)) == mine.masking
    vector = vector - masks.mask(seed, session=device.session, size=SIZE)
    for source in (0, 2, 4):
        other, key = masks.public_key(device.masking[source]), masks.agree(device.masking[source], [mine.masking])[0]
        vector = masks.add_pair(
            vector, masks.mask(key, session=device.session, size=SIZE), own=other, other=mine.masking
        )
    assert np.array_equal(vector, reduce(encode(VECTOR, bound=1.0, scale=1000.0)))


def test_one_share_is_opened_for_each_source_and_never_both() -> None:
    device = Fixture()
    device.until("masked")
    opening = read_reply(device.ask(Survivors([0, 2, 3])), Opening, manifest=manifest(SIZE))
    assert opening.shares == [share("seed", 0), share("key", 1), share("seed", 2), share("seed", 3)]


@pytest.mark.parametrize("fault", ["junk", "another sender", "another session", "short"])
def test_a_box_that_is_not_what_it_should_be_opens_to_nothing(fault: str) -> None:
    device = Fixture()
    mine = device.until("shares")
    delivery = device.delivery(mine, [0, 1, 2, 3])
    key = masks.agree(device.sealing[1], [mine.sealing])[0]
    sender = masks.public_key(device.masking[2 if fault == "another sender" else 1])
    session = b"y" * 16 if fault == "another session" else device.session
    content = session + sender + mine.masking + share("seed", 1) + share("key", 1)
    delivery.boxes[1] = b"junk" if fault == "junk" else masks.seal(key, content[: -1 if fault == "short" else None])
    device.ask(delivery)
    opening = read_reply(device.ask(Survivors([0, 1, 2, 3])), Opening, manifest=manifest(SIZE))
    assert opening.shares == [share("seed", 0), b"", share("seed", 2), share("seed", 3)]


def test_secrets_are_erased_with_the_last_answer() -> None:
    device = Fixture()
    device.until("masked")
    assert {"seed", "masking"} <= set(device.memory[MEMORY])
    assert "sealing" not in device.memory[MEMORY]
    device.ask(Survivors([0, 1, 2]))
    assert set(device.memory[MEMORY]) == {"stage", "session", "manifest"}


def test_a_new_session_starts_from_any_stage_with_new_keys() -> None:
    device = Fixture()
    first = device.until("masked")
    device.session = b"n" * 16
    assert device.keys() != first
    assert refusal(lambda: device.ask(Survivors([0, 1, 2]))) == "bad-message"
    device.boxes()


# --- refusals ----------------------------------------------------------------------------------------------


def test_a_second_vector_and_a_second_opening_are_refused() -> None:
    device = Fixture()
    mine = device.until("masked")
    for sources in ([0, 1, 2, 3], [0, 1, 2]):
        assert refusal(lambda sources=sources: device.ask(device.delivery(mine, sources))) == "bad-message"
    assert device.computed == 1
    device.ask(Survivors([0, 1, 2]))
    # the same survivors, or the other secret of neighbour 0
    for survivors in ([0, 1, 2], [1, 2, 3]):
        assert refusal(lambda survivors=survivors: device.ask(Survivors(survivors))) == "bad-message"


@pytest.mark.parametrize("stage", ["", "keys", "shares", "masked"])
def test_stages_out_of_order_or_twice_are_refused(stage: str) -> None:
    device = Fixture()
    mine = device.until(stage) if stage else Keys(b"", b"")
    bodies = {
        "keys": Start(),
        "shares": device.neighbours(),
        "masked": device.delivery(mine, [0, 1, 2]) if stage else Delivery([], []),
        "unmask": Survivors([0, 1, 2]),
    }
    following = {"": "keys", "keys": "shares", "shares": "masked", "masked": "unmask"}[stage]
    before = to_bytes(device.memory)
    for name, body in bodies.items():
        if name != following:
            assert refusal(lambda body=body: device.ask(body)) == "bad-message"
    assert to_bytes(device.memory) == before


@pytest.mark.parametrize("changes", [{"round": 2}, {"settings": {"rank": 8}}, {"reply": {"w": (9,)}}, {"run": "x"}])
def test_another_manifest_within_a_session_is_refused(changes: dict[str, Any]) -> None:
    device = Fixture()
    mine = device.until("shares")
    changed = replace(manifest(SIZE), **changes)
    assert refusal(lambda: device.ask(device.delivery(mine, [0, 1, 2]), about=changed)) == "bad-message"
    assert device.computed == 0


def test_another_session_is_refused() -> None:
    device = Fixture()
    mine = device.until("shares")
    device.session = b"o" * 16
    assert refusal(lambda: device.ask(device.delivery(mine, [0, 1, 2]))) == "bad-message"


@pytest.mark.parametrize("threshold", [0, 1, 2, 6])
def test_a_threshold_that_is_no_majority_is_refused(threshold: int) -> None:
    device = Fixture()
    device.keys()
    assert refusal(lambda: device.ask(device.neighbours(threshold))) == "trust"


@pytest.mark.parametrize("others", [0, 1])
def test_a_cohort_below_three_is_refused(others: int) -> None:
    device = Fixture(others=others)
    device.keys()
    assert refusal(lambda: device.ask(device.neighbours(1))) == "trust"
    assert refusal(lambda: device.ask(device.neighbours(2))) == "trust"


def test_fewer_neighbours_than_the_quorum_are_refused() -> None:
    device = Fixture(replace(PLAN, quorum=OTHERS + 2))
    device.keys()
    assert refusal(lambda: device.ask(device.neighbours())) == "trust"


@pytest.mark.parametrize("fault", ["twice", "itself", "no key", "one key missing"])
def test_neighbours_that_would_hide_nothing_are_refused(fault: str) -> None:
    device = Fixture()
    mine = device.keys()
    body = device.neighbours()
    if fault == "twice":
        body.masking[1] = body.masking[0]
    elif fault == "itself":
        body.masking[1] = mine.masking
    elif fault == "no key":
        body.sealing[1] = b"\x02" + b"\xff" * 32
    else:
        body.sealing.pop()
    assert refusal(lambda: device.ask(body)) == "bad-message"


@pytest.mark.parametrize(
    ("sources", "code"), [([0, 1], "trust"), ([], "trust"), ([0, 1, 1], "bad-message"), ([0, 1, 5], "bad-message")]
)
def test_sources_must_be_enough_and_among_the_neighbours(sources: list[int], code: str) -> None:
    device = Fixture()
    device.until("shares")
    assert refusal(lambda: device.ask(Delivery(sources, [b""] * len(sources)))) == code
    assert device.computed == 0


def test_every_source_needs_its_box() -> None:
    device = Fixture()
    device.until("shares")
    assert refusal(lambda: device.ask(Delivery([0, 1, 2], [b""]))) == "bad-message"


@pytest.mark.parametrize(
    ("survivors", "code"), [([0, 1], "trust"), ([0, 1, 4], "bad-message"), ([0, 0, 1], "bad-message")]
)
def test_survivors_must_be_enough_and_among_the_sources(survivors: list[int], code: str) -> None:
    device = Fixture()
    device.until("masked")
    assert refusal(lambda: device.ask(Survivors(survivors))) == code


def test_in_a_complete_graph_the_device_enforces_the_quorum_itself() -> None:
    device = Fixture(replace(PLAN, quorum=5))
    device.until("masked")
    assert refusal(lambda: device.ask(Survivors([0, 1, 2]))) == "trust"
    device.ask(Survivors([0, 1, 2, 3]))


@pytest.mark.parametrize("vector", [np.full(SIZE, np.nan), np.zeros(SIZE + 1)])
def test_a_vector_that_cannot_be_sent_ends_the_session_for_this_device(vector: NDArray[np.float64]) -> None:
    device = Fixture(vector=vector)
    mine = device.until("shares")
    assert refusal(lambda: device.ask(device.delivery(mine, [0, 1, 2]))) == "failed"
    device.vector = VECTOR
    assert refusal(lambda: device.ask(device.delivery(mine, [0, 1, 2]))) == "bad-message"
