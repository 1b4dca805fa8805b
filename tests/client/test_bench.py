"""`homerank-client benchmark`: figures add up, every row measures what it says, targets are judged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.bench import large, search, serving, storage, workbench
from client.bench.rows import COLUMNS, ROWS, cells_of, chosen
from client.bench.timing import WARM_UP, Figures, Target, measure, summed_up
from client.bench.workbench import Setting, Workbench
from client.compact.export import export_model
from shared.errors import ConfigError
from shared.terminal import run_cli

pytestmark = pytest.mark.usefixtures("own_cache")

TINY = """
[model]
backbone = "tiny-bert"
history = 8
output_dim = 16

[prior]
half_lives = [2.0]
output = 8
"""


#: Rows that need an exported model, and rows with a service in a process of its own.
EXPORTED = {"slate-int8", "slate-student", "start-student"}
SERVED = {"start", "load"}


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def bench(settings_file: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    """Everything a thousandth of its size."""
    monkeypatch.setattr(workbench, "ITEMS", 120)
    monkeypatch.setattr(search, "MANY", 2_000)
    monkeypatch.setattr(search, "VERY_MANY", 3_000)
    monkeypatch.setattr(search, "NARROW", 8)
    monkeypatch.setattr(search, "BEST", 10)
    monkeypatch.setattr(large, "ITEMS", 400)
    monkeypatch.setattr("client.adapted.WHOLE", 300)
    monkeypatch.setattr(storage, "FEW", 20)
    monkeypatch.setattr(storage, "MANY", 2_000)
    return Workbench(Setting(config=settings_file, requests=4))


def test_figures_by_hand() -> None:
    found = summed_up([4.0, 1.0, 2.0, 3.0, 5.0])
    assert found.to_dict() == {"p50": 3.0, "p99": pytest.approx(4.96), "least": 1.0, "requests": 5}


def test_what_makes_a_case_ready_is_not_timed_and_the_first_do_not_count() -> None:
    made: list[int] = []

    def cases() -> Any:
        while True:
            made.append(len(made))
            yield lambda: None

    assert measure(cases(), requests=7).requests == 7
    assert len(made) == WARM_UP + 7


@pytest.mark.parametrize(
    ("target", "reached"),
    [
        (Target(), None),
        (Target(p50=2), True),
        (Target(p50=1.9), False),
        (Target(p50=2, p99=8), False),
        (Target(recall=0.9), True),
        (Target(recall=0.95), False),
        (Target(ratio=2), False),
    ],
)
def test_every_target_must_be_met(target: Target, reached: bool | None) -> None:
    assert Figures(p50=2.0, p99=9.0, least=1.0, requests=3, recall=0.9).reach(target) is reached


def test_a_target_says_what_it_asks() -> None:
    assert str(Target(p50=15, p99=40)) == "p50 <= 15, p99 <= 40"
    assert str(Target(recall=0.95, ratio=1.2)) == "recall >= 0.95, ratio <= 1.2"


def test_rows_are_named_or_the_usual_ones() -> None:
    assert list(chosen(["forget-1m", "slate"])) == ["slate", "forget-1m"]
    assert set(chosen([])) == set(ROWS) - {"slate-100k", "exact-1m", "graph-1m"} - EXPORTED - SERVED
    with pytest.raises(ConfigError, match=r"found row .slat.; expected one of slate, .*Did you mean .slate."):
        chosen(["slat"])


@pytest.mark.parametrize("name", [name for name in ROWS if name not in EXPORTED | SERVED])
def test_every_row_measures(name: str, bench: Workbench) -> None:
    if name == "graph-1m":
        pytest.importorskip("usearch")
    found = ROWS[name].run(bench)
    assert 0 < found.least <= found.p50 <= found.p99
    assert found.requests == (1 if name == "forget-1m" else 4)
    assert len(cells_of(name, ROWS[name], found)) == len(COLUMNS)
    assert (found.recall is not None) == (name in ("slate-100k", "exact-100k", "cells-1m", "exact-1m", "graph-1m"))
    if name.startswith("exact") or name == "slate-100k":
        assert found.recall == 1
    if name == "store-1m":
        assert found.ratio is not None
    if name in ("exact-100k", "cells-1m"):
        entries = 2_000 * search.WIDE if name == "exact-100k" else 3_000 * 8
        assert found.memory is not None
        assert found.memory >= 5 * entries  # vectors, and a byte for each entry


def test_made_vectors_are_near_real_ones(bench: Workbench) -> None:
    rows, queries = search.around_real_ones(bench)
    assert rows.shape == (3_000, 8)
    assert queries.shape == (search.COMPARED, 8)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    likeness = rows[:100] @ rows.T
    others = np.random.default_rng(0).standard_normal((3_000, 8))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert np.sort(likeness)[:, -20].mean() > np.sort(others[:100] @ others.T)[:, -20].mean() + 0.02


def test_a_store_holds_what_it_is_asked_for(bench: Workbench) -> None:
    with bench.journal(500) as journal:
        assert journal.store.count() == 500
        assert len(journal.newest(50)) == 50


def test_a_run_brings_its_own_catalogue(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found --run beside --data or --config"):
        Workbench(Setting(run=tmp_path, data=tmp_path))


def test_the_command_prints_one_object(settings_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from client.cli import app

    asked = ["benchmark", "--config", str(settings_file), "--row", "slate", "--row", "slate-again", "--requests", "3"]
    with pytest.raises(SystemExit, match="0"):
        run_cli(app, "homerank-client", [*asked, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert told["items"] == 3_416
    assert set(told["rows"]) == {"slate", "slate-again"}
    assert told["rows"]["slate"]["target"] == "p50 <= 15, p99 <= 40"
    assert told["machine"]["cores"] >= 1
    with pytest.raises(SystemExit, match="0"):
        run_cli(app, "homerank-client", asked)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"| {' | '.join(COLUMNS)} |"
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| slate", "| slate-again"]
    assert lines[-1].startswith("3,416 items; one thread;")


def test_the_command_names_all_rows() -> None:
    from client.cli_benchmark import benchmark

    assert all(name in str(benchmark.__doc__) for name in ROWS)


@pytest.mark.slow
def test_rows_of_a_service_and_of_exported_models_measure(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "STARTS", 1)
    monkeypatch.setattr(serving, "PARALLEL", 5)
    monkeypatch.setattr(serving, "SECONDS", 8.0)
    export_model(bench.engine.runtime, tmp_path / "model", kinds=("int8", "student"), adapter={}, histories=32)
    setting = dataclasses.replace(bench.setting, model=tmp_path / "model")
    for name in sorted(EXPORTED | SERVED):
        found = ROWS[name].run(Workbench(setting))
        assert 0 < found.least <= found.p50 <= found.p99
        assert (found.failed, found.stale) == ((0, 0) if name == "load" else (None, None))
    with pytest.raises(ConfigError, match="export-model"):
        ROWS["slate-student"].run(bench)
