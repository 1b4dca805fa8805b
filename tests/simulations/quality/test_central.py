"""The same model on one machine: equal to the federation where both do the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_arrays
from shared.errors import ConfigError
from shared.prior import PRIOR
from simulations import evaluation
from simulations.evaluation import ranks_of
from simulations.quality.base import training_of
from simulations.quality.central import fit_central, fit_prior
from simulations.runfolder import RunFolder
from tests.simulations.tiny_runs import tiny_config, train_inline, write_data

WITH_PRIOR = ("prior.half_lives=[2.0]", "prior.widths=[24]", "prior.output=24", "prior.folds=2", "model.identity=8")
#: One round in which everybody takes part with everything: nothing is left to chance.
EVERYBODY = ("federation.rounds=1", "federation.cohort=12", "prior.folds=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("central") / "data")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[RunFolder, AdapterState]:
    """A finished run of one round with everybody in it. Tests only read it."""
    return train_inline(tiny_config(data, *WITH_PRIOR, *EVERYBODY), tmp_path_factory.mktemp("central") / "run")


pytestmark = pytest.mark.usefixtures("own_cache")


def test_the_prior_is_the_one_that_the_federation_solves(run: tuple[RunFolder, AdapterState]) -> None:
    folder, candidate = run
    ranker = fit_prior(folder, training_of(folder, validation=()), 0)
    assert ranker.state.arrays[PRIOR] == pytest.approx(candidate.arrays[PRIOR], rel=1e-3, abs=1e-5)
    assert ranker.state.arrays[POPULARITY] == pytest.approx(candidate.arrays[POPULARITY], abs=1e-5)
    assert ranker.stage == "prior"


def test_one_step_on_everything_is_the_federation_s_round(run: tuple[RunFolder, AdapterState]) -> None:
    folder, candidate = run
    central = fit_central(folder, training_of(folder, validation=()), 0).state
    assert set(central.arrays) == set(candidate.arrays)
    for name, array in candidate.arrays.items():
        assert central.arrays[name] == pytest.approx(array, rel=1e-3, abs=1e-5), name
    start = load_arrays(folder.path / "rounds" / "00000.safetensors")
    assert any(not np.allclose(central.arrays[name], start[name]) for name in start if name != POPULARITY)


def test_central_training_ranks_and_depends_on_its_seed(tmp_path: Path, data: Path) -> None:
    folder, _ = train_inline(tiny_config(data, *WITH_PRIOR), tmp_path / "run")
    training, cases = training_of(folder, validation=()), evaluation.test_cases(folder)
    states = [fit_central(folder, training, seed).state for seed in (0, 0, 1)]
    same = [np.array_equal(states[0].arrays["output.0.weight"], s.arrays["output.0.weight"]) for s in states]
    assert same == [True, True, False]
    scores = fit_central(folder, training, 0).scores(cases)
    assert scores.shape == (len(cases), len(folder.catalogue))
    assert ranks_of(cases, scores, seed=0).full.min() >= 1


def test_a_run_without_a_prior_has_no_prior_row(tmp_path: Path, data: Path) -> None:
    folder, _ = train_inline(tiny_config(data), tmp_path / "run")
    training = training_of(folder, validation=())
    with pytest.raises(ConfigError, match="half_lives"):
        fit_prior(folder, training, 0)
    assert PRIOR not in fit_central(folder, training, 0).state.arrays
