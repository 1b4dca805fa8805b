"""A run that goes on from an earlier one's adapter: its start, its anchor, its restart and its statement."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from server.ledger import ServerLedger
from server.runs import prepare_run
from shared.adapter import AdapterState
from shared.artifacts import load_adapter, load_arrays
from shared.errors import AdapterError
from shared.protocol import Manifest
from shared.runtime import runtime_for
from shared.transfer import carry_over
from simulations.runfolder import RunFolder, prepare
from tests.server.small_server import Network, result, server
from tests.simulations.tiny_runs import tiny_config, write_data

USERS = 6
SMALL = (
    *("federation.cohort=4", "federation.rounds=3", "federation.quorum=0.5", "evaluation.every=0"),
    *("model.directions=backbone", "model.identity=6"),
)
PRIVATE = ("privacy.mode=user", "privacy.epsilon=50.0")

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("films") / "films", users=USERS, items=48)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another catalogue: fewer items, other texts."""
    folder = write_data(tmp_path_factory.mktemp("tools") / "tools", users=USERS, items=44)
    items = (folder / "items.csv").read_text().replace("Thing", "Tool").replace("a thing of", "some tool in")
    (folder / "items.csv").write_text(items)
    return folder


@pytest.fixture(scope="module")
def earlier(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The adapter of a finished run on films; the trained one, whatever the devices said about it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMERANK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield finished(tmp_path_factory.mktemp("earlier") / "films", films)


def finished(folder: Path, data: Path, *settings: str, ledger: ServerLedger | None = None) -> Path:
    run = prepare(tiny_config(data, *SMALL, *settings), folder)
    strategy = server(run, **({"ledger": ledger} if ledger else {}))
    strategy.run(Network(run))
    strategy.state.outcome["shipped"] = "adapter"
    strategy._ship()
    return folder / "adapter"


def begun(folder: Path, data: Path, earlier: Path, *settings: str) -> RunFolder:
    return prepare(tiny_config(data, *SMALL, f'federation.start_from="{earlier}"', *settings), folder)


def parameters(run: RunFolder, state: AdapterState) -> AdapterState:
    """Without popularity."""
    return state.select(list(runtime_for(run.config, run.catalogue).start))


def carried(run: RunFolder, earlier: Path) -> AdapterState:
    state, _, manifest = load_adapter(earlier)
    return carry_over(state, manifest, runtime_for(run.config, run.catalogue))


def test_without_rounds_the_result_is_the_carried_adapter_with_this_popularity(
    earlier: Path, tools: Path, tmp_path: Path
) -> None:
    run = begun(tmp_path / "run", tools, earlier, "federation.rounds=0")
    strategy = server(run)
    strategy.run(Network(run))
    expected = carried(run, earlier)
    assert (expected == strategy.runtime.start) is False
    assert parameters(run, result(run)) == expected
    assert result(run).arrays["popularity"].shape == (44,)
    shipped, _, facts = load_adapter(run.path / "adapter")
    assert shipped == (expected if facts["outcome"]["shipped"] == "adapter" else strategy.runtime.start)


def test_training_goes_on_from_there_and_the_anchor_keeps_it_near(earlier: Path, tools: Path, tmp_path: Path) -> None:
    far = {}
    for anchor in (0.0, 0.5):
        run = begun(tmp_path / f"{anchor}", tools, earlier, f"federation.anchor={anchor}")
        server(run).run(Network(run))
        far[anchor] = (parameters(run, result(run)) - carried(run, earlier)).norm()
    fresh = prepare(tiny_config(tools, *SMALL), tmp_path / "fresh")
    server(fresh).run(Network(fresh))
    assert 0 < far[0.5] < 0.7 * far[0.0]
    assert far[0.0] < (parameters(fresh, result(fresh)) - carried(run, earlier)).norm()


@pytest.mark.parametrize("settings", [("federation.anchor=0.3",), PRIVATE], ids=["anchored", "private"])
def test_a_restart_needs_nothing_of_the_earlier_run(
    settings: tuple[str, ...], earlier: Path, tools: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(earlier, gone)
    whole, broken = (begun(tmp_path / name, tools, gone, *settings) for name in ("whole", "broken"))
    server(whole).run(Network(whole))
    shutil.rmtree(gone)
    for dies_at in (("asked", "popularity", 0), ("saved", "train", 1), ("asked", "train", 3), ("asked", "validate", 3)):

        def die(step: str, manifest: Manifest, at: tuple[str, str, int] = dies_at) -> None:
            if (step, manifest.phase, manifest.round) == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            server(broken, on_step=die).run(Network(broken))
    server(broken).run(Network(broken))
    assert result(broken) == result(whole)
    statements = [json.loads((run.path / "adapter" / "privacy.json").read_text()) for run in (whole, broken)]
    assert statements[0] == statements[1]


def test_an_adapter_that_does_not_fit_is_refused_before_anyone_is_asked(
    earlier: Path, tools: Path, tmp_path: Path
) -> None:
    run = begun(tmp_path / "run", tools, earlier, "model.output_dim=12")
    with pytest.raises(AdapterError, match=r"model.output_dim = 16; expected 12"):
        server(run)
    with pytest.raises(AdapterError, match="expected an adapter folder"):
        begun(tmp_path / "other", tools, tmp_path / "nowhere")
    assert not list((tmp_path / "other").iterdir())  # the name is still free


def test_a_deployment_keeps_it_too(earlier: Path, tools: Path, tmp_path: Path) -> None:
    prepare_run(
        tmp_path / "run",
        catalogue=tools / "items.csv",
        config=None,
        assignments=[f'federation.start_from="{earlier}"'],
    )
    kept = load_arrays(tmp_path / "run" / "start" / "projections.safetensors")
    assert kept.keys() == load_arrays(earlier / "projections.safetensors").keys()


# --- the statement -----------------------------------------------------------------------------------------


def statement(run: RunFolder) -> dict[str, object]:
    return dict(json.loads((run.path / "adapter" / "privacy.json").read_text()))


@pytest.mark.parametrize("mode", ["none", "user"])
def test_an_earlier_adapter_without_privacy_is_named_as_such(
    mode: str, earlier: Path, tools: Path, tmp_path: Path
) -> None:
    run = begun(tmp_path / "run", tools, earlier, f"privacy.mode={mode}", "federation.rounds=0")
    server(run).run(Network(run))
    found = statement(run)
    assert "which was trained without privacy: what that adapter shows of people is not covered." in found["statement"]
    assert [one["layers"] for one in found["started_from"]] == [{}]


def test_the_cost_of_an_earlier_adapter_stands_beside_this_runs(films: Path, tools: Path, tmp_path: Path) -> None:
    earlier = finished(tmp_path / "films", films, *PRIVATE)
    spent = json.loads((earlier / "privacy.json").read_text())["layers"]["user"]["epsilon_all_runs"]
    run = begun(tmp_path / "run", tools, earlier, *PRIVATE, "federation.rounds=0")
    server(run).run(Network(run))
    found = statement(run)
    words = f"which is ({spent:.2f}, 1e-05)-differentially private for adding or removing everything one person did;"
    assert f"{words} for a person who took part in both runs, the two add up." in found["statement"]
    last = begun(tmp_path / "last", films, run.path / "adapter", "federation.rounds=0")
    server(last).run(Network(last))
    assert [one["run"] for one in statement(last)["started_from"]] == [
        json.loads((folder / "homerank.json").read_text())["run"] for folder in (earlier, run.path / "adapter")
    ]


def test_an_earlier_run_of_the_same_ledger_is_not_added_twice(films: Path, tmp_path: Path) -> None:
    ledger = ServerLedger(tmp_path / "ledger.sqlite", durable=False)
    earlier = finished(tmp_path / "films", films, *PRIVATE, ledger=ledger)
    run = begun(tmp_path / "run", films, earlier, *PRIVATE, "federation.rounds=0", "seed=1")
    server(run, ledger=ledger).run(Network(run))
    found = statement(run)
    assert found["earlier_runs"] == 1
    assert found["statement"].endswith("which is one of the earlier runs of the ledger.")
    assert np.isfinite(found["layers"]["user"]["epsilon_all_runs"])
