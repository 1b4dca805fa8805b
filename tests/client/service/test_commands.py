"""`homerank-client` from the outside: every command, with and without a running service, and what mistakes get."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.cli import app
from shared.terminal import run_cli
from tests.client.service.small_service import items_jsonl, profile_at, write_adapter

pytestmark = pytest.mark.usefixtures("own_cache")
ROOT = Path(__file__).resolve().parents[3]


class Terminal:
    """Runs commands on one home."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home, self._capsys = home, capsys

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_cli(app, "homerank-client", [*arguments, "--home", str(self.home)])
        said = self._capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    def json(self, *arguments: str) -> Any:
        """The one JSON object of a command that succeeds."""
        code, out, err = self.run(*arguments, "--json")
        assert code == 0, err
        assert out.count("\n") == 1
        return json.loads(out)

    def refused(self, *arguments: str) -> str:
        """The one line a mistake gets."""
        code, out, err = self.run(*arguments)
        assert (code, out) == (2, ""), (code, out, err)
        assert err.count("\n") == 1
        assert err.startswith("homerank-client: ")
        return err


@pytest.fixture
def terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Terminal:
    profile_at(tmp_path / "home")
    return Terminal(tmp_path / "home", capsys)


def test_what_happened_is_recorded_ranked_explained_and_forgotten(terminal: Terminal, tmp_path: Path) -> None:
    assert terminal.json("record", "i1") == {"first": 0, "count": 1, "new": True}
    assert terminal.json("record", "i2", "--kind", "rating", "--value", "4", "--key", "k")["new"] is True
    assert terminal.json("record", "i2", "--kind", "rating", "--value", "4", "--key", "k")["new"] is False
    slate = terminal.json("recommend", "-k", "24")["slate"]
    assert {"i1", "i2"} & {one["item"] for one in slate} == set()
    assert all(one["why"] for one in slate)
    found = terminal.json("why", slate[0]["item"], "--without-event", "1")
    assert found["score"] == pytest.approx(slate[0]["score"], abs=1e-4)
    assert found["counterfactual"]["item"] == "i2"
    assert all("space" in one["tags"] for one in terminal.json("search", "space", "-k", "5")["slate"])
    assert terminal.json("similar", "i4", "-k", "3")["similar"][0]["similarity"] <= 1
    terminal.json("interest", "crime", "--factor", "0")
    assert not any("crime" in one["tags"] for one in terminal.json("recommend", "-k", "24")["slate"])
    assert terminal.json("settings", "participate=false", "diversity=0.5")["participate"] is False
    assert terminal.json("privacy")["participate"] is False
    assert terminal.json("export", str(tmp_path / "mine.zip"))["bytes"] > 1000
    assert (tmp_path / "mine.zip").stat().st_mode & 0o777 == 0o600
    assert terminal.json("forget", "--yes")["before"]["events"] == 2
    assert terminal.json("interest")["interests"] == []


def test_what_people_read_says_what_they_need(terminal: Terminal) -> None:
    terminal.run("record", "i1")
    assert "event 1" in terminal.run("record", "i2")[1]
    slate = terminal.run("recommend", "-k", "3")[1]
    assert "Thing" in slate
    assert "adapter r" in slate
    assert "coking read as cooking" in terminal.run("search", "coking")[1]
    why = terminal.run("why", "i9")[1]
    assert "content" in why
    assert "prior" in why
    assert "epsilon spent 0.000 of 8" in terminal.run("privacy")[1]
    assert "participate = true" in terminal.run("settings")[1]
    assert "muted" in terminal.run("interest", "crime", "--factor", "0")[1]
    assert "were searched for" in terminal.run("forget", "--yes")[1]


