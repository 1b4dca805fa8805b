"""Events in, data out, everything gone: over the API, as an app and a person would."""

from __future__ import annotations

import io
import json
import sqlite3
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.catalogue import Catalogue
from shared.privacy.accounting import Release
from shared.schema import Item
from tests.client.service.small_service import SHELF, Served, items_jsonl, write_adapter, zipped

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path) as service:
        yield service


def put(served: Served, what: str, body: bytes, *, user: str = "") -> tuple[int, dict[str, object]]:
    params = {"what": what, **({"user": user} if user else {})}
    answer = served.client.post("/v1/import", params=params, content=body)
    return answer.status_code, answer.json()


def test_a_batch_is_recorded_whole_or_not_at_all(served: Served) -> None:
    events = [{"item": "i1"}, {"item": "nothing"}]
    assert "unknown id 'nothing'" in served.refused("/v1/events/batch", {"events": events})
    assert served.get("/v1/history") == []
    done = served.post("/v1/events/batch", {"events": [{"item": "i1"}, {"item": "i2", "kind": "rating", "value": 4}]})
    assert done == {"first": 0, "count": 2, "new": True}
    newest = served.get("/v1/history")[0]
    assert (newest["item"], newest["kind"], newest["value"], newest["title"]) == ("i2", "rating", 4.0, "Thing 2 (1982)")


def test_a_request_sent_twice_counts_once(served: Served) -> None:
    first = served.post("/v1/events", {"item": "i1"}, headers={"idempotency-key": "k"})
    again = served.post("/v1/events", {"item": "i1"}, headers={"idempotency-key": "k"})
    assert (first["new"], again["new"], again["first"]) == (True, False, 0)
    assert len(served.get("/v1/history")) == 1
    state = served.person.shop.engine.now.past
    assert len(state.events) == 1


def test_history_comes_in_pages(served: Served) -> None:
    served.record(*(f"i{n}" for n in range(7)))
    page = served.get("/v1/history", params={"limit": 3})
    assert [one["seq"] for one in page] == [6, 5, 4]
    assert [one["seq"] for one in served.get("/v1/history", params={"limit": 9, "before": 4})] == [3, 2, 1, 0]
    assert [one["learned"] for one in page] == [False, True, True]  # the newest is held out


def test_settings_are_kept_and_checked(served: Served) -> None:
    changed = served.client.patch("/v1/settings", json={"participate": False, "diversity": 0.25}).json()
    assert (changed["participate"], changed["diversity"]) == (False, 0.25)
    assert served.get("/v1/settings") == changed
    assert json.loads(served.profile.settings.read_text())["participate"] is False
    assert served.client.patch("/v1/settings", json={"diversity": 2}).status_code == 422
    assert served.client.patch("/v1/settings", json={"divers": 1}).status_code == 422
    assert served.get("/v1/settings") == changed


def test_a_retention_limit_drops_old_windows_and_the_ranking_goes_on(served: Served) -> None:
    served.client.patch("/v1/settings", json={"retention_events": 6})
    for n in range(14):
        served.record(f"i{n}")
    assert served.get("/v1/status")["events"] <= 10
    assert "i13" not in served.ids(k=24)
    assert "i0" in served.ids(k=24)  # nothing here remembers it any more


def test_the_export_holds_everything_in_open_formats(served: Served) -> None:
    served.record("i1", "i2")
    served.client.put("/v1/interests", json={"tag": "crime", "factor": 2})
    answer = served.client.post("/v1/export")
    archive = zipfile.ZipFile(io.BytesIO(answer.content))
    assert answer.headers["content-disposition"].endswith('homerank-export.zip"')
    assert json.loads(archive.read("interests.json"))["interests"] == {"crime": 2.0}
    assert archive.read("events.jsonl").count(b"\n") == 2
    assert not list(served.profile.cache.glob("export-*"))


def test_forgetting_wipes_everything_but_the_spend_and_the_next_slate_is_a_strangers(served: Served) -> None:
    fresh = served.slate(k=24)
    ledger = served.profile.open_ledger()
    release = Release(phase="train", unit="event", noise_multiplier=2.0, sample_rate=1.0, steps=1)
    ledger.charge(0, [release], key="a", budgets={"event": 8.0}, delta=1e-5)
    ledger.close()
    served.record(*(f"i{n}" for n in range(8)))
    served.post("/v1/feedback", {"item": "i9", "verdict": "not-interested"})
    served.client.patch("/v1/settings", json={"personal": True, "participate": False})
    served.post("/v1/search", {"query": "space"})
    spent = served.get("/v1/privacy")["layers"][0]["spent"]
    assert spent > 0
    gone = served.post("/v1/forget", {"confirm": "forget everything"})
    assert gone["before"]["events"] == 8
    assert set(gone["after"].values()) == {0}
    assert "personal.safetensors" in gone["files"]
    assert served.get("/v1/history") == []
    assert served.get("/v1/settings")["participate"] is False
    served.client.patch("/v1/settings", json={"personal": False})
    assert served.slate(k=24) == fresh
    assert served.get("/v1/privacy")["layers"][0]["spent"] == spent
    assert "ledger stays" in gone["kept"]
    for path in served.profile.folder.rglob("*"):
        assert not path.is_file() or b"i7" not in path.read_bytes() or path.name == "items.jsonl"


