"""The real service in a process of its own, and headless Chromium on its page.

A `Visit` watches what no test should have to ask for: that nothing leaves the service's origin, that no dialog opens,
and that the browser has nothing to complain of (a breach of the content security policy is such a complaint).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from client.profile import Profile
from shared.artifacts import save_catalogue
from shared.catalogue import Catalogue

ROOT = Path(__file__).resolve().parents[3]
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: Milliseconds that a step in the browser may take.
PATIENCE = 20_000


def needs_chromium() -> str:
    """Where Debian's Chromium is, or the one that HOMERANK_CHROMIUM names; skips without one, and says so."""
    pytest.importorskip("playwright.sync_api", reason="found no playwright; install it: pip install -e '.[dev]'")
    path = os.environ.get("HOMERANK_CHROMIUM") or shutil.which("chromium")
    if not path:
        pytest.skip("found no chromium; install it (apt-get install chromium) or set HOMERANK_CHROMIUM")
    return path


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser."""
    path = needs_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@contextmanager
def served(home: Path, *, catalogue: Catalogue | None = None, options: Sequence[str] = ()) -> Iterator[str]:
    """The link that opens the page of a service on a free port.

    catalogue: what the profile has to rank. options: of `homerank-client serve`.
    """
    if catalogue is not None:
        save_catalogue(catalogue, Profile.open(home).catalogue)
    command = [sys.executable, "-m", "client", "serve", "--home", str(home), "--port", "0", "--json", *options]
    given = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (home / "serve.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=given, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (home / "serve.log").read_text()
        facts = json.loads(line)
        wait_for(facts["url"])
        yield str(facts["page"])
    finally:
        process.terminate()
        process.communicate(timeout=30)


def wait_for(url: str, *, seconds: float = 10.0) -> None:
    """Wait until the service takes connections."""
    last = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"{url}/healthz").close()
            return
        except OSError:
            assert time.monotonic() < last
            time.sleep(0.05)


def call(link: str, method: str, path: str, body: object = None) -> Any:
    """Ask the service directly, with the token of the link that opens its page."""
    origin, token = link.split("/?token=")
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(origin + path, data, headers, method=method)) as answer:
        return json.loads(answer.read())


@dataclass
class Visit:
    """One browser window on the page, and what happened in it. requests: every address asked for."""

    page: Any
    origin: str
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def titles(self) -> list[str]:
        """Titles of the feed, best first."""
        return [str(text) for text in self.page.locator("#cards .title").all_inner_texts()]

    def settled(self) -> None:
        """Wait until the feed shows its newest ranking."""
        self.page.wait_for_selector("#cards > li")
        self.page.wait_for_selector("#cards:not([aria-busy])")

    def act(self, what: str, place: int = 1) -> None:
        """Press a button of the card at a place of the feed, and wait for what comes of it."""
        before = self.titles()
        self.page.click(f"#cards > li:nth-child({place}) [data-act={what}]")
        self.page.wait_for_function(
            "was => JSON.stringify([...document.querySelectorAll('#cards .title')].map(one => one.innerText)) !== was",
            arg=json.dumps(before, ensure_ascii=False, separators=(",", ":")),
        )
        self.settled()

    def open(self, view: str, *, shows: str = "") -> None:
        """Go to a page of the menu. shows: what is to be seen there, where that is not the page of this name."""
        self.page.click(f"nav [data-view={view}]")
        self.page.wait_for_selector(f"#view-{shows or view}:not([hidden])")
        self.page.wait_for_load_state("networkidle")

    def focus(self, what: str = "id") -> str:
        """An attribute of what has the focus."""
        return str(self.page.evaluate("name => document.activeElement.getAttribute(name)", what))


@contextmanager
def visit(browser: Any, link: str, **context: Any) -> Iterator[Visit]:
    """Open the page; at the end, check that it kept to itself. context: as for playwright's new_context."""
    window = browser.new_context(**{"viewport": {"width": 1200, "height": 860}, "reduced_motion": "reduce", **context})
    window.set_default_timeout(PATIENCE)
    seen = Visit(window.new_page(), link.split("/?")[0])
    window.on("request", lambda request: seen.requests.append(request.url))
    seen.page.on("dialog", lambda dialog: (seen.dialogs.append(dialog.message), dialog.dismiss()))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("console", lambda said: said.type in ("error", "warning") and seen.complaints.append(said.text))
    seen.page.goto(link)
    yield seen
    window.close()
    assert [url for url in seen.requests if not url.startswith((seen.origin + "/", f"blob:{seen.origin}/"))] == []
    assert len(seen.requests) > 5
    assert (seen.dialogs, seen.complaints) == ([], [])
