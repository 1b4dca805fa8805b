"""Secure aggregation from end to end: the sum, the faults, and what the server gets to see."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from numpy.typing import NDArray
from scipy import stats

from server.secure import SecureSum
from shared.protocol import encode_refusal
from shared.secagg.messages import STAGES, read_masked
from shared.secagg.ring import decode
from tests.secure_cohort import CohortGrid, from_bytes, manifest, plan, vectors

COHORT, SIZE = 10, 300


def check_sum(found: SecureSum | None, grid: CohortGrid, *, survivors: set[int]) -> None:
    """The decoded sum is the plain one, up to half a step for each survivor."""
    assert found is not None
    assert found.survivors == len(survivors)
    plain = sum(grid.vectors[node] for node in survivors)
    error = np.abs(decode(found.total, scale=grid.plan.scale) - plain).max()
    assert error <= found.survivors / (2 * grid.plan.scale) + 1e-12


def run(grid: CohortGrid) -> tuple[SecureSum | None, str, dict[str, int]]:
    exchange = grid.exchange()
    found = exchange.run()
    return found, exchange.reason, dict(exchange.refused)


def test_without_drop_outs_the_sum_is_the_plain_sum() -> None:
    grid = CohortGrid(vectors(COHORT, SIZE), plan(COHORT))
    found, reason, refused = run(grid)
    check_sum(found, grid, survivors=set(grid.vectors))
    assert (reason, refused) == ("", {})
    assert sorted(grid.computed) == sorted(grid.vectors)


@pytest.mark.parametrize("stage", STAGES)
def test_a_fifth_may_drop_out_at_any_stage(stage: str) -> None:
    gone = {3, 8}
    grid = CohortGrid(vectors(COHORT, SIZE), plan(COHORT), drop={stage: gone})
    found, _, refused = run(grid)
    check_sum(found, grid, survivors=set(grid.vectors) - (gone if stage != "unmask" else set()))
    assert refused == {"late": 1, "no-answer": 1}


def test_some_may_drop_out_at_every_stage() -> None:
    grid = CohortGrid(vectors(12, SIZE), plan(12, quorum=7), drop={s: {n} for n, s in enumerate(STAGES, start=2)})
    found, _, _ = run(grid)
    check_sum(found, grid, survivors=set(grid.vectors) - {2, 3, 4})


def test_some_may_drop_out_of_a_sparse_graph() -> None:
    gone = {"shares": {1}, "masked": {7, 14, 21, 28, 35}, "unmask": {2, 3, 5, 8, 13}}
    grid = CohortGrid(vectors(52, 20), plan(52), drop=gone)
    found, _, _ = run(grid)
    check_sum(found, grid, survivors=set(grid.vectors) - gone["shares"] - gone["masked"])


@pytest.mark.parametrize("stage", STAGES)
def test_below_quorum_or_threshold_nothing_is_released(stage: str) -> None:
    gone = set(range(1, 7))
    grid = CohortGrid(vectors(COHORT, SIZE), plan(COHORT), drop={stage: gone})
    found, reason, _ = run(grid)
    assert found is None
    assert ("to join" if stage == "unmask" else f"stage {stage}: found 4 devices") in reason
    if stage != "unmask":
        assert not any(later == "unmask" for _, later, _ in grid.sent)


def test_two_devices_are_never_summed() -> None:
    grid = CohortGrid(vectors(2, SIZE), plan(2, quorum=1))
    found, reason, _ = run(grid)
    assert found is None
    assert "found 2 devices; expected at least 3" in reason


def test_three_devices_can_be() -> None:
    grid = CohortGrid(vectors(3, SIZE), plan(3, quorum=1))
    check_sum(run(grid)[0], grid, survivors={1, 2, 3})


def test_the_sum_carries_the_noise_of_its_survivors() -> None:
    std, quorum = 5e4, 8
    grid = CohortGrid(vectors(COHORT, 20_000), plan(COHORT, quorum=quorum, variance=std**2 / quorum), seed=1)
    found, _, _ = run(grid)
    assert found is not None
    noise = decode(found.total, scale=1.0) - sum(grid.vectors.values()) * grid.plan.scale
    assert noise.std() == pytest.approx(std * np.sqrt(COHORT / quorum), rel=0.03)


# --- hostile or faulty devices -----------------------------------------------------------------------------


def edited(stage: str, reply: RecordDict | None = None, **fields: object) -> CohortGrid:
    """A cohort in which the answers of device 1 to a stage are changed."""

    def edit(node: int, at: str, content: RecordDict) -> RecordDict:
        if (node, at) != (1, stage):
            return content
        if reply is not None:
            return reply
        content["secure"] = ConfigRecord({**content["secure"], **fields})  # type: ignore[dict-item]
        return content

    return CohortGrid(vectors(COHORT, SIZE), plan(COHORT), edit=edit)


@pytest.mark.parametrize(
    ("grid", "code"),
    [
        (edited("keys", encode_refusal("budget", manifest(SIZE))), "budget"),
        (edited("keys", RecordDict()), "bad-message"),
        (edited("keys", masking=b"x" * 33), "bad-message"),
        (edited("shares", boxes=[]), "bad-shape"),
        (edited("shares", loss=0.3), "bad-message"),
        (edited("masked", encode_refusal("failed", manifest(SIZE))), "failed"),
        (edited("masked", RecordDict({"config": ConfigRecord()})), "bad-message"),
    ],
)
def test_a_reply_that_breaks_the_contract_counts_as_a_drop_out(grid: CohortGrid, code: str) -> None:
    found, _, refused = run(grid)
    check_sum(found, grid, survivors=set(range(2, COHORT + 1)))
    assert refused == {code: 1}


@pytest.mark.parametrize("shares", [[], [b""] * 9, [b"x"] * 9, [b"\0\x07" + bytes(66)] * 9])
def test_shares_of_the_wrong_form_are_left_out(shares: list[bytes]) -> None:
    grid = edited("unmask", shares=shares)
    check_sum(run(grid)[0], grid, survivors=set(grid.vectors))


@pytest.mark.parametrize("gone", [set(), {10}])
def test_shares_of_the_right_form_that_lie_give_no_sum(gone: set[int]) -> None:
    grid = edited("unmask", shares=[b"\0\x01" + bytes(66)] * 9)
    grid.drop = {"masked": gone}
    found, reason, _ = run(grid)
    assert found is None
    assert "shares" in reason


def test_boxes_that_open_for_nobody_cost_one_share_each() -> None:
    grid = edited("shares", boxes=[b"junk"] * 9)
    found, reason, _ = run(grid)
    # its neighbours hold no share of its mask: the round is lost, nothing else
    assert found is None
    assert "to join" in reason


def test_one_key_sent_by_two_devices_is_used_once() -> None:
    keys: list[RecordDict] = []

    def copy(node: int, stage: str, content: RecordDict) -> RecordDict:
        if stage == "keys" and node in (1, 2):
            keys.append(content)
            return keys[0]
        return content

    grid = CohortGrid(vectors(COHORT, SIZE), plan(COHORT), edit=copy)
    found, _, refused = run(grid)
    check_sum(found, grid, survivors=set(grid.vectors) - {2})
    assert refused == {"bad-message": 1}


# --- what the server sees ----------------------------------------------------------------------------------


def masked_vectors(grid: CohortGrid) -> dict[int, NDArray[np.uint32]]:
    size = len(grid.vectors[1])
    replies = {node: from_bytes(data) for node, stage, data in grid.received if stage == "masked"}
    return {node: read_masked(reply, manifest=manifest(size), size=size) for node, reply in replies.items()}


def test_every_byte_the_server_receives_is_a_key_a_box_a_share_or_noise() -> None:
    size = 4096
    grid = CohortGrid(vectors(COHORT, size), plan(COHORT), drop={"masked": {4}})
    found, _, _ = run(grid)
    assert found is not None
    address = {"schema": 1, "run": "run", "round": 1, "phase": "train"}
    said = {"keys": {"sealing", "masking"}, "shares": {"boxes", "commitment"}, "unmask": {"shares"}}
    for node, stage, data in grid.received:
        reply = from_bytes(data)
        assert dict(reply["config"]) == address
        if stage in said:
            assert set(reply) == {"config", "secure"}
            assert set(reply["secure"]) == said[stage]
        else:
            assert set(reply) == {"config", "arrays"}
        # what a plain reply of this device would have held is nowhere in it
        for plain in (grid.vectors[node].astype("<f4"), np.rint(grid.vectors[node] * grid.plan.scale).astype("<i4")):
            assert plain.tobytes()[:16] not in data


def test_a_masked_vector_is_uniform_and_says_nothing_of_the_update() -> None:
    size = 4096
    grid = CohortGrid(vectors(COHORT, size), plan(COHORT))
    assert run(grid)[0] is not None
    for node, masked in masked_vectors(grid).items():
        for shift in (0, 24):
            assert stats.chisquare(np.bincount((masked >> shift) & 255, minlength=256)).pvalue > 1e-6
        readings = (decode(masked, scale=grid.plan.scale), masked.astype(np.float64))
        for reading in readings:
            assert abs(np.corrcoef(reading, grid.vectors[node])[0, 1]) < 6 / np.sqrt(size)
        for other, theirs in masked_vectors(grid).items():
            assert other == node or np.mean(masked == theirs) < 0.01


def test_the_same_updates_give_other_vectors_and_the_same_sum_in_another_session() -> None:
    grid = CohortGrid(vectors(COHORT, SIZE), plan(COHORT))
    first, _, _ = run(grid)
    before = masked_vectors(grid)
    again, _, _ = run(grid)
    assert first is not None
    assert again is not None
    assert np.array_equal(first.total, again.total)
    for node, masked in masked_vectors(grid).items():
        assert np.mean(masked == before[node]) < 0.02
        assert abs(np.corrcoef(masked.astype(float), before[node].astype(float))[0, 1]) < 6 / np.sqrt(SIZE)
