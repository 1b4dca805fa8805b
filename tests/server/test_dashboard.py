"""What an operator sees: read from the files, true to them, for the operator alone, and naming nobody."""

from __future__ import annotations

import doctest
import json
import re
import shutil
import sqlite3
import time
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from starlette.testclient import TestClient

from server import progress
from server.dashboard import RULES, TOKEN, make_app
from server.gauges import exposition
from server.glance import look, newest_run
from server.page import BUSY, CALM, REASONS, page
from server.population import Population, population
from server.runs import write_bundle
from shared.loopback import read_token
from shared.protocol import REFUSALS
from tests.server.programs import program
from tests.server.watched import ROUNDS, write_nodes


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def rewrite(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def copy(watched: Path, tmp_path: Path) -> Path:
    """A deployment to change."""
    return Path(shutil.copytree(watched, tmp_path / "deployment"))


class Words(HTMLParser):
    """The text of each section by id, and what the page would load or run."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.foreign: list[str] = []
        self._at = "head"
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("section", "header"):
            self._at = given.get("id") or tag
        if tag in ("script", "iframe", "object", "embed", "form"):
            self.foreign.append(tag)
        self.foreign += [
            f"{tag} {name}={of}" for name, of in attrs if name in ("src", "action") or name.startswith("on")
        ]
        if (link := given.get("href")) and not link.startswith(("data:", "#")):
            self.foreign.append(link)

    def handle_data(self, data: str) -> None:
        self.sections[self._at] = self.sections.get(self._at, "") + " " + data.strip()


# --- the overview ------------------------------------------------------------------------------------------


def test_it_says_what_the_files_say(watched: Path) -> None:
    found = look(watched)
    rows = metrics(watched)
    assert found.run is not None
    assert found.run.folder == watched / "run"
    assert len(found.run.training) == ROUNDS
    assert found.run.accepted == sum(row["accepted"] for row in rows)
    assert found.run.refused["late"] == sum(row["refused"].get("late", 0) for row in rows) > 0
    assert found.run.outcome == rows[-1]
    privacy = json.loads((watched / "run" / "adapter" / "privacy.json").read_text())
    assert {one.unit: one.epsilon for one in found.run.spent} == {u: o["epsilon"] for u, o in privacy["layers"].items()}
    assert (found.devices.online, found.devices.members, found.runs_known) == (5, 7, 1)
    assert [(one.version, one.latest, one.problem) for one in found.releases] == [(1, False, ""), (2, True, "")]
    certificate = x509.load_pem_x509_certificate((watched / "server.pem").read_bytes())
    assert found.certificate_ends == certificate.not_valid_after_utc.timestamp()


def test_looking_changes_nothing(watched: Path) -> None:
    before = {path: path.read_bytes() for path in watched.rglob("*") if path.is_file()}
    page(look(watched))
    exposition(look(watched))
    assert {path: path.read_bytes() for path in watched.rglob("*") if path.is_file()} == before


def test_an_empty_folder_is_a_server_without_anything(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert (found.run, found.releases, found.certificate_ends, found.devices) == (None, [], None, Population())
    assert list(tmp_path.iterdir()) == []


def test_the_newest_run_is_shown_unless_one_is_named(copy: Path) -> None:
    later = copy / "runs" / "autumn"
    shutil.copytree(copy / "run", later)
    (later / "metrics.jsonl").write_text("")  # changed last
    assert newest_run(copy) == later
    assert look(copy, run=copy / "run").run is not None
    assert len(look(copy, run=copy / "run").run.training) == ROUNDS  # type: ignore[union-attr]


def test_a_run_that_was_written_elsewhere_is_found_through_its_bundle(copy: Path, tmp_path: Path) -> None:
    (copy / "run").rename(tmp_path / "elsewhere")
    assert look(copy).run is None
    components = ("server.app:app", "client.app:app")
    write_bundle(copy / "app", run_config={"out": str(tmp_path / "elsewhere")}, components=components)
    found = look(copy)
    assert found.run is not None
    assert found.run.folder == tmp_path / "elsewhere"
    assert len(found.run.spent) == 2
    shutil.rmtree(copy / "app")
    (copy / "rounds.json").write_text(json.dumps({"folder": str(tmp_path / "elsewhere"), "state": "running"}))
    assert newest_run(copy) == tmp_path / "elsewhere"


def test_a_run_that_the_ledger_does_not_know_is_not_shown_another_ones_spending(copy: Path) -> None:
    (copy / "run" / "checkpoint.safetensors").unlink()
    found = look(copy)
    assert found.run is not None
    assert (found.run.name, found.run.spent) == ("", ())
    assert "Nothing was charged yet." in page(found)


def test_a_ledger_that_was_put_back_is_a_problem_and_not_a_crash(copy: Path) -> None:
    with closing(sqlite3.connect(copy / "ledger.sqlite")) as database:
        database.execute("DROP TRIGGER entries_last")
        database.execute("DELETE FROM entries WHERE seq > 3")
        database.commit()
    found = look(copy)
    assert found.run is not None
    assert "behind" in found.run.problem
    assert "The ledger cannot be read." in page(found)


def test_a_damaged_configuration_is_a_problem_and_not_a_crash(copy: Path) -> None:
    (copy / "run" / "config.toml").write_text("rounds = ")
    found = look(copy)
    assert found.run is not None
    assert found.run.problem
    assert "The run cannot be read" in page(found)


# --- devices -----------------------------------------------------------------------------------------------


def test_devices_are_counted_from_flowers_own_table(tmp_path: Path) -> None:
    write_nodes(tmp_path / "superlink.sqlite", online=3, silent=2, unregistered=4)
    assert population(tmp_path) == Population(online=3, known=5)
    assert population(tmp_path, clock=lambda: time.time() + 3600).online == 0


def test_the_registry_says_who_may_take_part(tmp_path: Path) -> None:
    write_nodes(tmp_path / "superlink.sqlite", online=3, silent=2, unregistered=0)
    with closing(sqlite3.connect(tmp_path / "registry.sqlite")) as database:
        database.execute("CREATE TABLE devices (number INTEGER PRIMARY KEY, key TEXT, revoked REAL)")
        database.executemany("INSERT INTO devices (key, revoked) VALUES (?, ?)", [("a", None), ("b", 1.0), ("c", None)])
        database.commit()
    found = population(tmp_path)
    assert (found.members, found.revoked, found.online) == (2, 1, 3)


@pytest.mark.parametrize("content", [b"", b"not a database" * 100])
def test_files_of_another_kind_count_nobody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "superlink.sqlite").write_bytes(content)
    (tmp_path / "registry.sqlite").write_bytes(content)
    assert population(tmp_path) == Population()


# --- the page ----------------------------------------------------------------------------------------------


def test_a_finished_run_says_how_it_ended(watched: Path) -> None:
    words = Words(page(look(watched))).sections
    assert f"Finished after {ROUNDS} of {ROUNDS} rounds" in words["header"]
    assert "windows and persons protected" in words["header"]
    assert "5 of 7" in words["header"]
    assert "version 2" in words["header"]
    assert "late" in words["refusals"]
    assert REASONS["late"] in words["refusals"]
    assert "with more rounds" in words["adapters"]
    assert "in 36" in words["server"]  # days


def test_a_run_under_way_is_read_anew_more_often(cut_short: Path) -> None:
    html = page(look(cut_short))
    words = Words(html).sections
    assert f"Round 5 of {ROUNDS} is done" in words["header"]
    assert "in progress" in words["header"]
    assert f'http-equiv="refresh" content="{BUSY}"' in html
    assert "None yet" in words["adapters"]


def test_a_run_that_stands_still_says_so(cut_short: Path) -> None:
    later = look(cut_short, clock=lambda: time.time() + 7200)
    assert re.search(r"No step for 2 h \d+ min, after round 5 of 12", page(later))
    assert "stands still" in page(later)


def test_a_new_server_says_what_to_do(tmp_path: Path) -> None:
    html = page(look(tmp_path))
    assert "No run yet" in html
    assert "homerank-server start DIR" in html
    assert f'content="{CALM}"' in html


def test_a_run_without_privacy_says_so_in_red(copy: Path) -> None:
    settings = (copy / "run" / "config.toml").read_text()
    (copy / "run" / "config.toml").write_text(settings.replace('mode = "both"', 'mode = "none"'))
    words = Words(page(look(copy))).sections
    assert "No privacy: these updates are not protected." in words["privacy"]
    assert "no privacy" in words["header"]


def test_rounds_below_the_quorum_are_named(copy: Path) -> None:
    rows = metrics(copy)
    rows[3] |= {"released": False, "accepted": 1, "refused": {"budget": 3}, "update_norm": None}
    rewrite(copy, rows)
    words = Words(page(look(copy))).sections
    assert "Below the quorum, so nothing was released: round 3." in words["rounds"]
    assert REASONS["budget"] in words["refusals"]
    assert "refused 3" in words["rounds"]


def test_every_code_that_devices_may_answer_is_explained() -> None:
    assert set(REFUSALS) <= set(REASONS)


def test_a_broken_release_is_shown_as_one(copy: Path) -> None:
    (copy / "releases" / "1" / "privacy.json").write_text("{}")
    words = Words(page(look(copy))).sections
    assert "does not verify" in words["adapters"]


def test_names_and_codes_cannot_become_markup(copy: Path) -> None:
    rows = metrics(copy)
    rows[2]["refused"] = {"<img src=x onerror=alert(1)>": 1}
    rewrite(copy, rows)
    folder = copy.rename(copy.with_name("<b>x"))
    html = page(look(folder))
    assert "<img" not in html
    assert "<b>x" not in html
    assert Words(html).foreign == []


def test_the_page_loads_nothing_and_runs_nothing(watched: Path) -> None:
    html = page(look(watched))
    assert Words(html).foreign == []
    assert not re.search(r"https?://|@import|url\(", html)


def test_the_page_names_no_device(watched: Path) -> None:
    """Nothing that the virtual devices are called, and no item, is on it."""
    html = page(look(watched))
    assert not re.search(r"\bu[0-5]\b|\bi\d+\b|Thing", re.sub(r"<style>.*?</style>|<[^>]*>", " ", html, flags=re.S))


# --- metrics -----------------------------------------------------------------------------------------------


def samples(text: str) -> dict[str, float]:
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_prometheus_gets_the_same_figures(watched: Path) -> None:
    found = samples(exposition(look(watched)))
    rows = metrics(watched)
    last = rows[-2]
    assert found["homerank_server_round"] == found["homerank_server_rounds_planned"] == ROUNDS
    assert found["homerank_server_update_norm"] == last["update_norm"]
    assert found["homerank_server_cohort"] == last["asked"]
    assert found["homerank_server_replies_accepted_total"] == sum(row["accepted"] for row in rows)
    late = sum(row["refused"].get("late", 0) for row in rows)
    assert found['homerank_server_replies_refused_total{reason="late"}'] == late
    assert found['homerank_server_epsilon_budget{unit="event"}'] == 8
    assert 0 < found['homerank_server_epsilon{unit="user"}'] <= 8
    assert found["homerank_server_devices_online"] == 5
    assert found["homerank_server_release_version"] == 2
    assert found["homerank_server_run_finished"] == 1


def test_every_family_is_announced_once_and_in_the_right_form(watched: Path) -> None:
    lines = exposition(look(watched)).splitlines()
    helps = [line.split()[2] for line in lines if line.startswith("# HELP")]
    types = {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE")}
    assert len(helps) == len(set(helps)) == len(types)
    pattern = re.compile(r'(homerank_server_[a-z_]+)(\{[a-z]+="[a-z-]+"\})? -?\d+(\.\d+)?(e[+-]?\d+)?')
    for line in lines:
        if not line.startswith("#"):
            match = pattern.fullmatch(line)
            assert match, line
            assert types[match[1]] == ("counter" if match[1].endswith("_total") else "gauge")


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    found = samples(exposition(look(tmp_path)))
    assert set(found) == {
        "homerank_server_release_version",
        "homerank_server_releases_bad",
        "homerank_server_disk_free_bytes",
    }


# --- over HTTP ---------------------------------------------------------------------------------------------


@pytest.fixture
def client(watched: Path) -> TestClient:
    return TestClient(make_app(watched, token="a-token"), base_url="http://127.0.0.1")


def test_without_the_token_only_health_and_metrics_answer(client: TestClient) -> None:
    codes = {path: client.get(path).status_code for path in ("/", "/v1/overview", "/metrics", "/healthz", "/docs")}
    assert codes == {"/": 401, "/v1/overview": 401, "/metrics": 200, "/healthz": 200, "/docs": 401}
    assert "homerank-server dashboard" in client.get("/").text
    assert client.get("/?token=wrong").status_code == 401
    assert client.get("/", headers={"host": "evil.example"}).status_code == 421


def test_the_link_gives_a_cookie_of_its_own(client: TestClient) -> None:
    given = client.get("/?token=a-token", follow_redirects=False)
    assert given.status_code == 303
    assert given.headers["set-cookie"].startswith(f"{RULES.cookie}=a-token; HttpOnly;")
    answer = client.get("/")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


def test_the_figures_as_json(client: TestClient) -> None:
    facts = client.get("/v1/overview", headers={"authorization": "Bearer a-token"}).json()
    assert (facts["run"]["round"], facts["run"]["finished"], facts["devices"]["online"]) == (ROUNDS, True, 5)
    assert [one["version"] for one in facts["releases"]] == [1, 2]
    assert len(facts["run"]["rows"]) == ROUNDS + 2


def test_nothing_can_be_changed(client: TestClient) -> None:
    headers = {"authorization": "Bearer a-token"}
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert client.request(method, "/", headers=headers).status_code == 405
        assert client.request(method, "/v1/overview", headers=headers).status_code == 405
    assert client.post("/", headers=headers, content=b"x").status_code == 413


def test_the_examples_in_the_docstrings_are_right() -> None:
    outcome = doctest.testmod(progress)
    assert outcome.attempted > 0
    assert outcome.failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("code", [130, 143])
def test_the_command_serves_until_it_is_told_to_stop(copy: Path, code: int) -> None:
    with program("server", "dashboard", str(copy), "--port", "0", expect=code) as facts:
        assert httpx.get(facts["metrics"], trust_env=False).status_code == 200
        opened = httpx.get(facts["page"], trust_env=False, follow_redirects=False)
        assert opened.status_code == 303
        token = read_token(copy / TOKEN)
        assert facts["page"].endswith(f"?token={token}")
        assert (copy / TOKEN).stat().st_mode & 0o777 == 0o600
