"""The pictures of the page in docs/images, of a person of the synthetic world, with a model trained on it.

    PYTHONPATH=. python benchmarks/screenshots.py [RUN]

RUN is a run folder of `homerank-simulate run --data world`; without it one is made first, which takes minutes. The
service and the page are the real ones; it needs Chromium, as the tests of the page do. Before the pictures a made-up
server asks the device twice, under protection of events, so that the privacy page has something to tell.
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from client.door import wire
from client.profile import Profile
from client.service.parcels import packed
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_catalogue
from shared.config import load_config
from shared.noise import Layer, Noise
from shared.protocol import Manifest, encode_request
from shared.runtime import public_settings, runtime_for
from shared.schema import EventKind
from simulations.world import World, make_world
from tests.client.page.browser import call, chromium, served

IMAGES = Path("docs/images")
PERSON, EVENTS = 3, 24
#: Noise multiplier of what the made-up server asks for.
NOISE = 2.0
#: Seconds between its messages; a device answers no faster.
PAUSE = 1.5
#: Picture -> width, height, colour scheme, what is open.
PICTURES = {
    "feed": (1100, 740, "light", "feed"),
    "why": (1100, 740, "light", "why"),
    "privacy": (1100, 860, "dark", "privacy"),
    "phone": (360, 740, "light", "feed"),
}


def history(world: World) -> bytes:
    """A zip of the last events of one person, as docs/data.md describes a folder."""
    data = world.interactions
    rows = data.of(PERSON)
    newest = slice(max(rows.start, rows.stop - EVENTS), rows.stop)
    items = [data.catalogue.items[item] for item in data.item[newest].tolist()]
    kinds = [EventKind(kind).label for kind in data.kind[newest].tolist()]
    times = data.time[newest].tolist()
    events = [("me", item.id, int(moment), kind) for item, moment, kind in zip(items, times, kinds, strict=True)]
    known = {item.id: (item.id, item.title, item.text) for item in items}
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("events.csv", table(("user", "item", "timestamp", "kind"), events))
        archive.writestr("items.csv", table(("item", "title", "text"), list(known.values())))
    return memory.getvalue()


def table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    """Rows as csv."""
    text = io.StringIO()
    csv.writer(text).writerows([head, *rows])
    return text.getvalue()


def put(link: str, what: str, body: bytes) -> None:
    """Import a zip."""
    origin, token = link.split("/?token=")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/zip"}
    wanted = urllib.request.Request(f"{origin}/v1/import?what={what}", body, headers, method="POST")
    urllib.request.urlopen(wanted).close()


def take_part(home: Path, folder: Path) -> None:
    """Let the device answer two messages of a server that nobody runs: popularity and the moments of the prior."""
    config, catalogue = load_config(folder / "config.toml"), load_catalogue(folder / "items.jsonl")
    runtime = runtime_for(config, catalogue)
    moments = runtime.scorer.layout.shapes if runtime.scorer.layout else {}
    replies = {"popularity": {POPULARITY: (len(catalogue),)}, "prior": moments}
    noise = Noise("event", "aggregate", "device", 200, event=Layer(NOISE, 1.0))
    for phase, reply in replies.items():
        manifest = Manifest(
            run="world-2026-11",
            round=0,
            phase=phase,
            backbone=runtime.backbone.digest,
            catalogue=catalogue.fingerprint,
            shapes={},
            reply=reply,
            settings={**public_settings(config), "noise": noise.to_dict()},
        )
        time.sleep(PAUSE)
        answer = wire.ask(home / "run" / "default.sock", encode_request(manifest, AdapterState({})))
        if "refusal" in answer["config"]:
            raise SystemExit(f"{phase}: refused: {answer['config']['refusal']}")


def draw(browser: Any, link: str, name: str) -> Path:
    """Take one picture."""
    width, height, scheme, view = PICTURES[name]
    window = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = window.new_page()
    page.goto(link)
    page.wait_for_selector("#cards > li")
    if view == "feed":
        page.click("#cards > li:nth-child(2) [data-act=like]")
        page.wait_for_selector(".news.fresh")
        page.evaluate("() => { document.activeElement.blur(); document.querySelector('#toasts').replaceChildren() }")
        page.mouse.move(width - 1, height - 1)
        page.evaluate("() => window.scrollTo(0, 0)")
    elif view == "why":
        page.click("#cards > li:nth-child(1) [data-act=why]")
        page.wait_for_selector("#panel .parts")
    else:
        page.click(f"nav [data-view={view}]")
        page.wait_for_selector(f"#view-{view}:not([hidden])")
    page.wait_for_load_state("networkidle")
    target = IMAGES / f"{name}.png"
    page.screenshot(path=str(target))
    window.close()
    return target


def main(run: str | None) -> None:
    """Make the run if there is none, a person of its world, and the pictures."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as scratch:
        folder = Path(run or Path(scratch) / "run")
        if run is None:
            command = [sys.executable, "-m", "simulations", "run", "--data", "world", "--out", str(folder)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        home = Path(scratch) / "home"
        shutil.copy(folder / "items.jsonl", Profile.open(home).catalogue)
        with served(home, options=["--any-time"]) as link, chromium() as browser:
            put(link, "history", history(make_world(0)))
            put(link, "adapter", packed(folder / "adapter"))
            call(link, "PATCH", "/v1/settings", {"diversity": 0.3})
            take_part(home, folder)
            for name in PICTURES:
                target = draw(browser, link, name)
                print(f"{target}: {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
