"""A whole simulated experiment with a prior: every ranker is measured, and with what belongs to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shared.adapter import AdapterState
from shared.artifacts import load_arrays
from shared.metrics import ndcg
from shared.prior import PRIOR
from shared.runtime import runtime_for
from simulations import evaluation
from simulations.evaluation import rank_cases, validation_cases
from simulations.experiment import evaluate
from tests.simulations.tiny_runs import TINY, invoke, tiny_config, train_inline, write_data

ASKED = (
    "prior.half_lives=[1.0, 4.0]",
    "prior.widths=[24, 8]",
    "prior.output=24",
    "prior.ridge=1.0",
    "prior.folds=2",
    "model.identity=8",
    "model.input_codes=16",
)
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("privacy", [(), ("privacy.mode=event", "prior.folds=1")], ids=["open", "private"])
def test_the_prior_is_measured_beside_start_and_adapter(
    privacy: tuple[str, ...], tmp_path: Path, tiny_data: Path
) -> None:
    run, candidate = train_inline(tiny_config(tiny_data, *ASKED, *privacy), tmp_path / "run")
    result = evaluate(run, seconds={})
    assert set(result["metrics"]) == {"popularity", "zero_shot", "prior", "federated", "local_only"}
    assert set(result["intervals"]) == {
        "federated - zero_shot",
        "federated - popularity",
        "federated - prior",
        "federated - local_only",
    }
    with np.load(run.path / "per_user.npz") as saved:
        ranks = {name.removesuffix("_full"): saved[name] for name in saved.files if name.endswith("_full")}
    cases = evaluation.test_cases(run)
    runtime = runtime_for(run.config, run.catalogue)
    runtime.install(candidate)
    stages = {"zero_shot": "start", "prior": "prior", "federated": "adapter"}
    for name, stage in stages.items():
        assert ranks[name].tolist() == rank_cases(runtime, cases, seed=run.config.seed, stage=stage).full.tolist()
    assert len({tuple(ranks[name].tolist()) for name in stages}) == 3
    assert json.loads((run.path / "result.json").read_text())["outcome"]["gains"].keys() == {"prior", "adapter"}
    assert (run.path / "report.html").is_file()


@pytest.mark.parametrize("privacy", ["none", "event", "user"])
def test_the_world_is_run_with_a_prior_without_being_told(privacy: str, tmp_path: Path) -> None:
    """What `run --data world` does, in a smaller world and on a smaller backbone."""
    settings = [setting for setting in TINY if not setting.startswith("prior.")]
    settings += ["data.world_users=12", "data.world_events=8"]
    options = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "run"
    assert invoke("run", "--data", "world", "--privacy", privacy, "--out", str(out), *options) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == ["popularity", "prior", "train", "train", "train", "validate"]
    (asked,) = (row for row in rows if row["phase"] == "prior")  # everybody at once: one group
    assert (asked["asked"], asked["accepted"]) == (12, 12)
    # The tiny backbone is 32 wide, so that not all of the 64 directions are there.
    assert load_arrays(out / "candidate.safetensors")[PRIOR].shape == (32, 32)
    assert "prior" in json.loads((out / "result.json").read_text())["metrics"]
    layers = json.loads((out / "adapter" / "privacy.json").read_text()).get("layers", {})
    assert [unit for unit, layer in layers.items() if layer["noise_multipliers"]["prior"] > 0] == (
        [] if privacy == "none" else [privacy]
    )


def test_the_quality_curve_begins_with_the_prior_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept adapters hold no prior; the curve is drawn with the one of all groups."""
    data = write_data(tmp_path / "data", users=12, items=24)  # so few that half of them are among the best ten
    more = ("evaluation.local_only_users=0", "evaluation.curve_users=12")
    run, candidate = train_inline(tiny_config(data, *ASKED, *more), tmp_path / "run")
    kept = sorted((run.path / "rounds").glob("*.safetensors"))
    assert all(PRIOR not in load_arrays(path) for path in kept)
    curves = []
    monkeypatch.setattr("simulations.experiment.write_report", lambda path, *, curve, **_: curves.append(curve))
    evaluate(run, seconds={})
    (curve,) = curves
    assert [point["round"] for point in curve] == [0, 1, 2, 3]
    runtime = runtime_for(run.config, run.catalogue)
    cases = validation_cases(run, limit=run.config.evaluation.curve_users)
    runtime.install(AdapterState({**load_arrays(kept[0]), PRIOR: candidate.arrays[PRIOR]}))
    for stage in ("prior", "adapter"):
        rank = rank_cases(runtime, cases, seed=run.config.seed, stage=stage)
        assert curve[0]["ndcg@10"] == pytest.approx(float(ndcg(rank.full, 10).mean()))
    start = rank_cases(runtime, cases, seed=run.config.seed, stage="start")
    assert curve[0]["ndcg@10"] != pytest.approx(float(ndcg(start.full, 10).mean()))
