"""`homerank-simulate` from the outside: one run end to end, what it leaves, and what it says to a mistake."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from shared.artifacts import load_adapter, load_arrays
from shared.config import load_config
from shared.noise import MODES
from shared.privacy.ledger import Ledger
from tests.simulations.tiny_runs import invoke, same, tiny_config, tiny_options, train_inline

ROOT = Path(__file__).resolve().parents[2]
METRICS = {"hr@10", "ndcg@10", "mrr", "hr@10_99neg", "ndcg@10_99neg"}
MODELS = {"popularity", "zero_shot", "local_only", "federated"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """The folder of a finished run. Tests only read it."""
    out = tmp_path_factory.mktemp("cli") / "run"
    assert invoke(*tiny_options(tiny_data, out)) == 0
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line a mistake gets."""
    capsys.readouterr()
    assert invoke(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err
    lines = said.err.strip().splitlines()
    assert lines[-1].startswith("homerank-simulate: ")
    assert sum(line.startswith("homerank-simulate: ") for line in lines) == 1
    return lines[-1]


# --- run ---------------------------------------------------------------------------------------------------


def test_json_is_one_object_with_everything(
    tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert invoke(*tiny_options(tiny_data, out), "--json") == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    result = json.loads(printed)
    assert {"data", "metrics", "privacy", "seconds", "peak_rss_bytes", "out"} <= set(result)
    assert set(result["metrics"]) == MODELS
    assert all(set(values) >= METRICS for values in result["metrics"].values())
    assert all(0 <= values[name] <= 1 for values in result["metrics"].values() for name in METRICS)
    assert set(result["seconds"]) == {"setup", "train", "evaluate"}
    assert result["data"]["users"] == 12
    assert result["privacy"]["mode"] == "none"
    assert 50e6 < result["peak_rss_bytes"] < 50e9
    assert result["out"] == str(out)
    assert json.loads((out / "result.json").read_text()) == result


def test_a_run_leaves_what_it_promises(finished: Path, tiny_data: Path) -> None:
    assert {path.name for path in (finished / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "homerank.json",
        "privacy.json",
        "projections.safetensors",
    }
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    phases = [("popularity", 0), ("train", 1), ("train", 2), ("train", 3), ("validate", 3)]
    assert [(row["phase"], row["round"]) for row in rows] == phases
    assert "<svg" in (finished / "report.html").read_text()
    assert load_config(finished / "config.toml").data.source == str(tiny_data)
    load_adapter(finished / "adapter")
    assert not list(finished.rglob("*.pt")) + list(finished.rglob("*.pkl"))


def test_the_table_ends_with_the_path_of_the_report(
    tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(*tiny_options(tiny_data, tmp_path / "run", "evaluation.local_only_users=0")) == 0
    printed = capsys.readouterr().out
    assert "NDCG@10" in printed
    assert printed.strip().splitlines()[-1] == f"report: {tmp_path / 'run' / 'report.html'}"


@pytest.mark.parametrize("trust", ["aggregate", "local"])
@pytest.mark.parametrize("mode", ["event", "user", "both"])
def test_a_private_run_stays_within_its_epsilon(
    tmp_path: Path, tiny_data: Path, mode: str, trust: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ("--privacy", mode, "--trust", trust, "--epsilon", "4", "--delta", "1e-6")
    assert invoke(*tiny_options(tiny_data, out), *options, "--json") == 0
    privacy = json.loads(capsys.readouterr().out)["privacy"]
    assert (privacy["mode"], privacy["trust"], privacy["delta"]) == (mode, trust, 1e-6)
    ledger = Ledger(out / "ledger.sqlite")
    spent = {unit: [ledger.spent(device, unit=unit, delta=1e-6) for device in range(12)] for unit in MODES[mode]}
    ledger.close()
    assert set(privacy["layers"]) == set(spent)
    for unit, layer in privacy["layers"].items():
        assert 0 < max(spent[unit]) <= 4 * (1 + 1e-6)
        assert privacy["spent_max"][unit] == pytest.approx(max(spent[unit]))
        assert layer["epsilon"] == pytest.approx(max(spent[unit]), rel=1e-3)
        assert f"({layer['epsilon']:.2f}, 1e-06)" in privacy["statement"]
    if mode != "both":  # with two units, the one that needs less noise has some budget left
        assert max(spent[mode]) == pytest.approx(4, rel=1e-3)
    assert "ε" in (out / "report.html").read_text()


def test_options_win_over_set_and_set_over_the_file(tmp_path: Path, tiny_data: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[federation]\nrounds = 11\ncohort = 7\n[model]\nblocks = 1\n")
    options = ("--config", str(file), "--rounds", "2", "--prepare-only")
    assert invoke(*tiny_options(tiny_data, tmp_path / "run", "federation.rounds=5"), *options) == 0
    config = load_config(tmp_path / "run" / "config.toml")
    assert (config.federation.rounds, config.federation.cohort, config.model.blocks) == (2, 4, 1)


def test_prepare_only_trains_nothing(tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert invoke(*tiny_options(tiny_data, out), "--prepare-only", "--json") == 0
    prepared = json.loads(capsys.readouterr().out)
    assert (prepared["out"], prepared["devices"]) == (str(out), 12)
    assert f'out="{out}"' in prepared["flwr_run"]
    assert not (out / "checkpoint.safetensors").exists()
    assert invoke("run", "--resume", str(out)) == 0
    assert (out / "report.html").exists()


# --- run: mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--round", "3"], "'--rounds'?"),
        (["run", "--set", "model.bloks=1"], "Did you mean 'model.blocks'?"),
        (["run", "--set", "blocks=1"], "Did you mean 'model.blocks'?"),
        (["run", "--set", "model.blocks"], "expected section.key=value"),
        (["run", "--rounds", "many"], "'many' is not a valid int"),
        (["run", "--privacy", "evnt"], "Did you mean 'event'?"),
        (["run", "--engine", "spark"], "expected one of inline, ray"),
        (["run", "--cohort", "0"], "found 0; expected 1 to"),
        (["run", "--experiment", "ml-2m"], "found experiment 'ml-2m'; expected one of "),
        (["run", "--config", "no.toml"], "no.toml: found no readable file"),
        (["rum"], "Did you mean 'run'?"),
        (["data", "chek", "world"], "Did you mean 'check'?"),
        (["recommend", "--user", "u1"], "Missing option '--run'"),
        (["recommend", "--run", ".", "--user", "u1", "-k", "0"], "0 is not in the range"),
        (["run", "--resume", "."], "found no config.toml"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_in_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[privacy]\nepsilom = 3.0\n")
    assert "Did you mean 'privacy.epsilon'?" in refused(capsys, "run", "--config", str(file))


def test_a_folder_with_something_in_it_is_not_overwritten(
    finished: Path, tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "checkpoint.safetensors").read_bytes()
    assert f"--resume {finished}" in refused(capsys, *tiny_options(tiny_data, finished))
    assert (finished / "checkpoint.safetensors").read_bytes() == before
    file = tmp_path / "file"
    file.write_text("mine")
    assert "is not an empty folder" in refused(capsys, *tiny_options(tiny_data, file))
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "extra", [["--rounds", "9"], ["--set", "seed=3"], ["--out", "x"], ["--data", "world"]], ids=str
)
def test_resume_takes_no_other_setting(
    finished: Path, extra: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "give no other option" in refused(capsys, "run", "--resume", str(finished), *extra)


def test_bad_data_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert "nowhere" in refused(capsys, "run", "--data", str(tmp_path / "nowhere"), "--out", str(out))
    assert not out.exists()


# --- data check --------------------------------------------------------------------------------------------


def test_data_check_reports(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("data", "check", str(tiny_data), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["users"], report["items"], report["events"]) == (12, 120, 96)
    assert invoke("data", "check", str(tiny_data)) == 0
    assert "96" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("events", "items", "found"),
    [
        ("user,thing\nu,i1\n", None, "item"),
        ("user,item,colour\nu,i1,red\n", None, "unknown column 'colour'"),
        ("user,item\n", None, "found no"),
        ("user,item,kind,value\nu,i1,rating,five\n", None, "line 2, column value: found 'five'"),
        ("user,item\nu,i1\nu,i999\n", None, "line 3, column item: found"),
        ("user,item,timestamp\nu,i1,yesterday\n", None, "line 2, column timestamp"),
        ("user,item,kind\nu,i1,clik\n", None, "Did you mean 'click'"),
        ("user,item\nu,i1\n", "item,title\ni1,a\ni1,b\n", "line 3, column item: found item id 'i1' again"),
        ("user,item\nu,i1\n", "item\ni1\n", "text"),
    ],
)
def test_bad_data_is_one_line_that_names_the_place(
    events: str, items: str | None, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "events.csv").write_text(events)
    (tmp_path / "items.csv").write_text(items or "item,title\ni1,a\ni2,b\n")
    line = refused(capsys, "data", "check", str(tmp_path))
    assert found in line
    assert str(tmp_path) in line
    assert "expected" in line


def test_a_missing_and_an_empty_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "gone" in refused(capsys, "data", "check", str(tmp_path / "gone"))
    assert str(tmp_path) in refused(capsys, "data", "check", str(tmp_path))


# --- recommend ---------------------------------------------------------------------------------------------


def test_recommendations_say_what_and_why(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("recommend", "--run", str(finished), "--user", "u3", "-k", "5", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    found = answer["recommendations"]
    assert [row["rank"] for row in found] == [1, 2, 3, 4, 5]
    scores = [row["score"] for row in found]
    assert scores == sorted(scores, reverse=True)
    for row in found:
        assert row["score"] == pytest.approx(sum(row["parts"].values()), abs=1e-4)
    history = {entry["item"] for entry in answer["history"]}
    assert len(history) == 7
    assert not history & {row["item"] for row in found}
    assert 0 < answer["milliseconds"] < 1000


def test_recommendations_for_a_person(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("recommend", "--run", str(finished), "--user", "u3") == 0
    printed = capsys.readouterr().out
    assert "for user u3" in printed
    assert "from: " in printed
    assert "10" in printed


def test_recommend_says_what_is_missing(
    finished: Path, tmp_path: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "recommend", "--run", str(finished), "--user", "ana")
    assert "found no user 'ana'" in line
    assert "12 users, for example 'u0'" in line
    assert "found no config.toml" in refused(capsys, "recommend", "--run", str(tmp_path), "--user", "u1")
    assert invoke(*tiny_options(tiny_data, tmp_path / "half"), "--prepare-only") == 0
    line = refused(capsys, "recommend", "--run", str(tmp_path / "half"), "--user", "u1")
    assert "finish the run with --resume" in line


def test_a_damaged_run_is_one_line(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("data.json", "targets.npz", "items.jsonl", "adapter/projections.safetensors", "adapter/homerank.json"):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(finished, copy)
        (copy / name).write_bytes(b"junk")
        refused(capsys, "recommend", "--run", str(copy), "--user", "u3")


# --- resume ------------------------------------------------------------------------------------------------


def test_resuming_a_finished_run_only_measures_again(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    capsys.readouterr()
    assert invoke("run", "--resume", str(copy), "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert again["metrics"] == json.loads((finished / "result.json").read_text())["metrics"]
    assert (copy / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_after_ctrl_c_resume_ends_as_if_nothing_had_happened(tmp_path: Path, tiny_data: Path) -> None:
    settings = ("federation.rounds=120", "privacy.mode=event", "evaluation.every=0", "evaluation.local_only_users=0")
    out = tmp_path / "stopped" / "run"
    command = [sys.executable, "-m", "simulations", *tiny_options(tiny_data, out, *settings)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = monotonic() + 120
    while rounds(out) < 5 and monotonic() < deadline and process.poll() is None:
        sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert printed == ""
    assert "Traceback" not in said
    assert f"homerank-simulate run --resume {out}" in said
    assert 5 <= rounds(out) < 120
    assert invoke("run", "--resume", str(out)) == 0
    assert rounds(out) == 120
    _, whole = train_inline(tiny_config(tiny_data, *settings), tmp_path / "whole" / "run")
    resumed = load_arrays(out / "candidate.safetensors")
    assert same(type(whole)(resumed), whole)


def rounds(folder: Path) -> int:
    """Training rounds on record."""
    path = folder / "metrics.jsonl"
    return path.read_text().count('"phase": "train"') if path.exists() else 0


# --- help --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["simulations", "client", "server"])
def test_help_is_quick_and_loads_nothing_heavy(program: str) -> None:
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['{program}', '--help']\n"
        f"try:\n    runpy.run_module('{program}', run_name='__main__')\n"
        "except SystemExit as left:\n    assert not left.code, left.code\n"
        "heavy = {'torch', 'flwr', 'transformers', 'peft', 'opacus', 'numpy', 'ray', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
        times.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "[]"
    assert f"homerank-{'simulate' if program == 'simulations' else program}" in done.stdout
    assert min(times) < 0.5
