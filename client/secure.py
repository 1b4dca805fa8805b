"""The device's side of secure aggregation: four answers, and what it refuses to answer.

Every message may run in a fresh process, so what a device must remember lives in a `RecordDict` that outlives it: in a
simulation the one that Flower keeps (`context.state`), on a real device one in the memory of its service
(`client.door.rounds`). That record holds secrets; they are erased with the last answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray

from shared.adapter import AdapterState
from shared.errors import ProtocolError
from shared.protocol import Manifest
from shared.secagg import graph, masks, shamir
from shared.secagg.messages import (
    Boxes,
    Delivery,
    Keys,
    Neighbours,
    Opening,
    SecureQuestion,
    Start,
    Survivors,
    encode_masked,
    encode_reply,
)
from shared.secagg.ring import Residues, SecurePlan, encode, reduce
from shared.secagg.skellam import skellam_noise

MEMORY = "secure-session"


@dataclass(frozen=True)
class SecureDevice:
    """Answers one device's questions.

    memory: what is kept between messages. plan: the public parameters. compute: gives the clipped vector (d,)
    without noise; called once a session, after every check of stage `masked`, so it is where a ledger is charged.
    rng: a simulation's noise generator; without one the operating system seeds the noise.

    | refused | code | because otherwise |
    |---|---|---|
    | a second vector, or any stage twice or out of order | bad-message | one mask would hide two vectors |
    | a second opening | bad-message | own mask and key of one neighbour together open its vector |
    | another manifest than the session's | bad-message | the vector would answer another question |
    | a neighbour twice, the device itself, bytes that are no key | bad-message | the pair would hide nothing |
    | a threshold below a majority or 2 | trust | two groups of neighbours could open both secrets of a device |
    | fewer sources or survivors than `graph.least_survivors` | trust | one device could be singled out |
    | sources or survivors that are not among those before | bad-message | it holds no box of theirs |
    """

    memory: RecordDict
    plan: SecurePlan
    compute: Callable[[], NDArray[np.float64]]
    rng: np.random.Generator | None = None

    def answer(self, question: SecureQuestion) -> RecordDict:
        """The reply; ProtocolError for everything in the table."""
        body = question.body
        if isinstance(body, Delivery):
            return encode_masked(self._masked(question, body), manifest=question.manifest)
        if isinstance(body, Start):
            return encode_reply(self._keys(question), manifest=question.manifest)
        if isinstance(body, Neighbours):
            return encode_reply(self._boxes(question, body), manifest=question.manifest)
        return encode_reply(self._opening(question, body), manifest=question.manifest)

    def _keys(self, question: SecureQuestion) -> Keys:
        """A new session; whatever an older one remembered is gone."""
        if self.memory.get(MEMORY, {}).get("session") == question.session:
            raise ProtocolError("found a session that has begun already; expected a new one")
        sealing, masking = masks.new_secret_key(), masks.new_secret_key()
        self._remember("keys", question, {"sealing": sealing, "masking": masking, "seed": masks.new_seed()})
        return Keys(masks.public_key(sealing), masks.public_key(masking))

    def _boxes(self, question: SecureQuestion, body: Neighbours) -> Boxes:
        """Seed and masking key in shares, sealed for each neighbour."""
        mine = self._recall("keys", question)
        own, number = masks.public_key(mine["masking"]), len(body.masking)
        if len(body.sealing) != number or len({own, *body.masking}) != number + 1:
            raise ProtocolError("found a neighbour twice or without both keys, or the device itself among them")
        least = graph.least_survivors(number, asked=body.threshold, quorum=self.plan.quorum)
        if body.threshold < graph.threshold(number) or least > number:
            raise ProtocolError(f"found threshold {body.threshold} for {number} neighbours", code="trust")
        seeds = shamir.split(mine["seed"], threshold=body.threshold, shares=number)
        keys = shamir.split(mine["masking"], threshold=body.threshold, shares=number)
        box_keys = masks.agree(mine.pop("sealing"), body.sealing)
        boxes = [
            masks.seal(box_key, question.session + own + to + seed_share + key_share)
            for box_key, to, seed_share, key_share in zip(box_keys, body.masking, seeds, keys, strict=True)
        ]
        neighbours = {"box_keys": box_keys, "neighbours": body.masking, "least": least}
        self._remember("shares", question, {**mine, **neighbours})
        return Boxes(boxes, masks.commitment(mine["seed"], session=question.session))

    def _masked(self, question: SecureQuestion, body: Delivery) -> Residues:
        """The rounded vector, this device's share of the noise, its own mask and one mask per source."""
        mine = self._recall("shares", question)
        _check_subset(body.sources, of=range(len(mine["neighbours"])), least=mine["least"])
        if len(body.boxes) != len(body.sources):
            raise ProtocolError("found other than one box per source")
        others = [mine["neighbours"][source] for source in body.sources]
        keys = masks.agree(mine["masking"], others)
        # Written before the vector exists: whatever comes of it, this session gets no other.
        self._remember("masked", question, {**mine, "sources": body.sources, "boxes": body.boxes})
        total = reduce(self._noisy_steps(question.manifest))
        total += masks.mask(mine["seed"], session=question.session, size=len(total))
        own = masks.public_key(mine["masking"])
        for key, other in zip(keys, others, strict=True):
            pair = masks.mask(key, session=question.session, size=len(total))
            total = masks.add_pair(total, pair, own=own, other=other)
        return total

    def _noisy_steps(self, manifest: Manifest) -> NDArray[np.int64]:
        size, vector = AdapterState.length(manifest.reply), self.compute()
        if vector.shape != (size,):
            raise ProtocolError(f"found a vector of shape {vector.shape}; expected ({size},)", code="failed")
        noise = skellam_noise(size, variance=self.plan.variance, rng=self.rng)
        return encode(vector, bound=self.plan.bound, scale=self.plan.scale) + noise

    def _opening(self, question: SecureQuestion, body: Survivors) -> Opening:
        """For each source one share: of the own mask's seed if it survived, else of the key of its pair masks.

        Never a share of both, and never this device's own seed: a server could take the seed here and have others,
        told that this device dropped out, open its key.
        """
        mine = self._recall("masked", question)
        _check_subset(body.survivors, of=mine["sources"], least=mine["least"])
        shares = []
        for source, box in zip(mine["sources"], mine["boxes"], strict=True):
            seed_share, key_share = _open_box(box, source, mine=mine, session=question.session)
            shares.append(seed_share if source in body.survivors else key_share)
        self._remember("unmask", question, {})
        return Opening(shares)

    def _remember(self, stage: str, question: SecureQuestion, values: Mapping[str, Any]) -> None:
        known = {"stage": stage, "session": question.session, "manifest": _digest(question.manifest)}
        self.memory[MEMORY] = ConfigRecord({**values, **known})

    def _recall(self, stage: str, question: SecureQuestion) -> dict[str, Any]:
        """What the stage before left; ProtocolError when it was not this session's, or not this manifest's."""
        mine = dict(self.memory.get(MEMORY, {}))
        expected = {"stage": stage, "session": question.session, "manifest": _digest(question.manifest)}
        if any(mine.get(name) != value for name, value in expected.items()):
            raise ProtocolError(f"found a message that does not follow stage {stage} of this session")
        return mine


def _digest(manifest: Manifest) -> bytes:
    """Of everything but the shapes of the array sent along, which only stage `masked` carries."""
    return sha256(replace(manifest, shapes={}).to_json().encode()).digest()


def _check_subset(found: Sequence[int], *, of: Sequence[int], least: int) -> None:
    if len(set(found)) != len(found) or not set(found) <= set(of):
        raise ProtocolError("found a device twice, or one that this device did not share with")
    if len(found) < least:
        raise ProtocolError(f"found {len(found)} neighbours left; expected at least {least}", code="trust")


def _open_box(box: bytes, source: int, *, mine: Mapping[str, Any], session: bytes) -> tuple[bytes, bytes]:
    """A neighbour's shares of seed and key; empty where the box is not from it, for this device, in this session."""
    content = masks.unseal(mine["box_keys"][source], box)
    head = session + mine["neighbours"][source] + masks.public_key(mine["masking"])
    if content is None or content[: len(head)] != head or len(content) != len(head) + 2 * shamir.SHARE_BYTES:
        return b"", b""
    return content[len(head) : -shamir.SHARE_BYTES], content[-shamir.SHARE_BYTES :]
