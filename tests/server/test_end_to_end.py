"""The real apps over Flower's real transport: one server, two devices, each program a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from client.device import Device
from client.door.sent import read_sent
from client.limits import Limits
from client.profile import Profile
from client.store import Store
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_adapter, load_catalogue
from shared.config import load_config
from shared.runtime import runtime_for
from tests.server.programs import ROOT, program

ITEMS = 24
#: Without content and popularity the start ranks nothing, so that two rounds are sure to improve on it.
LEARNABLE = (
    "model.backbone=tiny-bert",
    "model.history=16",
    "model.gamma=0.0",
    "model.beta=0.0",
    "prior.half_lives=[]",
    "federation.server_learning_rate=0.05",
)
NAMES = ("ana-the-first", "ben-the-second")


def write_person(folder: Path, name: str, items: Sequence[int]) -> Path:
    """A data folder with one person's clicks, one a minute."""
    folder.mkdir()
    rows = [f"{name},i{item},{1_700_000_000 + 60 * step},click" for step, item in enumerate(items)]
    (folder / "events.csv").write_text("\n".join(["user,item,timestamp,kind", *rows]) + "\n")
    rows = [f"i{item},Thing {item},a thing of group {item % 5}" for item in range(ITEMS)]
    (folder / "items.csv").write_text("\n".join(["item,title,text", *rows]) + "\n")
    return folder


def command(*arguments: str) -> dict[str, str]:
    """Run a homerank program to its end with --json; its object."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments, "--json"], capture_output=True, text=True, cwd=ROOT, timeout=400
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def exchanges(out: Path) -> list[tuple[str, int, dict[str, int]]]:
    """What the server recorded: phase, accepted replies, refusals by code."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["phase"], row["accepted"], row["refused"]) for row in rows]


def recommend_at(home: Path, out: Path) -> list[str]:
    """What a device recommends with the adapter it keeps."""
    profile = Profile.open(home)
    catalogue = load_catalogue(profile.catalogue)
    runtime = runtime_for(load_config(out / "config.toml"), catalogue)
    adapter, popularity, _ = load_adapter(profile.adapter)
    runtime.install(AdapterState({**adapter.arrays, POPULARITY: popularity}))
    device = Device(
        0,
        store=Store(profile.events),
        ledger=profile.open_ledger(),
        catalogue=catalogue,
        limits=Limits("event", "aggregate", epsilon=8.0, delta=1e-5),
    )
    return [item.item_id for item in device.recommend(runtime, k=5)]


@pytest.mark.slow
def test_two_devices_train_without_and_with_privacy_and_rank_with_what_they_got(tmp_path: Path) -> None:
    folder = tmp_path / "deployment"
    homes = [tmp_path / "home 0", tmp_path / "home 1"]
    # What one of them holds out (the last), the other has clicked.
    people = [
        write_person(tmp_path / "ana", NAMES[0], [*range(0, 10), 10]),
        write_person(tmp_path / "ben", NAMES[1], [*range(8, 18), 5]),
    ]
    rounds = ["server", "run", str(folder), "--catalogue", str(people[0] / "items.csv"), "--devices", "2"]
    settings = [part for setting in LEARNABLE for part in ("--set", setting)]
    with program("server", "start", str(folder), expect=143) as ready:
        joins = [
            ["client", "join", ready["invitation"], "--home", str(home), "--privacy", "none", "--any-time"]
            for home in homes
        ]
        for join in joins:
            key = command(*join, "--keys-only")["public_key"]
            assert command("server", "register", str(folder), key)["node_id"].isdigit()
        joins[0] += ["--data", str(people[0]), "--epsilon", "8"]
        joins[1] += ["--data", str(people[1]), "--epsilon", "0.01"]
        with program(*joins[0], expect=130), program(*joins[1], expect=130):
            plain, private = tmp_path / "plain", tmp_path / "private"
            command(*rounds, "--out", str(plain), "--rounds", "2", *settings, "--set", "privacy.mode=none")
            learned = [load_adapter(profile.adapter) for profile in map(Profile.open, homes)]
            quorum = ["--set", "federation.quorum=0.5"]
            command(*rounds, "--out", str(private), "--rounds", "1", *settings, *quorum)

    # Without privacy: the new adapter was better, was shipped, and is what both devices rank with.
    assert exchanges(plain) == [
        ("popularity", 2, {}),
        ("train", 2, {}),
        ("train", 2, {}),
        ("validate", 2, {}),
        ("install", 2, {}),
    ]
    shipped, popularity, facts = load_adapter(plain / "adapter")
    assert facts["outcome"]["shipped"] == "adapter"
    assert facts["round"] == 2
    runtime = runtime_for(load_config(plain / "config.toml"), load_catalogue(plain / "items.jsonl"))
    assert shipped != runtime.start
    for adapter, counts, manifest in learned:
        assert adapter == shipped
        assert np.array_equal(counts, popularity)
        assert manifest["outcome"] == facts["outcome"]
        assert manifest["backbone"] == runtime.backbone.digest

    # With privacy: one device has no budget and says so with a code; the other is charged for what it gave.
    assert exchanges(private) == [
        ("popularity", 1, {"budget": 1}),
        ("train", 1, {"budget": 1}),
        ("validate", 1, {"budget": 1}),
        ("install", 2, {}),
    ]
    planned = json.loads((private / "adapter" / "privacy.json").read_text())
    rich, poor = (Profile.open(home).open_ledger() for home in homes)
    assert [release.phase for release in rich.releases(0)] == ["popularity", "train", "validate"]
    assert (
        0
        < rich.spent(0, unit="event", delta=1e-5)
        <= planned["layers"]["event"]["epsilon"] * (1 + 1e-6)
        <= 8.0 * (1 + 1e-6)
    )
    assert poor.releases(0) == []

    # Each device knows what it sent, to the run without privacy too, and what that cost.
    log, totals = read_sent(Profile.open(homes[0]).sent)
    assert [(row.phase, bool(row.epsilon)) for _, row in log][::-1] == [
        *((phase, False) for phase in ("popularity", "train", "train", "validate", "install")),
        *((phase, phase != "install") for phase in ("popularity", "train", "validate", "install")),
    ]
    assert (totals.rounds, totals.answers) == (3, 7)
    assert sum(row.epsilon.get("event", 0.0) for _, row in log) == pytest.approx(
        rich.spent(0, unit="event", delta=1e-5)
    )
    log, totals = read_sent(Profile.open(homes[1]).sent)
    assert [row.refusal for _, row in log][::-1] == [""] * 5 + ["budget"] * 3 + [""]
    assert (totals.rounds, totals.answers) == (2, 4)
    for home, history in zip(homes, ([*range(0, 10), 10], [*range(8, 18), 5]), strict=True):
        kept = Profile.open(home).adapter
        assert load_adapter(kept)[0] == load_adapter(private / "adapter")[0]
        assert json.loads((kept / "privacy.json").read_text()) == planned
        best = recommend_at(home, private)
        assert len(set(best)) == 5
        assert not set(best) & {f"i{item}" for item in history}

    # What the server keeps names nobody and holds no event time.
    for path in [*folder.rglob("*"), *plain.rglob("*"), *private.rglob("*")]:
        content = path.read_bytes() if path.is_file() else b""
        assert not any(word.encode() in content for word in (*NAMES, "1700000000"))
