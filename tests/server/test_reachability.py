"""docs/reachability.md is what a server really lets through."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.proxy import nginx_program
from tests.server.programs import ROOT
from tests.server.reachability import page, survey_of
from tests.server.test_proxy import NO_NGINX


def table(text: str, title: str) -> dict[str, list[str]]:
    """Route -> what each caller gets, of one part of the page."""
    part = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): row[1:] for row in rows}


@pytest.mark.slow
@pytest.mark.skipif(nginx_program() is None, reason=NO_NGINX)
def test_every_route_on_every_port_is_as_the_page_says(tmp_path: Path) -> None:
    for survey in survey_of(tmp_path):
        found = page(survey)
    assert found == (ROOT / "docs" / "reachability.md").read_text(encoding="utf-8"), (
        "run: python -m tests.server.reachability > docs/reachability.md"
    )


def test_the_page_says_that_without_a_registered_key_nothing_of_flower_is_open() -> None:
    text = (ROOT / "docs" / "reachability.md").read_text(encoding="utf-8")
    public = table(text, "public")
    for route, (outsider, authority, unknown, revoked, device) in public.items():
        assert outsider == authority
        if "fleet/" in route:
            assert {outsider, unknown, revoked} == {"refused"}
            assert device == ("refused" if "/v1/control/" in route else "open")
        else:
            assert route.split()[1] in ("/v1/ca", "/v1/time", "/v1/version", "/v1/enroll", "/v1/releases/note.txt")
    assert len(public) == 17
    assert "| SuperLink | 127.0.0.1 | no |" in text
    assert "| enrolment app | 127.0.0.1 | no |" in text
    assert "open" in table(text, "SuperLink")["POST /v1/control/start-run"]
