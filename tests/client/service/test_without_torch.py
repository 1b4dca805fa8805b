"""The whole service on an exported model, where torch is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from client.cli import app
from client.compact.export import export_model
from client.full import open_runtime
from client.service.engines import opener
from shared.errors import ConfigError
from shared.terminal import run_cli
from tests.client.service.small_service import SHELF, profile_at

pytestmark = pytest.mark.usefixtures("own_cache")
ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "peft", "opacus", "onnx"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
from client.cli import main
sys.argv = ["homerank-client", *sys.argv[1:]]
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model exported from a profile's adapter."""
    folder = tmp_path_factory.mktemp("export")
    profile = profile_at(folder / "home")
    runtime, adapter = open_runtime(SHELF, profile.adapter)
    export_model(runtime, folder / "model", kinds=("int8", "student"), adapter=adapter, histories=32)
    return folder / "model"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "student"])
def test_commands_and_service_do_without(tmp_path: Path, model: Path, kind: str) -> None:
    profile_at(tmp_path)

    def run(*arguments: str, ranks: bool = False) -> dict[str, object]:
        engine = ["--engine", kind, "--model", str(model)] if ranks else []
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments, *engine, "--home", str(tmp_path), "--json"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    run("record", "i1")
    run("record", "i5", "--kind", "like")
    slate = run("recommend", "-k", "5", ranks=True)
    assert slate["engine"] == kind
    shown = slate["slate"]
    assert isinstance(shown, list)
    assert {"i1", "i5"}.isdisjoint(one["item"] for one in shown)
    assert run("why", shown[0]["item"], "--without-event", "1", ranks=True)["sentence"] == shown[0]["why"]
    found = run("search", "space", "-k", "3", ranks=True)["slate"]
    assert isinstance(found, list)
    assert all("space" in one["tags"] for one in found)
    assert run("doctor")["ok"] is True
    assert run("forget", "--yes")["before"] == {
        "events": 2,
        "attributes": 0,
        "interests": 0,
        "verdicts": 0,
        "requests": 0,
    }


def test_an_exported_model_takes_no_adapter_and_needs_its_folder(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = profile_at(tmp_path)
    with pytest.raises(ConfigError, match="both or none"):
        opener("student")
    with pytest.raises(ConfigError, match="both or none"):
        opener("full", model=model)
    with pytest.raises(SystemExit) as end:
        run_cli(
            app,
            "homerank-client",
            ["recommend", "--engine", "student", "--model", str(tmp_path / "no"), "--home", str(tmp_path)],
        )
    assert end.value.code == 2
    assert "found no usable" in capsys.readouterr().err or profile.adapter.exists()
