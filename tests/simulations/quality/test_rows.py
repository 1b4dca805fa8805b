"""The rows that are our own model: what they rank by, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from server.popularity import log_popularity
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_adapter, load_arrays, save_arrays
from shared.config import override
from shared.errors import ConfigError, RunError
from shared.runtime import runtime_for
from simulations import evaluation
from simulations.evaluation import rank_cases, ranks_of, validation_cases
from simulations.quality.base import Ranker, training_of
from simulations.quality.classical import popularity_counts
from simulations.quality.harness import Job, settings_of
from simulations.quality.rows import ROWS, TAILS, TrainedAlone, fit_local_only, fit_zero_shot, rows_with
from simulations.quality.slices import withhold
from simulations.runfolder import RunFolder, prepare
from tests.simulations.tiny_runs import tiny_config, train_inline, write_data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> RunFolder:
    """A trained run. Tests only read it."""
    trained, _ = train_inline(tiny_config(tiny_data), tmp_path_factory.mktemp("rows") / "run")
    return trained


def ranks(ranker: Ranker, run: RunFolder) -> list[int]:
    """Full ranks of the test items."""
    cases = evaluation.test_cases(run)
    return ranks_of(cases, ranker.scores(cases), seed=0).full.tolist()


def test_zero_shot_is_content_and_exact_popularity(run: RunFolder) -> None:
    training = training_of(run, validation=())
    ranker = fit_zero_shot(run, training, 0)
    runtime = runtime_for(run.config, run.catalogue)
    popularity = log_popularity(popularity_counts(training).astype(np.float64), noise_std=0.0)
    found = ranks(ranker, run)
    runtime.install(AdapterState({**runtime.start.arrays, POPULARITY: popularity}))
    expected = rank_cases(runtime, evaluation.test_cases(run), seed=0, stage="start")
    assert found == expected.full.tolist()


def test_a_carried_adapter_ranks_with_this_catalogues_exact_popularity(run: RunFolder, tmp_path: Path) -> None:
    settings = tiny_config(Path(run.config.data.source), f'federation.start_from="{run.path / "adapter"}"')
    asked = prepare(settings, tmp_path / "asked")
    training = training_of(asked, validation=())
    ranker = ROWS["carried"].fit(asked, training, 0)
    found = ranks(ranker, asked)
    adapter, _, _ = load_adapter(run.path / "adapter")
    popularity = log_popularity(popularity_counts(training).astype(np.float64), noise_std=0.0)
    runtime = runtime_for(asked.config, asked.catalogue)
    runtime.install(AdapterState({**adapter.arrays, POPULARITY: popularity}))
    assert found == rank_cases(runtime, evaluation.test_cases(asked), seed=0).full.tolist()
    with pytest.raises(ConfigError, match=r"found federation.start_from = ''.*RUN/adapter"):
        ROWS["carried"].fit(run, training, 0)


def test_a_benchmark_knows_which_adapter_it_carried(run: RunFolder, tmp_path: Path) -> None:
    """Also where items are withheld; and another adapter in the same place is another question."""
    settings = tiny_config(Path(run.config.data.source), f'federation.start_from="{run.path / "adapter"}"')
    asked = prepare(settings, tmp_path / "asked")
    withheld = withhold(asked, tmp_path / "withheld", items=asked.test[:4])
    assert (
        ROWS["carried"]
        .fit(withheld, training_of(withheld, validation=()), 0)
        .scores(evaluation.test_cases(withheld))
        .shape[1]
        == 120
    )
    job = Job(asked.path, "carried", (), 0, tmp_path)
    before = settings_of(job)["adapter"]
    path = asked.path / "start" / "projections.safetensors"
    save_arrays(path, {name: array + 1 for name, array in load_arrays(path).items()})
    assert None is not before != settings_of(job)["adapter"]
    assert settings_of(Job(run.path, "popularity", (), 0, tmp_path))["adapter"] is None


def test_rows_are_left_out_where_the_run_has_not_what_they_need(run: RunFolder) -> None:
    assert [name for name, row in ROWS.items() if not row.fits(run.config)] == ["carried", "prior"]
    more = ("prior.half_lives=[2.0]", "federation.start_from=x")
    assert all(row.fits(override(run.config, *more)) for row in ROWS.values())


def test_a_finished_run_ranks_with_what_it_shipped_whatever_was_installed_since(run: RunFolder) -> None:
    rows = rows_with([run.path])
    variants = {"federated-personal", *(f"federated-tail-{tail:g}" for tail in TAILS)}
    assert set(rows) == {*ROWS, "federated", *variants}
    training = training_of(run, validation=())
    ranker = rows["federated"].fit(run, training, 0)
    fit_zero_shot(run, training, 0).scores(evaluation.test_cases(run)[:1])  # shares the runtime
    found = ranks(ranker, run)
    adapter, popularity, _ = load_adapter(run.path / "adapter")
    runtime = runtime_for(run.config, run.catalogue)
    runtime.install(AdapterState({**adapter.arrays, POPULARITY: popularity}))
    assert found == rank_cases(runtime, evaluation.test_cases(run), seed=0).full.tolist()


def test_alone_a_device_learns_from_its_own_events_only(run: RunFolder) -> None:
    training = training_of(run, validation=validation_cases(run, limit=3))
    ranker = fit_local_only(run, training, 0)
    assert isinstance(ranker, TrainedAlone)
    assert ranker.alone.noise == 0.0
    assert ranker.alone.participations == 1  # 3 rounds of 4 among 12 devices
    cases = evaluation.test_cases(run)[:3]
    together = ranker.scores(cases)
    np.testing.assert_array_equal(together[1:2], ranker.scores(cases[1:2]))
    untrained = fit_zero_shot(run, training, 0).scores(cases)
    assert not np.allclose(together, untrained)


def test_a_run_on_other_data_or_another_split_is_refused(run: RunFolder, tmp_path: Path) -> None:
    training = training_of(run, validation=())
    other = prepare(tiny_config(write_data(tmp_path / "data", users=13)), tmp_path / "other")
    with pytest.raises(RunError, match="other data or another split"):
        rows_with([other.path])["federated"].fit(run, training, 0)
    asked = replace(run, test=np.roll(run.test, 1))
    with pytest.raises(RunError, match="leave --data out"):
        rows_with([run.path])["federated"].fit(asked, training, 0)


def test_several_runs_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    rows = rows_with([tmp_path / "a", tmp_path / "b"])
    assert [name for name, row in rows.items() if row.finished] == ["federated-a", "federated-b"]
    with pytest.raises(ConfigError, match="expected different names"):
        rows_with([tmp_path / "x" / "a", tmp_path / "y" / "a"])


def test_names_of_rows_are_names_of_folders() -> None:
    assert all(name == name.lower() and name.replace("-", "").isalnum() for name in ROWS)


def test_variants_of_a_finished_run_rank_with_their_control(run: RunFolder) -> None:
    rows, training, cases = rows_with([run.path]), training_of(run, validation=()), evaluation.test_cases(run)
    plain = rows["federated"].fit(run, training, 0).scores(cases)
    popularity = rows["federated"].fit(run, training, 0).runtime.table.rows[:, -1].numpy()  # type: ignore[attr-defined]
    for tail in TAILS:
        found = rows[f"federated-tail-{tail:g}"].fit(run, training, 0).scores(cases)
        assert found == pytest.approx(plain - tail * popularity, abs=1e-4)
    own = rows["federated-personal"].fit(run, training, 0).scores(cases)
    assert own.shape == plain.shape
    assert np.abs(own - plain).max() > 1e-3
