"""Who may talk to the service, and what strangers, other sites and monitors learn."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.service.access import COOKIE
from shared.loopback import read_token
from tests.client.service.small_service import TOKEN, Served

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path) as service:
        yield service


def paths(served: Served) -> list[tuple[str, str]]:
    return [(method, path) for path, item in served.app.openapi()["paths"].items() for method in item]


def test_without_the_token_only_health_and_figures_answer(served: Served) -> None:
    answers = {(m, p): served.stranger.request(m, p, json={}).status_code for m, p in paths(served)}
    assert {place for place, code in answers.items() if code != 401} == {("get", "/healthz"), ("get", "/metrics")}
    assert len(answers) >= 20
    assert served.stranger.get("/openapi.json").status_code == 401
    assert served.stranger.get("/page/app.js").status_code == 401
    wrong = served.stranger.get("/v1/status", headers={"authorization": "Bearer a-tokem"})
    assert wrong.status_code == 401
    assert "Bearer TOKEN" in wrong.json()["error"]


def test_the_pages_link_gives_a_cookie_that_only_this_page_can_use(served: Served) -> None:
    assert served.stranger.get("/?token=wrong").status_code == 401
    given = served.stranger.get(f"/?token={TOKEN}", follow_redirects=False)
    assert given.status_code == 303
    assert given.headers["location"] == "/"
    cookie = given.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    with_cookie = {"cookie": f"{COOKIE}={TOKEN}"}
    assert served.stranger.get("/v1/status", headers=with_cookie).status_code == 200
    for elsewhere in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert served.stranger.post("/v1/recommend", json={}, headers={**with_cookie, **elsewhere}).status_code == 401
    here = {**with_cookie, "origin": "http://127.0.0.1:1", "sec-fetch-site": "same-origin"}
    assert served.stranger.post("/v1/recommend", json={}, headers=here).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example", ""])
def test_a_name_that_leads_here_from_outside_opens_nothing(served: Served, host: str) -> None:
    assert served.client.get("/v1/status", headers={"host": host}).status_code == 421
    assert served.client.get("/v1/status", headers={"host": "localhost:1"}).status_code == 200


def test_every_answer_keeps_pages_of_others_and_caches_out(served: Served) -> None:
    for answer in (served.stranger.get("/"), served.client.get("/v1/status"), served.client.get("/nowhere")):
        assert answer.headers["cache-control"] == "no-store"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_bodies_are_bounded(served: Served) -> None:
    big = b'{"query": "' + b"x" * (5 * 1024**2) + b'"}'
    assert served.client.post("/v1/recommend", content=big).status_code == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(5):
            yield b" " * 1024**2
        yield b"{}"

    assert served.client.post("/v1/recommend", content=pieces()).status_code in (400, 413, 422, 500)
    assert served.get("/healthz") == {"status": "ok"}


def test_a_monitor_cannot_tell_what_the_person_did(served: Served) -> None:
    def figures() -> dict[str, str]:
        lines = served.stranger.get("/metrics").text.splitlines()
        rows = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        measured = ("memory", "rank_seconds")
        return {name: value for name, value in rows.items() if not any(word in name for word in measured)}

    before = figures()
    assert before["homerank_catalogue_items"] == "24"
    served.record("i1", "i2", "i3")
    served.slate()
    served.post("/v1/search", {"query": "space"})
    served.refused("/v1/events", {"item": "nothing"})
    assert figures() == before
    assert "i1" not in served.stranger.get("/metrics").text


def test_a_fault_of_the_service_says_nothing_of_anybody(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret: i7")

    monkeypatch.setattr("client.service.feed.Feed.view", broken)
    answer = served.client.post("/v1/recommend", json={})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "homerank_internal_errors_total 1" in served.stranger.get("/metrics").text


def test_the_token_file_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    token = read_token(tmp_path / "token")
    assert len(token) >= 43
    assert read_token(tmp_path / "token") == token
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600


def test_wrong_requests_name_the_field(served: Served) -> None:
    assert served.refused("/v1/recommend", {"k": 0}, code=422).startswith("k: ")
    assert "querry" in served.refused("/v1/recommend", {"querry": "x"}, code=422)
    assert served.client.post("/v1/recommend", content=b"{").status_code == 422
    assert served.client.post("/v1/recommend", content=b'{"deadline_ms": NaN}').status_code == 422
