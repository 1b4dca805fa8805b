"""That federated training helps, on the real backbone: in a world whose truth is known, and on real data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import pytest

from shared.config import Config, load_config
from simulations.session import build_config, experiments
from tests.simulations.tiny_runs import invoke


def finish(capsys: pytest.CaptureFixture[str], out: Path, *options: str) -> dict[str, Any]:
    """Run to the end; the result object."""
    capsys.readouterr()
    assert invoke("run", "--out", str(out), "--json", *options) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def quality(result: dict[str, Any], model: str) -> float:
    return float(result["metrics"][model]["ndcg@10"])


def test_every_experiment_loads_and_says_what_it_is() -> None:
    assert {"ml-100k", "ml-1m"} <= set(experiments())
    for name, path in experiments().items():
        assert build_config(experiment=name, file=None, assignments=[], options={}) == load_config(path)
        assert load_config(path) != Config()
        assert path.read_text().startswith("# ")


@pytest.mark.slow
def test_the_world_is_learned_and_together_beats_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = finish(capsys, tmp_path / "run", "--data", "world")
    assert result["outcome"]["shipped"] == "adapter"
    assert quality(result, "federated") > quality(result, "zero_shot") + 0.08
    assert quality(result, "prior") > quality(result, "zero_shot") + 0.08
    assert quality(result, "federated") > quality(result, "local_only") + 0.05
    assert quality(result, "federated") > quality(result, "popularity") + 0.1
    for rival in ("zero_shot", "popularity"):
        assert result["intervals"][f"federated - {rival}"]["low"] > 0
    assert result["peak_rss_bytes"] < 3e9


@pytest.mark.slow
def test_movielens_100k_in_under_five_minutes(
    tmp_path: Path, real_data: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = real_data("ml-100k")
    started = process_time()  # one thread, so on an idle machine these are seconds on the clock
    result = finish(capsys, tmp_path / "run", "--experiment", "ml-100k", "--data", str(folder))
    assert process_time() - started < 300
    assert (result["data"]["users"], result["data"]["items"]) == (943, 1349)  # items with at least 5 events
    for rival in ("zero_shot", "popularity"):
        assert result["intervals"][f"federated - {rival}"]["low"] > 0
    assert result["outcome"]["shipped"] in ("prior", "adapter")  # they are too close to tell
    assert result["peak_rss_bytes"] < 3e9
