"""The ClientApp: which device a message reaches, and that nothing but the contract comes back."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client import app as module
from client.app import app, open_device
from client.door import rounds, wire
from client.door.gate import ANY_TIME
from client.door.server import Door
from client.limits import Limits
from shared.errors import HomerankError
from shared.noise import Layer, Noise
from shared.protocol import decode_reply
from shared.secagg.messages import Start, encode_question
from simulations.runfolder import prepare
from tests.client.small_device import CAREFUL, OPEN, question
from tests.client.small_door import InProcess, charges, person
from tests.simulations.tiny_runs import tiny_config, write_data

ROOT = Path(__file__).resolve().parents[2]
SECURE = Noise("event", "aggregate", "device", 3, event=Layer(2.0, 2.0), bound=2.0, scale=1000.0).to_dict()


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


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Door]:
    """The door of a device with ten events."""
    monkeypatch.setattr(rounds, "Worker", InProcess)
    with Door(person(tmp_path), limits=CAREFUL, policy=replace(ANY_TIME, min_seconds=0.0)) as opened:
        yield opened


@pytest.mark.parametrize(("phase", "kind"), [("train", "train"), ("popularity", "query"), ("validate", "query")])
def test_a_real_device_answers_and_charges_its_own_ledger(phase: str, kind: str, door: Door) -> None:
    manifest, content = question(phase)
    reply = app(message(content, kind), context({"socket": str(door.path)}))
    assert not reply.has_error()
    assert decode_reply(reply.content, manifest).shapes == manifest.reply
    assert [release.phase for release in charges(door.profile)] == [phase]


def test_what_the_owner_set_is_what_holds_whatever_the_run_says(door: Door) -> None:
    _, content = question("popularity", noise=OPEN)
    node = {"socket": str(door.path), "mode": "none"}
    reply = app(message(content, "query"), context(node, mode="none", epsilon=99.0, out="/elsewhere"))
    assert reply.content["config"]["refusal"] == "trust"


def test_a_refusal_passes_through_as_it_is(door: Door) -> None:
    door.pause()
    reply = app(message(question("train")[1], "train"), context({"socket": str(door.path)}))
    assert dict(reply.content) == {"config": {"refusal": "paused"}}


def test_nothing_is_kept_where_the_server_has_a_hand(door: Door) -> None:
    """Flower hands `state` to whatever bundle comes next."""
    asked = encode_question(question("train", noise=SECURE)[1], session=bytes(16), body=Start())
    around = context({"socket": str(door.path)})
    reply = app(message(asked, "train"), around)
    assert "refusal" not in reply.content["config"]
    assert dict(around.state) == {}


def test_a_device_whose_service_is_off_does_not_take_part(door: Door) -> None:
    door.close()
    reply = app(message(question("train")[1], "train"), context({"socket": str(door.path)}))
    assert dict(reply.content) == {"config": {"refusal": "paused"}}


@pytest.mark.parametrize("says", [b"", b"\x00\x00", b"\x00\x00\x00\x02\xff\xff", b"\xff" * 8])
def test_a_service_that_breaks_off_is_one_word(says: bytes, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                wire.read(connection, timeout=10)
                connection.sendall(says)

        thread = Thread(target=answer)
        thread.start()
        reply = app(message(question("train")[1], "train"), context({"socket": str(tmp_path / "s")}))
        thread.join()
    assert dict(reply.content) == {"config": {"refusal": "failed"}}


THIN = """
import sys
from pathlib import Path
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from client.app import app
from client.door import wire
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
content = wire.unpack(Path(sys.argv[2]).read_bytes())
message = Message(content, dst_node_id=7, message_type="train")
message.metadata.__dict__["_message_id"] = "m"
node = {"socket": sys.argv[1]}
reply = app(message, Context(run_id=1, node_id=7, node_config=node, state=RecordDict(), run_config={}))
Path(sys.argv[3]).write_bytes(wire.pack(reply.content))
print(*sys.modules)
"""


def test_the_app_imports_nothing_heavy_and_nothing_of_the_person(door: Door, tmp_path: Path) -> None:
    manifest, content = question("train")
    (tmp_path / "question").write_bytes(wire.pack(content))
    paths = [str(door.path), str(tmp_path / "question"), str(tmp_path / "reply")]
    done = subprocess.run([sys.executable, "-c", THIN, *paths], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    reply = wire.unpack((tmp_path / "reply").read_bytes())
    assert decode_reply(reply, manifest).shapes == manifest.reply
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "transformers", "peft", "opacus", "scipy", "dp_accounting", "safetensors"}
    ours = {name for name in loaded if name.startswith("client.")}
    assert ours == {"client.app", "client.door", "client.door.wire"}


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


@pytest.mark.parametrize("place", ["{}", "{}/a folder", "relative"])
def test_a_broken_node_configuration_says_one_word(place: str, tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    reply = app(message(question("train")[1], "train"), context({"socket": place.format(tmp_path)}))
    assert reply.content["config"]["refusal"] in ("failed", "paused")


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
