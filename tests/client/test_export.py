"""`homerank-client export-model`: what it writes, measures, says and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from client.cli import app
from client.compact import check
from client.compact.engine import CompactEngine
from client.compact.folder import MANIFEST, ModelFolder
from client.profile import Profile
from client.store import Role, Store
from shared.artifacts import load_catalogue
from shared.terminal import run_cli
from tests.client.test_session import SHELF, history
from tests.simulations.tiny_runs import tiny_config, train_inline, write_data

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a second, its adapter shipped whatever the devices said."""
    base = tmp_path_factory.mktemp("run")
    train_inline(tiny_config(write_data(base / "data")), base / "run")
    return base / "run"


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        run_cli(app, "homerank-client", ["export-model", *map(str, arguments)])
    found = capsys.readouterr()
    return int(ended.value.code or 0), found.out, found.err


def test_a_run_becomes_a_folder_that_ranks(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model"
    code, said, complaint = call(capsys, "--run", run, "--out", out, "--requests", 5, "--json")
    assert (code, complaint) == (0, "")
    report = json.loads(said)
    models = report["models"]
    assert list(models) == ["full", "int8", "student"]
    assert report["people"] == 12
    assert report["failed"] == []
    assert all(0 < one["p50_ms"] <= one["p99_ms"] for one in models.values())
    assert models["int8"]["overlap10"] > 0.9
    assert models["int8"]["max_difference"] < 1
    folder = ModelFolder.open(out)
    assert folder.manifest["kinds"] == ["int8", "student"]
    assert models["int8"]["bytes"] + models["student"]["bytes"] > folder.size > models["student"]["bytes"]
    catalogue = load_catalogue(run / "items.jsonl")
    engine = CompactEngine.open(out, catalogue, history([], about={}), kind="int8")
    assert engine.adapter == report["adapter"]


def test_one_kind_and_a_table_for_people(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said, _ = call(capsys, "--run", run, "--out", tmp_path, "--kind", "int8", "--requests", 3, "--users", 4)
    assert code == 0
    assert [line.split()[0] for line in said.splitlines()] == ["model", "full", "int8", "120"]
    assert "4 people" in said
    assert not (tmp_path / "student.onnx").exists()


def test_a_profile_is_exported_with_the_adapter_it_has(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    person = Profile.open(tmp_path / "home", "ada")
    shutil.copy(run / "items.jsonl", person.catalogue)
    shutil.copytree(run / "adapter", person.adapter)
    source = ("--home", tmp_path / "home", "--profile", "ada", "--requests", 3)
    code, said, complaint = call(capsys, *source, "--out", tmp_path / "m", "--kind", "student", "--json")
    assert (code, complaint) == (0, "")
    report = json.loads(said)
    assert report["people"] == 0
    assert list(report["models"]) == ["full", "student"]
    assert "ndcg10" not in report["models"]["student"]
    (tmp_path / "file").touch()
    code, _, complaint = call(capsys, *source, "--out", tmp_path / "file")
    assert code == 2
    assert "choose another folder" in complaint


def test_a_model_that_ranks_otherwise_is_not_usable(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(check.LEAST_OVERLAP, "int8", 1.01)
    code, said, complaint = call(capsys, "--run", run, "--out", tmp_path, "--kind", "int8", "--requests", 3)
    assert code == 2
    assert "overlap10" in said
    assert "of the ten best are the full model's; expected 1.01" in complaint
    assert not (tmp_path / MANIFEST).exists()


def test_it_wants_one_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected one of them" in call(capsys, "--out", tmp_path)[2]
    code, _, complaint = call(capsys, "--out", tmp_path / "m", "--run", tmp_path)
    assert code == 2
    assert "items.jsonl" in complaint


def test_shortfalls_are_told_in_words() -> None:
    full = {"ndcg10": 0.1, "people": 300.0}
    small = {"overlap10": 0.9, "ndcg10": 0.09, "of_full": 0.9}
    assert check.failures({"full": full, "student": small}) == [
        "student: 0.900 of the full model's NDCG@10; expected 0.95"
    ]
    few = {**full, "people": 20.0}
    assert check.failures({"full": few, "student": small}) == []
    assert len(check.failures({"full": few, "int8": {"overlap10": 0.2}, "student": {"overlap10": 0.2}})) == 2


def test_held_out_cases_end_before_their_target(tmp_path: Path) -> None:
    store = Store(tmp_path / "events.sqlite")
    roles = [Role.TRAIN, Role.VALIDATE, Role.HISTORY]
    rows = [
        (device, seq, f"i{device + seq}", None, 1, int(role), None)
        for device in (0, 1)
        for seq, role in enumerate(roles)
    ]
    store.replace([*rows, (2, 0, "i5", None, 1, int(Role.TRAIN), None)])
    store.close()
    cases = check.held_out(tmp_path / "events.sqlite", SHELF, limit=5)
    assert sorted((case.history.items.tolist(), case.target) for case in cases) == [([0], 1), ([1], 2)]
    assert len(check.held_out(tmp_path / "events.sqlite", SHELF, limit=1)) == 1
    np.testing.assert_array_equal([case.history.roles for case in cases], [[Role.TRAIN]] * 2)
