"""One model in memory, and an adapter that fits it or is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.catalogue import Catalogue
from shared.config import Config, merge
from shared.errors import AdapterError, BackboneError, ProtocolError
from shared.model import read_parameters
from shared.prior import PRIOR
from shared.runtime import PUBLIC, public_settings, runtime_for, runtime_from_settings
from shared.schema import Item

SHELF = Catalogue(tuple(Item(id=f"i{n}", title=f"Thing {n}", text=f"a thing of group {n % 3}") for n in range(12)))
TINY = merge(Config(), {"model": {"backbone": "tiny-bert", "history": 4, "output_dim": 8}, "prior": {"half_lives": []}})


pytestmark = pytest.mark.usefixtures("own_cache")


def test_the_same_settings_and_catalogue_share_one_model() -> None:
    first = runtime_for(TINY, SHELF)
    assert runtime_for(TINY, SHELF) is first
    assert runtime_for(TINY, Catalogue(SHELF.items)) is first  # the same by what it says
    private = merge(TINY, {"privacy": {"mode": "event"}, "federation": {"rounds": 99}})
    assert runtime_for(private, SHELF) is first
    assert runtime_from_settings({**public_settings(TINY), "noise": {}}, SHELF) is first


@pytest.mark.parametrize("change", [{"seed": 1}, {"model": {"gamma": 1.0}}, {"lora": {"rank": 2}}])
def test_other_settings_are_another_model(change: dict[str, Any]) -> None:
    first = runtime_for(TINY, SHELF)
    other = runtime_for(merge(TINY, change), SHELF)
    assert other is not first
    assert (other.start == first.start) is False


def test_another_catalogue_is_another_item_table() -> None:
    assert runtime_for(TINY, SHELF.subset(range(11))) is not runtime_for(TINY, SHELF)
    renamed = Catalogue((Item(id="i0", title="Other", text="other"), *SHELF.items[1:]))
    assert runtime_for(TINY, renamed) is not runtime_for(TINY, SHELF)


def test_public_settings_name_no_data_no_budget_and_no_federation() -> None:
    assert set(public_settings(TINY)) == set(PUBLIC) == {"seed", "model", "prior", "lora"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"seed": 0, "model": {}},
        {"seed": 0, "model": {}, "lora": {}},
        {"seed": 0, "model": {"depth": 2}, "prior": {}, "lora": {}},
        {"seed": 0, "model": [], "prior": {}, "lora": {}},
        {"seed": "0", "model": {}, "prior": {}, "lora": {}},
        {"seed": 0, "model": {"history": 10**9}, "prior": {}, "lora": {}},
        {"seed": 0, "model": {"history": float("nan")}, "prior": {}, "lora": {}},
        {"seed": 0, "model": {}, "prior": {"half_lives": [2.0], "widths": [4, 4]}, "lora": {}},
        {"seed": 0, "model": {}, "prior": {"half_lives": [1e999], "widths": [4]}, "lora": {}},
        {"seed": 0, "model": {}, "prior": {"widths": {"a": 1}}, "lora": {}},
    ],
    ids=str,
)
def test_settings_of_another_version_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="does not know"):
        runtime_from_settings(settings, SHELF)


def test_a_backbone_that_is_not_here_is_told_apart() -> None:
    with pytest.raises(BackboneError, match="no/where"):
        runtime_from_settings({"seed": 0, "model": {"backbone": "no/where"}, "prior": {}, "lora": {}}, SHELF)


def test_what_is_installed_is_what_is_there() -> None:
    runtime = runtime_for(TINY, SHELF)
    moved = AdapterState({name: array + 1 for name, array in runtime.start.arrays.items()})
    popularity = np.arange(12, dtype=np.float32)
    runtime.install(AdapterState({**moved.arrays, POPULARITY: popularity}))
    assert AdapterState(read_parameters(runtime.scorer)) == moved
    assert runtime.table.rows[:, -1].tolist() == popularity.tolist()
    runtime.install(runtime.start)  # without popularity the released one stays
    assert AdapterState(read_parameters(runtime.scorer)) == runtime.start
    assert runtime.table.rows[:, -1].tolist() == popularity.tolist()


@pytest.mark.parametrize("what", ["missing", "extra", "shape", "popularity"])
def test_an_adapter_that_does_not_fit_changes_nothing(what: str) -> None:
    runtime = runtime_for(TINY, SHELF)
    flat = np.zeros(12, dtype=np.float32)
    runtime.install(AdapterState({**runtime.start.arrays, POPULARITY: flat}))
    arrays = {name: array + 1 for name, array in runtime.start.arrays.items()} | {POPULARITY: flat + 1}
    if what == "missing":
        arrays.pop("beta.weight")
    elif what == "extra":
        arrays["more.weight"] = flat
    elif what == "shape":
        arrays["beta.weight"] = np.ones((1, 1), dtype=np.float32)
    else:
        arrays[POPULARITY] = np.ones(11, dtype=np.float32)
    with pytest.raises(AdapterError):
        runtime.install(AdapterState(arrays))
    assert AdapterState(read_parameters(runtime.scorer)) == runtime.start
    assert runtime.table.rows[:, -1].tolist() == flat.tolist()


WITH_PRIOR = merge(TINY, {"prior": {"half_lives": [2.0], "widths": [9], "output": 5}})


def test_a_prior_stays_as_long_as_what_it_came_with() -> None:
    runtime = runtime_for(WITH_PRIOR, SHELF)
    matrix = np.arange(45, dtype=np.float32).reshape(9, 5)
    runtime.install(AdapterState({**runtime.start.arrays, PRIOR: matrix}))
    assert runtime.scorer.prior is not None
    assert runtime.scorer.prior.numpy().tolist() == matrix.tolist()
    assert PRIOR not in read_parameters(runtime.scorer)
    runtime.install(runtime.start)
    assert runtime.scorer.prior is None
    plain = runtime_for(TINY, SHELF)
    with pytest.raises(AdapterError, match="settings make it None"):
        plain.install(AdapterState({**plain.start.arrays, PRIOR: matrix}))


@pytest.mark.parametrize("what", ["prior", "parameters", "popularity"])
def test_a_prior_that_does_not_fit_or_comes_with_what_does_not_changes_nothing(what: str) -> None:
    runtime = runtime_for(WITH_PRIOR, SHELF)
    flat, matrix = np.zeros(12, dtype=np.float32), np.ones((9, 5), dtype=np.float32)
    runtime.install(AdapterState({**runtime.start.arrays, POPULARITY: flat, PRIOR: matrix}))
    arrays = {name: array + 1 for name, array in runtime.start.arrays.items()}
    arrays |= {POPULARITY: flat + 1, PRIOR: matrix + 1}
    if what == "prior":
        arrays[PRIOR] = np.ones((5, 9), dtype=np.float32)
    elif what == "parameters":
        arrays.pop("output.0.weight")
    else:
        arrays[POPULARITY] = np.ones(11, dtype=np.float32)
    with pytest.raises(AdapterError):
        runtime.install(AdapterState(arrays))
    assert AdapterState(read_parameters(runtime.scorer)) == runtime.start
    assert runtime.table.rows[:, -1].tolist() == flat.tolist()
    assert runtime.scorer.prior is not None
    assert runtime.scorer.prior.numpy().tolist() == matrix.tolist()


def test_other_priors_are_another_model() -> None:
    first = runtime_for(WITH_PRIOR, SHELF)
    assert runtime_for(merge(WITH_PRIOR, {"prior": {"floor": 0.1}}), SHELF) is not first
    assert runtime_for(merge(TINY, {"prior": {"half_lives": [2], "widths": [8]}}), SHELF).scorer.layout is not None
    assert runtime_for(TINY, SHELF).scorer.layout is None


def test_peft_gets_no_path_of_this_machine() -> None:
    values = runtime_for(TINY, SHELF).peft_config()
    assert values["base_model_name_or_path"] == "tiny-bert"
    assert values["inference_mode"] is True
    assert values["r"] == TINY.lora.rank
    assert values["peft_type"] == "LORA"
    assert values["target_modules"] == sorted(values["target_modules"])