def test_forgetting_must_be_said_in_full(served: Served) -> None:
    served.record("i1")
    assert served.client.post("/v1/forget", json={"confirm": "yes"}).status_code == 422
    assert served.client.post("/v1/forget", json={}).status_code == 422
    assert len(served.get("/v1/history")) == 1


def test_a_damaged_ledger_is_shown_and_everything_else_goes_on(served: Served) -> None:
    served.profile.ledger.write_bytes(b"nonsense")
    answer = served.get("/v1/privacy")
    assert answer["ledger"] != "ok"
    assert answer["layers"] == []
    assert len(served.slate()) == 10


def test_a_new_profile_says_what_it_needs_and_takes_a_catalogue(tmp_path: Path) -> None:
    with Served(tmp_path, catalogue=None) as served:
        assert served.get("/v1/status")["items"] == 0
        assert "import" in served.refused("/v1/recommend", {})
        assert put(served, "catalogue", zipped({"items.jsonl": items_jsonl(SHELF)}))[1] == {
            "what": "catalogue",
            "count": 24,
        }
        assert len(served.slate()) == 10
        assert put(served, "adapter", adapter_zip(tmp_path / "a"))[0] == 400  # other texts, so another fingerprint


def test_a_history_is_imported_into_an_empty_profile_only(tmp_path: Path) -> None:
    events = "user,item,timestamp\n" + "".join(f"ann,i{n},{1000 + n}\n" for n in range(6)) + "bob,i9,1000\n"
    folder = {"data/events.csv": events, "data/items.jsonl": items_jsonl(SHELF)}
    with Served(tmp_path, catalogue=None) as served:
        code, told = put(served, "history", zipped(folder))
        assert code == 400
        assert "2 users" in str(told["error"])
        assert put(served, "history", zipped(folder), user="ann")[1] == {"what": "history", "count": 6}
        assert [one["item"] for one in served.get("/v1/history")] == [f"i{n}" for n in range(5, -1, -1)]
        assert not {f"i{n}" for n in range(6)} & set(served.ids(k=24))
        assert put(served, "history", zipped(folder), user="bob")[0] == 400
        assert len(served.get("/v1/history")) == 6


def test_a_catalogue_that_lacks_what_was_met_is_refused(served: Served) -> None:
    served.record("i20")
    fewer = Catalogue(SHELF.items[:20])
    code, told = put(served, "catalogue", zipped({"items.jsonl": items_jsonl(fewer)}))
    assert code == 400
    assert "'i20'" in str(told["error"])
    assert served.get("/v1/status")["items"] == 24
    more = Catalogue((*SHELF.items, Item("new", "New thing", "a new thing of group 1")))
    assert put(served, "catalogue", zipped({"items.jsonl": items_jsonl(more)}))[0] == 200
    assert "new" in served.ids(k=25)
    status = served.get("/v1/status")
    assert status["adapter"] == {}
    assert "another catalogue" in status["damaged"]


def adapter_zip(folder: Path, **given: object) -> bytes:
    write_adapter(folder, **given)  # type: ignore[arg-type]
    return zipped({path.name: path.read_bytes() for path in folder.iterdir()})


def test_an_adapter_takes_over_and_a_bad_one_does_not(served: Served, tmp_path: Path) -> None:
    served.record("i1", "i2")
    before = served.slate(k=24)
    assert put(served, "adapter", adapter_zip(tmp_path / "new", seed=2, run="second"))[0] == 200
    after = served.slate(k=24)
    assert [one["score"] for one in after] != [one["score"] for one in before]
    assert served.get("/v1/status")["adapter"]["run"] == "second"
    body = adapter_zip(tmp_path / "bad", seed=3, run="third").replace(b"homerank.json", b"homerang.json")
    assert put(served, "adapter", body)[0] == 400
    assert served.slate(k=24) == after
    assert (served.profile.folder / "adapter.previous").is_dir()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"PK not really",
        zipped({}),
        zipped({"../outside.csv": "x"}),
        zipped({"/etc/evil": "x"}),
        zipped({"a/../../b": "x"}),
        zipped({f"f{n}": "x" for n in range(300)}),
        zipped({"events.csv": "user,item\nann,i1\n"}),
        zipped({"events.csv": b"\xff\xfe\x00", "items.csv": b"\x00"}),
        zipped({"items.csv": "item,title\n"}),
    ],
)
@pytest.mark.parametrize("what", ["history", "catalogue", "adapter"])
def test_what_is_no_folder_of_ours_leaves_everything_as_it_was(served: Served, what: str, body: bytes) -> None:
    served.record("i1")
    before = sorted(path.name for path in served.profile.folder.parent.rglob("*"))
    code, told = put(served, what, body)
    assert code == 400, told
    assert len(str(told["error"])) > 10
    assert sorted(path.name for path in served.profile.folder.parent.rglob("*") if path.name != "cache") == [
        name for name in before if name != "cache"
    ]
    assert len(served.get("/v1/history")) == 1


def test_events_of_an_unreadable_store_are_set_aside_at_the_next_start(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        served.record("i1")
    served.profile.events.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    with Served(tmp_path, adapter=False) as again:
        assert "damaged" in again.get("/v1/status")["damaged"]
        assert again.get("/v1/history") == []
        assert len(again.slate()) == 10
    with sqlite3.connect(again.profile.events) as db:
        assert db.execute("SELECT count(*) FROM events").fetchone() == (0,)
    db.close()
