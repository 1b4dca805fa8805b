"""Whole runs under secure aggregation: what the server receives, what it makes of it, and what it may claim."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from client.app import app as client_app
from client.app import open_virtual_ledger
from server.app import app as server_app
from shared.adapter import AdapterState
from shared.artifacts import load_arrays
from shared.protocol import Manifest
from simulations.engines import InlineGrid
from simulations.runfolder import RunFolder, prepare
from tests.simulations.tiny_runs import tiny_config, train_inline

SECURE = ("federation.secure_aggregation=true", "federation.rounds=2", "evaluation.every=0")
STAGES = ("keys", "shares", "masked", "unmask")

pytestmark = pytest.mark.usefixtures("own_cache")


class Wire(InlineGrid):
    """Keeps every reply, and loses the masked vectors of some devices in training rounds."""

    lost: frozenset[int] = frozenset()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.received: list[tuple[str, str, RecordDict]] = []

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        for message in messages:
            manifest = Manifest.from_json(str(message.content["config"]["manifest"]))
            stage = str(message.content["secure"]["stage"]) if "secure" in message.content else "plain"
            if manifest.phase == "train" and stage == "masked" and message.metadata.dst_node_id in self.lost:
                continue
            for reply in super().send_and_receive([message], timeout=timeout):
                self.received.append((manifest.phase, stage, reply.content))
                yield reply


def secure_run(folder: Path, data: Path, *settings: str, lost: frozenset[int] = frozenset()) -> tuple[RunFolder, Wire]:
    run = prepare(tiny_config(data, *SECURE, *settings), folder)
    run_config: dict[str, Any] = {"out": str(run.path)}
    wire = Wire(client_app, devices=run.devices, run_config=run_config)
    wire.lost = lost
    server_app(wire, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config))
    return run, wire


def test_the_server_receives_nothing_but_keys_boxes_masked_vectors_and_shares(tmp_path: Path, six_users: Path) -> None:
    run, wire = secure_run(tmp_path / "run", six_users, "privacy.mode=user")
    assert {stage for _, stage, _ in wire.received} == set(STAGES)
    for _phase, stage, content in wire.received:
        assert set(content) == ({"config", "arrays"} if stage == "masked" else {"config", "secure"})
        assert set(content["config"]) == {"schema", "run", "round", "phase"}  # repeats the question
        if stage == "masked":
            assert set(content["arrays"]) == {"masked"}
    masked = [np.frombuffer(c["arrays"]["masked"].data[-4 * 40 :], "<u4") for _, s, c in wire.received if s == "masked"]
    bits = np.unpackbits(np.concatenate(masked).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)
    assert all(row["accepted"] in (4, 6) for row in run.rows())


def test_without_noise_a_secure_run_is_the_plain_run_up_to_quantisation(tmp_path: Path, six_users: Path) -> None:
    plain = ("federation.secure_aggregation=false", "federation.server_optimizer=sgd", "federation.rounds=1")
    secure = ("federation.server_optimizer=sgd", "federation.rounds=1")
    # A clip that nothing reaches: secure aggregation always clips, a plain run without privacy does not.
    wide = ("privacy.user_clip=1000.0", "federation.server_learning_rate=1.0")
    _, expected = train_inline(tiny_config(six_users, *SECURE, *plain, *wide), tmp_path / "plain")
    run, _ = secure_run(tmp_path / "secure", six_users, *secure, *wide)
    found = AdapterState(load_arrays(run.path / "candidate.safetensors"))
    step = 1000.0 / 2**20  # of one integer, in units of the reply
    assert np.abs(found.pack() - expected.pack()).max() < 2 * step
    assert not np.array_equal(found.pack(), expected.pack())


def test_drop_outs_leave_enough_noise_for_the_claim(tmp_path: Path, six_users: Path) -> None:
    run, _ = secure_run(tmp_path / "run", six_users, "privacy.mode=both", "federation.cohort=6", lost=frozenset({2, 5}))
    rows = [row for row in run.rows() if row["phase"] == "train"]
    assert [(row["accepted"], row["refused"], row["released"]) for row in rows] == [(4, {"late": 2}, True)] * 2
    privacy = json.loads((run.path / "adapter" / "privacy.json").read_text())
    ledger = open_virtual_ledger(run.path)
    for unit, layer in privacy["layers"].items():
        assert layer["epsilon"] <= layer["budget"]
        assert "Skellam" in layer["mechanism"]
        assert max(ledger.spent(device, unit=unit, delta=1e-5) for device in range(6)) <= layer["budget"]
    assert "nothing but the sum" in privacy["statement"]


def test_below_the_quorum_nothing_is_released_or_charged_on_the_server(tmp_path: Path, six_users: Path) -> None:
    run, _ = secure_run(
        tmp_path / "run", six_users, "privacy.mode=user", "federation.cohort=6", lost=frozenset({1, 2, 3, 4})
    )
    rows = [row for row in run.rows() if row["phase"] == "train"]
    assert all(not row["released"] and row["refused"]["no-sum"] == 1 for row in rows)
    assert json.loads((run.path / "adapter" / "privacy.json").read_text())["rounds_released"] == 0
