"""A service over a tiny random backbone: a shelf of tagged items, a trained-looking adapter in a real folder."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from client.full import FullEngine
from client.profile import Profile
from client.service.http import make_app
from client.service.person import Person
from client.store import History
from shared.adapter import AdapterState
from shared.artifacts import save_adapter, save_catalogue
from shared.catalogue import Catalogue
from shared.config import Config, merge
from shared.prior import PRIOR
from shared.runtime import Runtime, public_settings
from shared.schema import Item

TOKEN = "a-token"
LENGTH = 4
GROUPS = ("crime", "comedy", "space", "cooking")
SHELF = Catalogue(
    tuple(
        Item(
            id=f"i{n}",
            title=f"Thing {n} ({1980 + n})",
            text=f"a thing of group {GROUPS[n % 4]} number {n}",
            tags=(GROUPS[n % 4], "long" if n % 3 else "short"),
            domain="films" if n < 18 else "books",
            creator=f"maker {n % 5}" if n % 5 else "",
        )
        for n in range(24)
    )
)
WITH_PRIOR = {"half_lives": [0.5, 3.0], "widths": [10, 6], "output": 8, "folds": 1, "gamma": 2.0, "beta": 0.3}


def config(**changes: Any) -> Config:
    """Two blocks 32 wide, windows of four events, and a prior."""
    model = {"backbone": "tiny-bert", "history": LENGTH, "output_dim": 16}
    settings = {"model": model, "lora": {"rank": 2, "blocks": 0}, "prior": WITH_PRIOR}
    return merge(merge(Config(), settings), changes)


def write_adapter(folder: Path, *, seed: int = 1, catalogue: Catalogue = SHELF, run: str = "r", **changes: Any) -> Path:
    """An adapter folder as a server would deliver it, its numbers random."""
    runtime = Runtime(config(**changes), catalogue)
    draw = np.random.default_rng(seed)
    arrays = {name: a + draw.normal(0, 0.3, a.shape).astype(np.float32) for name, a in runtime.start.arrays.items()}
    layout = runtime.scorer.layout
    if layout is not None:
        arrays[PRIOR] = draw.normal(0, 0.3, (layout.features, layout.output)).astype(np.float32)
    manifest = {
        "run": run,
        "round": seed,
        "backbone": runtime.backbone.digest,
        "catalogue": catalogue.fingerprint,
        "settings": public_settings(runtime.config),
        "outcome": "adapter",
    }
    popularity = draw.normal(size=len(catalogue)).astype(np.float32)
    peft = runtime.peft_config()
    save_adapter(
        folder,
        AdapterState(arrays),
        popularity=popularity,
        peft_config=peft,
        manifest=manifest,
        privacy={"mode": "none"},
    )
    return folder


def open_full(catalogue: Catalogue, history: History, folder: Path | None) -> FullEngine:
    """The full engine of an adapter folder; without one the tiny settings' start."""
    if folder is None:
        return FullEngine(Runtime(config(), catalogue), history)
    return FullEngine.open(catalogue, history, folder=folder)


def profile_at(home: Path, *, adapter: bool = True, catalogue: Catalogue | None = SHELF) -> Profile:
    """A profile with a catalogue and an adapter."""
    profile = Profile.open(home)
    if catalogue is not None:
        save_catalogue(catalogue, profile.catalogue)
    if adapter and catalogue is not None:
        write_adapter(profile.adapter, catalogue=catalogue)
    return profile


class Served:
    """A service, and a client that is let in."""

    def __init__(self, home: Path, **given: Any) -> None:
        self.profile = profile_at(home, **given)
        self.person = Person(self.profile, engine=open_full)
        self.app = make_app(self.person, token=TOKEN)
        self.stranger = TestClient(self.app, base_url="http://127.0.0.1:1", raise_server_exceptions=False)
        self.client = TestClient(
            self.app,
            base_url="http://127.0.0.1:1",
            headers={"authorization": f"Bearer {TOKEN}"},
            raise_server_exceptions=False,
        )

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.person.close()

    def get(self, path: str, **given: Any) -> Any:
        """The answer to a GET that succeeds."""
        answer = self.client.get(path, **given)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, asked: Mapping[str, Any] | None = None, **given: Any) -> Any:
        """The answer to a POST that succeeds."""
        answer = self.client.post(path, json=dict(asked or {}), **given)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def refused(self, path: str, asked: Mapping[str, Any] | None = None, *, code: int = 400) -> str:
        """The words with which a POST is refused."""
        answer = self.client.post(path, json=dict(asked or {}))
        assert answer.status_code == code, answer.text
        return str(answer.json()["error"])

    def record(self, *items: str, kind: str = "click") -> None:
        """Record events."""
        self.post("/v1/events/batch", {"events": [{"item": item, "kind": kind} for item in items]})

    def slate(self, **asked: Any) -> list[dict[str, Any]]:
        """The slate for what is asked."""
        found: list[dict[str, Any]] = self.post("/v1/recommend", asked)["slate"]
        return found

    def ids(self, **asked: Any) -> list[str]:
        """The slate's item ids."""
        return [one["item"] for one in self.slate(**asked)]


def zipped(files: Mapping[str, str | bytes]) -> bytes:
    """A zip of files by name."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return memory.getvalue()


def items_jsonl(catalogue: Catalogue) -> str:
    """A catalogue as an items file that people write."""
    rows = [{"item": it.id, "title": it.title, "text": it.text, "tags": "|".join(it.tags)} for it in catalogue.items]
    return "".join(json.dumps(row) + "\n" for row in rows)
