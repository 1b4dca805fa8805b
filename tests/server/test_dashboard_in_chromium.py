"""The dashboard in a real browser: light and dark, screen and phone, offline, and up to date."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.page import BUSY
from tests.client.page.browser import chromium
from tests.server.programs import program
from tests.server.watched import ROUNDS

pytestmark = pytest.mark.slow

SIZES = {"screen": (1120, 800), "phone": (390, 800), "narrow": (320, 700)}
#: Texts whose contrast with what lies behind them is below what people need (WCAG AA), and what sticks out.
FAINT_TEXT = """() => {
  const channel = v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; };
  const light = c => .2126 * channel(c[0]) + .7152 * channel(c[1]) + .0722 * channel(c[2]);
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = parse(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const node of document.querySelectorAll('main *')) {
    const own = [...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) faint.push(node.textContent.trim());
  }
  return faint;
}"""
STICKING_OUT = """() => [...document.querySelectorAll('main *')].filter(node => {
  const box = node.getBoundingClientRect();
  return box.width && (box.left < -1 || box.right > innerWidth + 1);
}).map(node => node.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


class Visit:
    """A page and what happened on it: what it asked for and what the browser complained of."""

    def __init__(self, browser: Any, link: str, *, scheme: str = "light", size: str = "screen") -> None:
        width, height = SIZES[size]
        self.context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.origin = link.partition("?")[0]
        self.page.goto(link)

    def close(self) -> None:
        """End the visit; nothing must have left the origin and nothing been complained of."""
        self.context.close()
        assert [url for url in self.asked if not url.startswith((self.origin, "data:"))] == []
        assert self.complaints == []


@pytest.fixture(scope="module")
def link(watched: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = shutil.copytree(watched, tmp_path_factory.mktemp("shown") / "deployment")
    with program("server", "dashboard", str(folder), "--port", "0", expect=143) as facts:
        yield facts["page"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", list(SIZES))
def test_it_can_be_read_on_any_screen_by_day_and_by_night(browser: Any, link: str, scheme: str, size: str) -> None:
    visit = Visit(browser, link, scheme=scheme, size=size)
    assert visit.page.url == visit.origin  # the token is not in the address any more
    assert f"Finished after {ROUNDS} of {ROUNDS} rounds" in visit.page.locator("h1").inner_text()
    assert visit.page.evaluate(FAINT_TEXT) == []
    assert visit.page.evaluate(STICKING_OUT) == []
    dark = visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 19, 26)"
    assert dark == (scheme == "dark")
    assert visit.page.locator("section.card").count() == 6
    visit.close()


def test_every_chart_is_drawn_and_says_what_it_shows(browser: Any, link: str) -> None:
    visit = Visit(browser, link)
    charts = visit.page.locator(".plot[role=img]")
    assert charts.count() == 5  # cohorts, seconds, update norms, epsilon of two units
    for number in range(charts.count()):
        assert charts.nth(number).get_attribute("aria-label")
        box = charts.nth(number).locator("svg").bounding_box()
        assert box["width"] > 200
        assert box["height"] > 100
    accepted = visit.page.locator("#rounds polygon.accepted").bounding_box()
    assert accepted["height"] > 50
    bars = visit.page.locator("#privacy .track i")
    shares = [bars.nth(n).bounding_box()["width"] / 560 for n in range(bars.count())]
    assert len(shares) == 2
    assert all(share > 0.5 for share in shares)
    visit.close()


def test_a_page_that_stays_open_follows_the_run(browser: Any, cut_short: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(cut_short, tmp_path / "deployment"))
    with program("server", "dashboard", str(folder), "--port", "0", expect=143) as facts:
        visit = Visit(browser, facts["page"])
        assert "Round 5 of" in visit.page.locator("h1").inner_text()
        rows = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        added = json.dumps({**json.loads(rows[-1]), "round": 6})
        (folder / "run" / "metrics.jsonl").write_text("\n".join([*rows, added, ""]))
        visit.page.get_by_text("Round 6 of").wait_for(timeout=3000 * BUSY)
        visit.close()


def test_without_the_link_there_is_nothing_to_see(browser: Any, link: str) -> None:
    visit = Visit(browser, link.partition("?")[0])
    assert "for the server's operator" in visit.page.inner_text("body")
    visit.context.close()
