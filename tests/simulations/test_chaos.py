"""Runs under random faults end, and every fault is accounted for."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from client.app import open_virtual_ledger
from server.ledger import ServerLedger
from shared.adapter import AdapterState
from shared.artifacts import load_adapter
from shared.errors import ConfigError, ProtocolError, RunError
from shared.noise import MODES
from shared.privacy.statement import privacy_facts
from shared.protocol import Manifest, decode_reply, encode_reply
from simulations.chaos import SERVER_FAULTS, Chaos, run_chaotic
from simulations.engines import run_inline
from simulations.faults import FAULTS
from simulations.runfolder import RunFolder, prepare
from tests.simulations.tiny_runs import tiny_config

PRIVATE = ("privacy.mode=both", "federation.quorum=0.6", "federation.cohort=8")
FAST = ("evaluation.every=0", "model.blocks=1")
QUESTION = Manifest("run", 3, "train", "b", "c", reply={"w": (4,)})

pytestmark = pytest.mark.usefixtures("own_cache")


def start(folder: Path, data: Path, *settings: str) -> RunFolder:
    return prepare(tiny_config(data, *PRIVATE, *FAST, *settings), folder)


def server_ledger(run: RunFolder) -> ServerLedger:
    place = run.path / "server-ledger.sqlite"
    return ServerLedger(place, durable=False, witness=place.with_suffix(".witness"))


def check_the_books(run: RunFolder) -> None:
    """There is a model; its statement is what the server's ledger replays to; no device spent more than its budget."""
    load_adapter(run.path / "adapter")
    stated = json.loads((run.path / "adapter" / "privacy.json").read_text())
    entries = server_ledger(run).entries()
    name = entries[0]["run"]
    assert json.loads(json.dumps(privacy_facts(entries, run=name))) == stated
    budget = run.config.privacy.epsilon * (1 + 1e-6)
    assert all(0 < layer["epsilon"] <= budget for layer in stated["layers"].values())
    devices = open_virtual_ledger(run.path)
    units = MODES[run.config.privacy.mode]
    spent = [devices.spent(n, unit=unit, delta=1e-5) for n in range(run.devices) for unit in units]
    assert 0 < max(spent) <= budget
    released = [(row["phase"], row["round"]) for row in run.rows() if row["released"]]
    charged = [(entry["phase"], entry["round"]) for entry in entries if entry["kind"] == "release"]
    assert charged == released


def refused(run: RunFolder) -> Counter[str]:
    return sum((Counter(row["refused"]) for row in run.rows()), Counter[str]())


# --- which fault meets what ----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_faults_on_any_machine() -> None:
    """Pinned, because a hash that differs between processes would make runs under faults impossible to repeat."""
    drawn = [Chaos.of_rate(0, 0.5).strikes("train", number, 1, rate=0.5) % len(FAULTS) for number in range(8)]
    assert drawn == [10, 0, 9, 10, 14, 4, 0, 0]


def test_faults_come_at_the_rate_asked_for() -> None:
    chaos = Chaos.of_rate(3, 0.2)
    met = sum(bool(chaos.strikes("train", number, 1, rate=0.2)) for number in range(4000))
    assert met / 4000 == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / 4000))


@pytest.mark.parametrize("name", FAULTS)
def test_the_server_counts_a_fault_as_the_table_says(name: str) -> None:
    content: RecordDict = encode_reply(QUESTION, AdapterState({"w": np.ones(4, dtype=np.float32)}))
    FAULTS[name].spoil(content)
    spoiled = FAULTS[name].counted_as in ("not-finite", "bad-shape", "bad-message")
    if not spoiled:
        assert decode_reply(content, QUESTION).norm() == {"huge": 2e6, "zero": 0.0}.get(name, 2.0)
        return
    with pytest.raises(ProtocolError) as error:
        decode_reply(content, QUESTION)
    assert error.value.code == FAULTS[name].counted_as


# --- runs ----------------------------------------------------------------------------------------------------


def test_a_run_under_faults_of_every_kind_ends_with_a_model_and_matching_books(tiny_data: Path, tmp_path: Path) -> None:
    run = start(tmp_path / "run", tiny_data, "simulation.chaos=0.3", "federation.rounds=8", "federation.quorum=0.4")
    run_inline(run.path, devices=run.devices)
    account = json.loads((run.path / "chaos.json").read_text())
    assert account["unexplained"] == {}
    assert account["refused"] == dict(refused(run))
    injected = Counter[str]()
    for fault in account["devices"].values():
        injected[fault["counted_as"]] += fault["met"]
    del injected[""]
    assert injected == refused(run)
    assert len(account["devices"]) >= 10
    assert [row["round"] for row in run.rows() if row["phase"] == "train"] == list(range(1, 9))
    check_the_books(run)


