"""The ClientApp: which device a message reaches, and that nothing but the contract comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import app as module
from client.app import app, open_device
from client.limits import Limits
from client.store import Store
from shared.artifacts import POPULARITY, save_catalogue
from shared.errors import HomerankError
from shared.privacy.ledger import Ledger
from shared.protocol import decode_reply
from simulations.runfolder import prepare
from tests.client.small_device import ITEMS, OPEN, SHELF, question, rows
from tests.simulations.tiny_runs import tiny_config, write_data


@pytest.fixture(autouse=True)
def _a_runtime_without_a_network(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOMERANK_RUN", raising=False)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def context(node_config: dict[str, Any], **run_config: Any) -> Context:
    return Context(run_id=1, node_id=7, node_config=node_config, state=RecordDict(), run_config=run_config)


def message(content: RecordDict, kind: str) -> Message:
    asked = Message(content, dst_node_id=7, message_type=kind)
    asked.metadata.__dict__["_message_id"] = "m"
    return asked


def real(folder: Path, **limits: Any) -> dict[str, Any]:
    """The node configuration of a real device with some events."""
    store = Store(folder / "device.sqlite")
    store.replace(rows([1, 2, 3]))
    store.close()
    save_catalogue(SHELF, folder / "items.jsonl")
    return {
        "store": str(folder / "device.sqlite"),
        "ledger": str(folder / "ledger.sqlite"),
        "catalogue": str(folder / "items.jsonl"),
        **limits,
    }


@pytest.mark.parametrize(("phase", "kind"), [("train", "train"), ("popularity", "query"), ("validate", "query")])
def test_a_real_device_answers_and_charges_its_own_ledger(phase: str, kind: str, tmp_path: Path) -> None:
    manifest, content = question(phase)
    reply = app(message(content, kind), context(real(tmp_path)))
    assert not reply.has_error()
    assert decode_reply(reply.content, manifest).shapes == manifest.reply
    assert [release.phase for release in Ledger(tmp_path / "ledger.sqlite").releases(0)] == [phase]


def test_a_real_device_is_private_and_unseeded_unless_its_owner_says_otherwise(tmp_path: Path) -> None:
    device = open_device(context(real(tmp_path)))
    assert device._limits == Limits("event", "aggregate", epsilon=8.0, delta=1e-5)
    assert device._seed is None
    _, content = question("popularity", noise=OPEN)
    assert device.answer(content)["config"]["refusal"] == "trust"


def test_what_the_owner_set_is_what_holds_whatever_the_run_says(tmp_path: Path) -> None:
    settings = real(tmp_path, mode="none", trust="local", epsilon=1, delta=1e-6, adapter=str(tmp_path / "adapter"))
    device = open_device(context(settings, out="/elsewhere", mode="event", epsilon=99.0))
    assert device._limits == Limits("none", "local", epsilon=1.0, delta=1e-6)
    assert device._adapter_folder == tmp_path / "adapter"


def test_exact_counts_come_from_this_devices_store(tmp_path: Path) -> None:
    manifest, content = question("popularity", noise=OPEN)
    reply = app(message(content, "query"), context(real(tmp_path, mode="none")))
    counts = decode_reply(reply.content, manifest).arrays[POPULARITY]
    assert counts.tolist() == [float(item in (1, 2, 3)) for item in range(ITEMS)]


SECRET = "ana's folder"


@pytest.mark.parametrize(
    "error",
    [HomerankError(SECRET), OSError(SECRET), KeyError(SECRET), TypeError(SECRET), AttributeError(SECRET)],
    ids=lambda error: type(error).__name__,
)
def test_a_device_that_cannot_be_opened_says_one_word(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Context) -> None:
        raise error

    monkeypatch.setattr(module, "open_device", fail)
    for kind in ("train", "query"):
        reply = app(message(question("train")[1], kind), context({}))
        assert dict(reply.content) == {"config": {"refusal": "failed"}}


@pytest.mark.parametrize(
    "changes",
    [{"store": "/nowhere/at/all.sqlite"}, {"ledger": "/nowhere/l.sqlite"}, {"catalogue": "/no"}, {"epsilon": "much"}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_broken_node_configuration_says_one_word(changes: dict[str, Any], tmp_path: Path) -> None:
    reply = app(message(question("train")[1], "train"), context(real(tmp_path) | changes))
    assert dict(reply.content) == {"config": {"refusal": "failed"}}


def test_virtual_devices_are_rows_of_the_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_data(tmp_path / "data", users=3)
    run = prepare(tiny_config(data, "privacy.mode=event", "privacy.epsilon=5"), tmp_path / "run")
    devices = [open_device(context({"partition-id": number}, out=str(run.path))) for number in range(3)]
    assert [device.number for device in devices] == [0, 1, 2]
    assert not np.array_equal(devices[0].history().items, devices[1].history().items)
    assert devices[2]._limits == Limits("event", "aggregate", epsilon=5.0, delta=1e-5)
    assert devices[2]._seed == 0
    monkeypatch.setenv("HOMERANK_RUN", str(run.path))
    named = open_device(context({"partition-id": 1}))
    assert np.array_equal(named.history().items, devices[1].history().items)


def test_no_run_folder_is_one_word() -> None:
    reply = app(message(question("train")[1], "train"), context({"partition-id": 0}))
    assert dict(reply.content) == {"config": {"refusal": "failed"}}
