"""Many at once: requests, events and a change of the adapter, and no ranking that is behind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from client.service.http import make_app
from client.service.person import Person
from client.service.running import exclusive, find_service
from shared.errors import DeploymentError
from shared.loopback import bound
from tests.client.service.small_service import TOKEN, Served, open_full, profile_at, write_adapter

pytestmark = pytest.mark.usefixtures("own_cache")


def test_no_ranking_is_behind_the_events_that_were_recorded_before_it_or_fails(tmp_path: Path) -> None:
    """Writers record items one after the other; a ranking that starts after an answer never shows that item."""
    other = write_adapter(tmp_path / "other", seed=7, run="other")
    with Served(tmp_path / "home") as served:
        recorded: list[str] = []
        done = threading.Event()
        stale: list[str] = []

        def rank() -> int:
            count = 0
            while not done.is_set():
                before = list(recorded)
                shown = served.ids(k=24)
                stale.extend(item for item in before if item in shown)
                count += 1
            return count

        with ThreadPoolExecutor(8) as pool:
            ranking = [pool.submit(rank) for _ in range(7)]
            for n in range(20):
                served.record(f"i{n}")
                recorded.append(f"i{n}")
                if n == 10:
                    served.person.install(other)
            done.set()
            counts = [one.result() for one in ranking]
        assert stale == []
        assert sum(counts) > 20
        assert served.get("/v1/status")["adapter"]["run"] == "other"
        assert len(served.person.shop.engine.now.past.events) == 4


def test_an_adapter_of_other_settings_is_made_beside_the_old_one(tmp_path: Path) -> None:
    with Served(tmp_path / "home") as served:
        served.record("i1", "i2")
        engine = served.person.shop.engine
        served.person.install(write_adapter(tmp_path / "wide", run="wide", prior={"output": 6}))
        assert served.person.shop.engine is not engine
        assert served.get("/v1/status")["adapter"]["run"] == "wide"
        assert "i2" not in served.ids(k=24)
        assert len(served.person.shop.engine.now.past.events) == 2


def test_an_adapter_that_cannot_be_used_any_more_gives_way_to_the_one_before(tmp_path: Path) -> None:
    with Served(tmp_path / "home") as served:
        served.person.install(write_adapter(tmp_path / "new", seed=5, run="new"))
    (served.profile.adapter / "projections.safetensors").write_bytes(b"cut off")
    person = Person(served.profile, engine=open_full)
    assert person.shop.engine.adapter["run"] == "r"
    assert "projections.safetensors" in person.shop.ranking.problem
    person.close()


def test_one_process_has_a_profile_at_a_time(tmp_path: Path) -> None:
    profile = profile_at(tmp_path, adapter=False)
    assert find_service(profile) is None
    with exclusive(profile):
        with pytest.raises(DeploymentError, match="another process"), exclusive(profile):
            pass
        with pytest.raises(DeploymentError, match="does not answer yet"):
            find_service(profile)
    assert find_service(profile) is None


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with bound(0) as first:
        first.listen()
        with pytest.raises(DeploymentError, match="choose another"), bound(first.getsockname()[1]):
            pass


def test_two_people_have_nothing_in_common(tmp_path: Path) -> None:
    with Served(tmp_path / "ann") as ann, Served(tmp_path / "bob") as bob:
        ann.record("i1")
        assert bob.get("/v1/history") == []
        assert "i1" in bob.ids(k=24)
        assert ann.profile.ledger != bob.profile.ledger
    assert make_app(ann.person, token=TOKEN).title == "homerank"
