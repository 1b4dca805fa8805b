"""The commands that attack the system: exit codes, and one object on stdout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from server.aggregation import Aggregator
from simulations.audit import aggregator
from simulations.runfolder import prepare
from tests.simulations.planted_bugs import BUGS
from tests.simulations.tiny_runs import invoke, tiny_config, train_inline

QUICK = ("audit", "--epsilon", "2", "--groups", "128", "--canaries", "16", "--trials", "0", "--seed", "1", "--json")


def test_an_audit_of_the_real_aggregator_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(*QUICK) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["passed"]
    assert 0 <= answer["aggregator"]["lower_bound"] <= 2


def test_an_audit_that_refutes_its_claim_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = next(make for name, make in BUGS.items() if name.startswith("noise scaled"))
    assert broken is not Aggregator
    real = aggregator.audit_aggregator
    monkeypatch.setattr(
        aggregator,
        "audit_aggregator",
        lambda claim, *, groups, canaries, seed: real(
            claim, make_aggregator=broken, groups=groups, canaries=canaries, seed=seed
        ),
    )
    assert invoke(*QUICK) == 1
    answer = json.loads(capsys.readouterr().out)
    assert not answer["passed"]
    assert max(answer["aggregator"]["lower_bound"], answer["aggregator"]["lower_bound_gaussian"]) > 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("audit", "--epsilon", "-1"),
        ("audit", "--delta", "2"),
        ("benchmark", "robustness", "--attack", "flattery"),
        ("benchmark", "robustness", "--defence", "hope"),
        ("benchmark", "quality", "--data", "nowhere"),
        ("benchmark", "quality", "--set", "model.backbnoe=tiny-bert"),
        ("benchmark", "quality", "--run", "nowhere"),
    ],
)
def test_what_makes_no_sense_is_said_to_be_so(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(*arguments) == 2
    said = capsys.readouterr().err
    assert "expected" in said or "Did you mean" in said
    assert not list(tmp_path.rglob("*.html"))


# --- quality -----------------------------------------------------------------------------------------------


def quality_options(data: Path, out: Path) -> list[str]:
    """A quality benchmark on a tiny backbone."""
    settings = ("model.backbone=tiny-bert", "model.history=8", "model.output_dim=16", "evaluation.bootstrap=20")
    return [
        "benchmark",
        "quality",
        "--data",
        str(data),
        "--out",
        str(out),
        *(p for s in settings for p in ("--set", s)),
    ]


def test_an_unknown_ranker_is_named_before_anything_is_measured(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(*quality_options(tiny_data, tmp_path / "out"), "--row", "populrity") == 2
    assert "Did you mean 'popularity'?" in capsys.readouterr().err
    assert not (tmp_path / "out" / "rows").exists()


def test_a_runs_own_questions_take_no_other_settings(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tiny_config(tiny_data), tmp_path / "run")
    command = ("benchmark", "quality", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out"))
    assert invoke(*command, "--split", "temporal") == 2
    assert "Give --data as well" in capsys.readouterr().err


@pytest.mark.slow
def test_quality_is_measured_continued_and_compared_with_a_finished_run(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [*quality_options(tiny_data, out), "--row", "popularity", "--row", "markov"]
    assert invoke(*command, "--json") == 0
    said = capsys.readouterr()
    first = json.loads(said.out)
    assert said.out.count("\n") == 1
    assert said.err.split() == ["popularity", "markov", "comparing"]
    assert set(first["rows"]) == {"popularity", "markov"}
    assert (out / "quality.html").is_file()
    assert (out / "per_user.npz").is_file()
    stamp = (out / "rows" / "markov" / "0.json").stat().st_mtime_ns
    assert invoke(*command, "--reference", "markov") == 0
    assert "minus markov" in capsys.readouterr().out
    assert (out / "rows" / "markov" / "0.json").stat().st_mtime_ns == stamp

    run, _ = train_inline(tiny_config(tiny_data), tmp_path / "run")
    own = ("--run", str(run.path), "--row", "zero-shot", "--out", str(tmp_path / "own"), "--json")
    assert invoke("benchmark", "quality", *own) == 0
    second = json.loads(capsys.readouterr().out)
    assert set(second["rows"]) == {"zero-shot", "federated"}
    assert second["reference"] == "federated"
    assert not (tmp_path / "own" / "data").exists()
