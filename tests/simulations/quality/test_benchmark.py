"""The benchmark as a whole: which rows it measures, what it writes, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.errors import ConfigError, RunError
from simulations.quality import benchmark as benchmarks
from simulations.quality.benchmark import benchmark, chosen_rows, opened, prepared
from simulations.quality.harness import Job, Measured, measure_row
from simulations.quality.rows import ROWS, Row
from simulations.runfolder import RunFolder, open_run
from tests.simulations.tiny_runs import tiny_config


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Rows are measured in this process; the jobs that were asked for."""
    asked: list[Job] = []

    def measure_here(job: Job) -> Measured:
        asked.append(job)
        return measure_row(open_run(job.run), ROWS[job.name], seed=job.seed, settings={"seed": job.seed})

    monkeypatch.setattr(benchmarks, "measure", measure_here)
    return asked


@pytest.fixture
def run(tmp_path: Path, tiny_data: Path) -> RunFolder:
    """Prepared by the benchmark."""
    return prepared(tiny_config(tiny_data), tmp_path / "out")


def test_it_writes_a_result_the_users_behind_it_and_a_page(run: RunFolder, tmp_path: Path, jobs: list[Job]) -> None:
    said: list[str] = []
    out = tmp_path / "out"
    result = benchmark(run, out, names=["markov", "popularity"], seeds=[5, 6], progress=said.append)
    assert said == ["popularity", "markov", "comparing"]  # nothing about them is random: one seed
    assert [(job.name, job.seed, job.out) for job in jobs] == [("popularity", 5, out), ("markov", 5, out)]
    assert result["reference"] == "popularity"
    assert list(result["rows"]) == ["popularity", "markov"]
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    page = (out / "quality.html").read_text()
    assert "popularity" in page
    assert "markov" in page
    with np.load(out / "per_user.npz") as arrays:
        assert arrays["user"].tolist() == list(range(12))
        np.testing.assert_array_equal(arrays["target"], run.test)
        assert arrays["markov_full"].shape == arrays["markov_sampled"].shape == (1, 12)
        assert arrays["markov_lists"].shape == (1, 12, 10)
        assert arrays["markov_cases"].tolist() == list(range(12))
        assert np.mean(arrays["popularity_full"] <= 10) == result["rows"]["popularity"]["metrics"]["hr@10"]


def test_what_depends_on_chance_is_fitted_with_each_seed(
    run: RunFolder, tmp_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lucky:
        def __init__(self, seed: int) -> None:
            self.seed = seed

        def scores(self, cases: Any) -> np.ndarray:
            return np.random.default_rng(self.seed).random((len(cases), 120)).astype(np.float32)

    monkeypatch.setitem(ROWS, "lucky", Row(lambda run, training, seed: Lucky(seed), "nobody's data", seeded=True))
    said: list[str] = []
    result = benchmark(run, tmp_path, names=["lucky"], seeds=[3, 4], progress=said.append)
    assert said == ["lucky, seed 3", "lucky, seed 4", "comparing"]
    assert result["rows"]["lucky"]["seeds"] == [3, 4]
    with np.load(tmp_path / "per_user.npz") as arrays:
        assert arrays["lucky_full"].shape == (2, 12)
        assert arrays["lucky_full"][0].tolist() != arrays["lucky_full"][1].tolist()


def test_rows_are_chosen_by_name_and_finished_runs_always_belong(tmp_path: Path) -> None:
    assert list(chosen_rows([], [])) == list(ROWS)
    assert list(chosen_rows(["markov"], [tmp_path])) == ["markov", "federated"]
    with pytest.raises(ConfigError, match=r"Did you mean 'item-knn'\?"):
        chosen_rows(["item-nn"], [])


def test_the_reference_must_be_measured(run: RunFolder, tmp_path: Path, jobs: list[Job]) -> None:
    with pytest.raises(ConfigError, match="expected one of the measured rows: popularity"):
        benchmark(run, tmp_path, names=["popularity"], reference="markov")
    assert not jobs


def test_a_benchmark_is_continued_with_the_same_settings_only(run: RunFolder, tmp_path: Path, tiny_data: Path) -> None:
    again = prepared(tiny_config(tiny_data), tmp_path / "out")
    assert again.path == run.path
    with pytest.raises(RunError, match="choose another --out"):
        prepared(tiny_config(tiny_data, "seed=1"), tmp_path / "out")


def test_new_items_get_a_folder_of_their_own(run: RunFolder, tmp_path: Path, tiny_data: Path) -> None:
    config = tiny_config(tiny_data)
    new = prepared(config, tmp_path / "out", new_items=0.5)
    assert new.path.parent == run.path.parent
    assert new.facts["withheld_items"] == 60
    assert (new.test >= 0).sum() < 12
    assert prepared(config, tmp_path / "out", new_items=0.5).path == new.path
    assert prepared(config, tmp_path / "out", new_items=0.25).facts["withheld_items"] == 30


def test_a_finished_run_is_asked_its_own_questions(run: RunFolder) -> None:
    assert opened(run.path, other_settings=False).path == run.path
    with pytest.raises(ConfigError, match="Give --data as well"):
        opened(run.path, other_settings=True)
