"""The service and its training door: what was sent is shown, who pauses sends nothing, a delivery ranks at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from client.door import wire
from client.door.gate import ANY_TIME
from client.door.server import Door
from client.service.accounts import account
from client.service.http import make_app
from client.service.owner import USUAL, limits_of
from client.service.training import DoorTraining
from shared.errors import ConfigError
from tests.client.service.small_service import TOKEN, Served
from tests.client.small_device import SHELF, global_state, question, tiny_runtime

pytestmark = [pytest.mark.usefixtures("own_cache"), pytest.mark.slow]  # a round has a process of its own


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path, catalogue=SHELF, adapter=False) as service:
        door = Door(service.profile, limits=service.person.limits, policy=ANY_TIME, on_adapter=service.person.delivered)
        with door:
            service.app = make_app(service.person, token=TOKEN, training=DoorTraining(door))
            service.client.app = service.app
            service.client._transport.app = service.app  # type: ignore[attr-defined]
            service.record(*(f"i{n}" for n in range(9)))
            yield service


def ask(served: Served, content: RecordDict) -> Any:
    return wire.ask(served.profile.folder.parent.parent / "run" / "default.sock", content)


def test_a_round_is_answered_charged_and_shown(served: Served) -> None:
    assert served.get("/v1/status")["training"] == "idle"
    _, content = question("popularity")
    assert "arrays" in ask(served, content)
    told = served.get("/v1/privacy")
    assert told["sent"][0]["phase"] == "popularity"
    assert len(told["sent"][0]["digest"]) == 64
    assert told["bytes_sent"] > 0
    assert 0 < told["layers"][0]["spent"] < 8
    assert told["sent"][0]["epsilon"]["event"] == pytest.approx(told["layers"][0]["spent"])
    ask(served, RecordDict({"config": ConfigRecord({"manifest": "{"})}))
    assert served.get("/v1/privacy")["sent"][0]["refusal"] == "bad-message"
    gone = served.post("/v1/forget", {"confirm": "forget everything"})
    assert gone["before"]["events"] == 9
    assert served.get("/v1/privacy")["layers"] == told["layers"]


def test_who_pauses_sends_nothing_until_they_take_part_again(served: Served) -> None:
    _, content = question("popularity")
    served.client.patch("/v1/settings", json={"participate": False})
    assert served.get("/v1/status")["training"] == "paused"
    assert ask(served, content)["config"]["refusal"] == "paused"
    assert served.get("/v1/privacy")["layers"][0]["spent"] == 0
    served.client.patch("/v1/settings", json={"participate": True})
    assert "arrays" in ask(served, content)


def test_a_delivered_adapter_ranks_at_once_and_a_broken_one_never(served: Served) -> None:
    before = served.slate(k=5)
    runtime = tiny_runtime()
    name = next(name for name in runtime.start if name.endswith("output.0.weight"))
    changed = global_state(runtime, **{name.replace(".", "_"): runtime.start.arrays[name] + 0.5})
    _, content = question("install", state=changed, outcome="adapter", privacy={"mode": "none"})
    assert "refusal" not in ask(served, content)["config"]
    after = served.slate(k=5)
    assert [one["score"] for one in after] != [one["score"] for one in before]
    assert served.get("/v1/status")["adapter"]["run"] == "r"


def test_limits_are_kept_until_they_are_said_anew(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        profile = served.profile
    assert limits_of(profile) == USUAL
    assert not (profile.folder / "limits.json").exists()
    assert limits_of(profile, mode="both", epsilon=3.0, user_epsilon=2.0).budgets == {"event": 3.0, "user": 2.0}
    assert limits_of(profile).user_epsilon == 2.0
    assert [layer.budget for layer in account(profile, limits_of(profile)).layers] == [3.0, 2.0]
    assert limits_of(profile, mode="event").user_epsilon == 0.0
    with pytest.raises(ConfigError, match="expected one of event"):
        limits_of(profile, mode="evnt")
    (profile.folder / "limits.json").write_text("{")
    with pytest.raises(ConfigError, match="mend or remove"):
        limits_of(profile)