def test_import_brings_catalogue_history_adapter_or_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    made = profile_at(tmp_path / "other")
    run.mkdir()
    (run / "items.jsonl").write_bytes(made.catalogue.read_bytes())
    write_adapter(run / "adapter", run="films")
    terminal = Terminal(tmp_path / "home", capsys)
    done = terminal.json("import", str(run), "--what", "run")["imported"]
    assert done == [{"what": "catalogue", "count": 24}, {"what": "adapter", "count": 1}]
    assert terminal.json("recommend")["adapter"]["run"] == "films"
    data = tmp_path / "data"
    data.mkdir()
    (data / "items.jsonl").write_text(items_jsonl(_shelf(made.catalogue)))
    (data / "events.csv").write_text("user,item\nann,i1\nann,i2\n")
    assert "imported 2 events" in terminal.run("import", str(data))[1]
    assert terminal.json("recommend")["events"] == 2
    fresh = Terminal(tmp_path / "fresh", capsys)
    assert "imported 24 items" in fresh.run("import", str(data), "--what", "catalogue")[1]


def _shelf(path: Path) -> Any:
    from shared.artifacts import load_catalogue

    return load_catalogue(path)


def test_mistakes_get_one_line_and_change_nothing(terminal: Terminal, tmp_path: Path) -> None:
    assert "unknown id 'nothing'" in terminal.refused("record", "nothing")
    assert "kind" in terminal.refused("record", "i1", "--kind", "clik")
    assert "divide by 1000" in terminal.refused("record", "i1", "--time", "1700000000000")
    assert "NAME=VALUE" in terminal.refused("settings", "diversity")
    assert "extra" in terminal.refused("settings", "divers=1").casefold()
    assert "expected one of history" in terminal.refused("import", str(tmp_path), "--what", "all")
    assert "nothing there" in terminal.refused("import", str(tmp_path / "no"))
    assert "finished run" in terminal.refused("import", str(tmp_path), "--what", "run")
    assert "a new file that ends in .zip" in terminal.refused("export", str(tmp_path / "x.tar"))
    (tmp_path / "there.zip").write_text("mine")
    assert "something there already" in terminal.refused("export", str(tmp_path / "there.zip"))
    assert "expected one of full" in terminal.refused("recommend", "--engine", "fast")
    assert "a-z, 0-9" in terminal.refused("record", "i1", "--profile", "../x")
    assert "start it" in terminal.refused("page")
    assert terminal.json("recommend")["events"] == 0
    assert (tmp_path / "there.zip").read_text() == "mine"


def test_forgetting_is_asked_about(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.run("record", "i1")
    monkeypatch.setattr("typer.confirm", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert terminal.run("forget")[0] == 130
    assert terminal.json("recommend")["events"] == 1


def test_the_doctor_says_what_is_wrong_and_what_to_do(terminal: Terminal, tmp_path: Path) -> None:
    assert terminal.json("doctor")["ok"] is True
    home = tmp_path / "home" / "profiles" / "default"
    (home / "adapter" / "homerank.json").write_text("{")
    (home / "settings.json").write_text("{")
    (home / "ledger.sqlite").write_bytes(b"nonsense")
    code, out, _ = terminal.run("doctor")
    assert code == 1
    bad = [line.split()[1] for line in out.splitlines() if line.startswith("BAD")]
    assert bad == ["adapter:", "ledger:", "settings:"]
    assert "goes on ranking" in out
    empty = Terminal(tmp_path / "new", terminal._capsys)
    assert "homerank-client import" in empty.run("doctor")[1]


@pytest.mark.slow
def test_a_service_in_a_process_of_its_own(terminal: Terminal, tmp_path: Path) -> None:
    """Commands reach it, strangers do not, a second one is refused, and Ctrl-C leaves nothing behind."""
    command = [sys.executable, "-m", "client", "serve", "--home", str(terminal.home), "--port", "0", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert httpx.get(f"{told['url']}/healthz").json() == {"status": "ok"}
        assert httpx.post(f"{told['url']}/v1/recommend", json={}).status_code == 401
        assert terminal.json("page")["page"] == told["page"]
        assert terminal.json("record", "i1")["first"] == 0
        assert "i1" not in [one["item"] for one in terminal.json("recommend", "-k", "24")["slate"]]
        assert "another process" in terminal.refused("serve", "--port", "0")
        assert "runs at" in terminal.run("doctor")[1]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (0, 130)
    finally:
        process.kill()
        process.wait()
    folder = terminal.home / "profiles" / "default"
    assert not (folder / "service.json").exists()
    assert not (folder / "events.sqlite-wal").exists()
    assert terminal.json("recommend")["events"] == 1