@pytest.mark.parametrize("messages", [0.0, 0.2])
def test_a_server_that_dies_again_and_again_ends_like_one_that_does_not(
    messages: float, tiny_data: Path, tmp_path: Path
) -> None:
    calm, stormy = (start(tmp_path / name, tiny_data, "federation.rounds=3") for name in ("calm", "stormy"))
    whole = Chaos(1, messages=messages, steps=0.0)
    broken = Chaos(1, messages=messages, steps=0.6)
    run_chaotic(calm.path, devices=calm.devices, chaos=whole)
    account = run_chaotic(stormy.path, devices=stormy.devices, chaos=broken)
    assert set(account["server"]) == set(SERVER_FAULTS)
    assert whole.server == {}
    for name in ("candidate.safetensors", "adapter/adapter_model.safetensors", "adapter/privacy.json"):
        assert (stormy.path / name).read_bytes() == (calm.path / name).read_bytes(), name
    assert server_ledger(stormy).entries() == server_ledger(calm).entries()
    assert server_ledger(stormy).head() == server_ledger(calm).head()
    books = [open_virtual_ledger(run.path) for run in (calm, stormy)]
    assert all(books[0].releases(n) == books[1].releases(n) for n in range(calm.devices))
    assert refused(stormy) == refused(calm)
    check_the_books(stormy)


@pytest.mark.parametrize("privacy", [("privacy.mode=none", "prior.folds=2"), ()], ids=["two groups", "private"])
def test_faults_in_every_group_of_a_prior_are_accounted_for(
    privacy: tuple[str, ...], tiny_data: Path, tmp_path: Path
) -> None:
    asked = ("prior.half_lives=[2.0]", "prior.widths=[8]", "prior.output=8", "federation.quorum=0.2")
    run = start(tmp_path / "run", tiny_data, *asked, "simulation.chaos=0.3", *privacy)
    run_inline(run.path, devices=run.devices)
    account = json.loads((run.path / "chaos.json").read_text())
    (row,) = [row for row in run.rows() if row["phase"] == "prior"]
    met = {node for phase, number, node, _ in account["met"] if (phase, number) == ("prior", 0)}
    assert {node % 2 for node in met} == {0, 1}
    assert sum(row["refused"].values()) >= row["asked"] - row["accepted"] > 1
    assert account["unexplained"] == {}


def test_too_many_faults_end_the_run_with_the_reason_and_the_account(tiny_data: Path, tmp_path: Path) -> None:
    run = start(tmp_path / "run", tiny_data)
    with pytest.raises(RunError, match=r"the popularity count got \d of 12 replies: .*late"):
        run_chaotic(run.path, devices=run.devices, chaos=Chaos(0, messages=0.95, steps=0.0))
    assert json.loads((run.path / "chaos.json").read_text())["met"]


def test_an_interrupted_run_goes_on_with_its_account(tiny_data: Path, tmp_path: Path) -> None:
    run = start(tmp_path / "run", tiny_data)

    class StoppingChaos(Chaos):
        def strikes(self, *what: object, rate: float) -> int:
            if what[:2] == ("server", "asked") and what[3] == 2:
                raise KeyboardInterrupt
            return super().strikes(*what, rate=rate)

    with pytest.raises(KeyboardInterrupt):
        run_chaotic(run.path, devices=run.devices, chaos=StoppingChaos(0, messages=0.2, steps=0.2))
    account = run_chaotic(run.path, devices=run.devices, chaos=Chaos(0, messages=0.2, steps=0.2))
    assert account["unexplained"] == {}
    assert account["refused"] == dict(sorted(refused(run).items()))
    assert {asked for asked, *_ in account_keys(run)} == {"popularity", "train", "validate"}


def account_keys(run: RunFolder) -> list[list[object]]:
    return list(json.loads((run.path / "chaos.json").read_text())["met"])


def test_flowers_own_engine_cannot_be_disturbed(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"simulation\.chaos with federation\.engine = 'ray'.*Use .*'inline'"):
        start(tmp_path / "run", tiny_data, "simulation.chaos=0.1", "federation.engine=ray")


def test_masked_replies_cannot_be_spoiled(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"simulation\.chaos with federation\.secure_aggregation.*Choose "):
        start(tmp_path / "run", tiny_data, "simulation.chaos=0.1", "federation.secure_aggregation=true")


@pytest.mark.slow
def test_two_hundred_rounds_at_a_fault_in_five_messages(tmp_path: Path) -> None:
    world = ("data.world_users=48", "data.world_events=8", "simulation.chaos=0.2")
    run = start(tmp_path / "run", Path("world"), *world, "federation.rounds=200", "federation.cohort=6")
    run_inline(run.path, devices=run.devices)
    account = json.loads((run.path / "chaos.json").read_text())
    assert account["unexplained"] == {}
    assert 5 <= sum(account["server"].values()) <= 25
    assert set(account["devices"]) == set(FAULTS)
    assert account["refused"] == dict(sorted(refused(run).items()))
    check_the_books(run)
