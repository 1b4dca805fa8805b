"""Whole tiny runs under each protection: what is spent, stated, adapted, correlated, and left without noise."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Context, Message

from client.app import app as client_app
from client.app import open_virtual_ledger, virtual_device
from server import aggregation, strategy
from server.budget import whole_reply_bound
from server.checkpoint import ServerState
from server.correlated import Correlation
from server.ledger import ServerLedger
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_adapter, load_arrays
from shared.errors import RunError
from shared.noise import MODES
from shared.privacy.accounting import Release, epsilon_of, least
from shared.privacy.statement import BANNER, privacy_facts
from shared.protocol import BELOW_CLIP, Manifest
from shared.runtime import runtime_for
from simulations.engines import InlineGrid, run_inline
from simulations.runfolder import RunFolder, prepare
from tests.simulations.tiny_runs import tiny_config, train_inline, write_data

USERS = 8
WAYS: dict[str, tuple[str, ...]] = {
    "event": ("privacy.mode=event",),
    "event, local": ("privacy.mode=event", "privacy.trust=local"),
    "user": ("privacy.mode=user",),
    "user, local": ("privacy.mode=user", "privacy.trust=local"),
    "both": ("privacy.mode=both", "privacy.user_epsilon=5.0"),
    "adaptive": ("privacy.mode=user", "privacy.clip_quantile=0.5"),
    "correlated": (
        "privacy.mode=user",
        "federation.sampling=cyclic",
        "federation.aggregation=ffa",
        "privacy.noise_bands=2",
    ),
    "sampled": ("privacy.mode=user", "federation.sampling=poisson", "federation.quorum=0.01"),
}
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight users with eight events each."""
    return write_data(tmp_path_factory.mktemp("data") / "tiny", users=USERS, items=40)


def facts_of(run: RunFolder) -> dict[str, Any]:
    return json.loads((run.path / "adapter" / "privacy.json").read_text(encoding="utf-8"))


def entries_of(run: RunFolder) -> list[dict[str, Any]]:
    place = run.path / "server-ledger.sqlite"
    ledger = ServerLedger(place, durable=False, witness=place.with_suffix(".witness"))
    try:
        return ledger.entries()
    finally:
        ledger.close()


@pytest.fixture(scope="module", params=WAYS)
def finished(
    request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, RunFolder]]:
    """A finished run of each way."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOMERANK_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        run, _ = train_inline(tiny_config(data, "federation.rounds=4", *WAYS[request.param]), folder / "run")
        yield request.param, run


# --- what is spent and stated ------------------------------------------------------------------------------


def test_the_statement_can_be_made_again_from_the_ledger_file(finished: tuple[str, RunFolder]) -> None:
    _, run = finished
    _, _, manifest = load_adapter(run.path / "adapter")
    assert privacy_facts(entries_of(run), run=manifest["run"]) == facts_of(run)
    assert manifest["ledger"]["seq"] == len(entries_of(run))


def test_every_device_spends_what_is_stated_at_most_and_that_is_within_the_budget(
    finished: tuple[str, RunFolder],
) -> None:
    way, run = finished
    ledger, facts = open_virtual_ledger(run.path), facts_of(run)
    budgets = {"event": 8.0, "user": 5.0 if way == "both" else 8.0}
    assert set(facts["layers"]) == set(MODES[run.config.privacy.mode])
    for unit, layer in facts["layers"].items():
        spent = [ledger.spent(device, unit=unit, delta=1e-5) for device in range(USERS)]
        assert layer["budget"] == budgets[unit]
        assert 0 < max(spent) <= budgets[unit] * (1 + 1e-6)
        assert max(spent) == pytest.approx(layer["epsilon"], rel=1e-3)
        other = set(MODES["both"]) - set(facts["layers"])
        assert all(ledger.spent(0, unit=unit, delta=1e-5) == 0.0 for unit in other)
    ledger.close()


def test_the_server_writes_every_release_once_and_before_it_ends(finished: tuple[str, RunFolder]) -> None:
    _, run = finished
    kinds = [(entry["kind"], entry.get("phase"), entry.get("round")) for entry in entries_of(run)]
    expected = [("run", None, None), ("release", "popularity", 0)]
    expected += [("release", "train", number) for number in (1, 2, 3, 4)] + [("release", "validate", 4)]
    assert kinds == expected
    assert [row["released"] for row in run.rows()] == [True] * 6


def test_a_sampled_run_is_charged_once_to_those_who_joined(data: Path, tmp_path: Path) -> None:
    run, _ = train_inline(tiny_config(data, "federation.rounds=4", *WAYS["sampled"]), tmp_path / "run")
    ledger = open_virtual_ledger(run.path)
    trained = [[r for r in ledger.releases(device) if r.phase == "train"] for device in range(USERS)]
    ledger.close()
    assert {len(releases) for releases in trained} <= {0, 1}
    assert {(r.sample_rate, r.steps) for releases in trained for r in releases} == {(0.5, 4)}
    joined = sum(row["accepted"] for row in run.rows() if row["phase"] == "train")
    assert joined > sum(len(releases) for releases in trained)  # some took part more than once
    assert facts_of(run)["layers"]["user"]["mechanism"] == "Gaussian, Poisson-sampled cohorts"


def test_without_privacy_the_banner_is_shipped(data: Path, tmp_path: Path) -> None:
    run, _ = train_inline(tiny_config(data), tmp_path / "run")
    assert facts_of(run) == {"mode": "none", "statement": BANNER}
    assert entries_of(run) == []


def test_a_second_run_on_the_same_people_counts_the_first(data: Path, tmp_path: Path) -> None:
    """One ledger for two runs, as in a deployment."""
    ledger = ServerLedger(tmp_path / "ledger.sqlite", durable=False)
    stated = []
    for seed in (0, 1):
        run = prepare(tiny_config(data, "privacy.mode=user", f"seed={seed}"), tmp_path / f"run{seed}")
        server = strategy.Strategy(run.config, run.catalogue, folder=run.path, ledger=ledger)
        server.run(grid_of(run))
        stated.append(facts_of(run))
    first, second = (facts["layers"]["user"] for facts in stated)
    assert [facts["earlier_runs"] for facts in stated] == [0, 1]
    assert first["epsilon_all_runs"] == first["epsilon"] == second["epsilon"]
    assert second["epsilon_all_runs"] > 1.3 * first["epsilon"]
    total = f"{second['epsilon_all_runs']:.2f}"
    assert (
        f"The ledger knows 1 earlier run on these people; with them it adds up to epsilon {total}."
        in (stated[1]["statement"])
    )
    ledger.close()


def grid_of(run: RunFolder) -> InlineGrid:
    return InlineGrid(client_app, devices=run.devices, run_config={"out": str(run.path)})


def with_budget_left(data: Path, folder: Path, *, way: str, left: float, settings: tuple[str, ...] = ()) -> RunFolder:
    """A run on devices of which an earlier one took all but a share of the budget of the last unit."""
    run = prepare(tiny_config(data, *WAYS[way], *settings), folder / "run")
    unit = MODES[run.config.privacy.mode][-1]
    limit = LIMITS[way]
    z = least(lambda z: epsilon_of([Release("train", z)], delta=1e-5) <= limit * (1 - left))
    ledger = open_virtual_ledger(run.path)
    for device in range(USERS):
        ledger.charge(device, [Release("train", z, unit=unit)], key="earlier", budgets={unit: limit}, delta=1e-5)
    ledger.close()
    return run


LIMITS = {"event": 8.0, "user": 8.0, "both": 5.0}


@pytest.mark.parametrize("way", LIMITS)
def test_training_stops_at_the_devices_limit_which_is_named_and_ranking_goes_on(
    way: str, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is left is enough for the count and for no round."""
    run = with_budget_left(data, tmp_path, way=way, left=0.12)
    run_inline(run.path, devices=run.devices)
    unit = MODES[run.config.privacy.mode][-1]
    assert re.search(rf"training stops: .*epsilon {LIMITS[way]:g} per {unit}", caplog.text)
    assert [row["refused"] for row in run.rows() if row["phase"] == "train"] == [{"budget": 4}] * 3
    assert load_adapter(run.path / "adapter")[2]["outcome"]["shipped"] == "start"
    ledger = open_virtual_ledger(run.path)
    assert all(0 < ledger.spent(device, unit=unit, delta=1e-5) <= LIMITS[way] for device in range(USERS))
    ledger.close()
    runtime = runtime_for(run.config, run.catalogue)
    runtime.install(AdapterState({**runtime.start.arrays, POPULARITY: np.zeros(40, dtype=np.float32)}))
    assert len(virtual_device(str(run.path), 0).recommend(runtime, k=3)) == 3


def test_a_run_whose_budgets_are_spent_does_not_train_again(data: Path, tmp_path: Path) -> None:
    run = with_budget_left(data, tmp_path, way="user", left=0.12, settings=("federation.rounds=6",))
    run_inline(run.path, devices=run.devices)
    before, entries = run.rows(), entries_of(run)
    assert [row["round"] for row in before if row["phase"] == "train"] == [1, 2, 3]

    def fail(message: Message, context: Context) -> Message:
        raise AssertionError

    for _ in range(2):
        server = server_of(run, ServerLedger(run.path / "server-ledger.sqlite", durable=False))
        assert (server.state.round, bool(server.state.outcome)) == (3, True)
        server.run(InlineGrid(fail, devices=USERS, run_config={"out": str(run.path)}))
    assert (run.rows(), entries_of(run)) == (before, entries)


@pytest.mark.parametrize("way", LIMITS)
def test_devices_with_nothing_left_do_not_even_count(way: str, data: Path, tmp_path: Path) -> None:
    run = with_budget_left(data, tmp_path, way=way, left=1e-4)
    with pytest.raises(RunError, match="the popularity count got 0 of 8 replies: 8 budget"):
        run_inline(run.path, devices=run.devices)
    assert [entry["kind"] for entry in entries_of(run)] == ["run"]


# --- zero divergence ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["user", "both"])
def test_with_noise_off_and_clips_that_never_bind_a_private_run_is_the_open_one(
    mode: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the popularity, whose clip always binds: it is left out of both."""
    monkeypatch.setattr(aggregation.Aggregator, "noise", lambda self, size, generator: np.zeros(size))
    flat = np.zeros(40, dtype=np.float32)
    monkeypatch.setattr(strategy, "log_popularity", lambda counts, *, noise_std: flat)
    ways = {"open": (), "private": (f"privacy.mode={mode}", "privacy.user_clip=1e6", "training.clip_norm=1e6")}
    found = {}
    for name, way in ways.items():
        plain = ("federation.server_optimizer=sgd", "federation.server_learning_rate=0.05")
        _, found[name] = train_inline(tiny_config(data, *plain, *way), tmp_path / name)
    np.testing.assert_allclose(found["private"].pack(), found["open"].pack(), rtol=1e-4, atol=1e-6)


# --- the adaptive clip and correlated noise, end to end ----------------------------------------------------


@pytest.mark.parametrize(("start", "grows"), [(1e-3, True), (1e3, False)])
def test_the_clip_moves_towards_the_norms_by_a_capped_step_and_the_noise_with_it(
    start: float, grows: bool, data: Path, tmp_path: Path
) -> None:
    adapting = ("privacy.mode=user", "privacy.epsilon=1000", "privacy.clip_quantile=0.5", f"privacy.user_clip={start}")
    run, _ = train_inline(tiny_config(data, *adapting, "federation.rounds=6"), tmp_path / "run")
    bounds = [row["clip"] for row in run.rows() if row["phase"] == "train"]
    assert bounds[0] == pytest.approx(whole_reply_bound(run.config, start))
    steps = np.diff(np.log(bounds))
    assert (steps > 0).all() if grows else (steps < 0).all()
    assert np.abs(steps).max() <= 0.2 * (1 + 1e-9)
    releases = [r for e in entries_of(run) if e.get("phase") == "train" for r in e["facts"]["releases"]]
    multipliers = [release["noise_multiplier"] for release in releases]
    assert multipliers == pytest.approx([multipliers[0]] * 6)  # noise follows the clip, so the price does not change


def test_devices_that_are_missing_have_no_say_in_the_clip(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three answers are within the clip, as asked for; the other two of five devices say nothing."""
    monkeypatch.setattr(aggregation.Aggregator, "noise", lambda self, size, generator: np.zeros(size))
    adapting = ("privacy.mode=user", f"privacy.clip_quantile={2 / 3}", "federation.cohort=5", "federation.quorum=0.6")
    run = prepare(tiny_config(data, *adapting), tmp_path / "run")
    turns = itertools.count()

    def answer(message: Message, context: Context) -> Message:
        asked, reply = Manifest.from_json(str(message.content["config"]["manifest"])), client_app(message, context)
        if asked.phase == "train":
            turn = next(turns) % 5
            if turn > 2:
                raise RuntimeError
            said = asked.settings["training"]["quantile_weight"] / 2 * (1 if turn else -1)
            arrays = {name: np.full(shape, said * (name == BELOW_CLIP)) for name, shape in asked.reply.items()}
            reply.content["arrays"]["packed"] = Array(AdapterState(arrays).pack())
        return reply

    server = server_of(run, ServerLedger(":memory:"))
    server.run(InlineGrid(answer, devices=USERS, run_config={"out": str(run.path)}))
    rounds = [row for row in run.rows() if row["phase"] == "train"]
    assert [(row["accepted"], row["released"]) for row in rounds] == [(3, True)] * 3
    assert [row["clip"] for row in rounds] == pytest.approx([rounds[0]["clip"]] * 3, rel=1e-5)
    assert server.state.clip == pytest.approx(run.config.privacy.user_clip, rel=1e-5)


def test_a_fixed_clip_stays(data: Path, tmp_path: Path) -> None:
    run, _ = train_inline(tiny_config(data, "privacy.mode=user", "privacy.user_clip=0.7"), tmp_path / "run")
    assert [row["clip"] for row in run.rows() if row["phase"] == "train"] == [0.7] * 3


@pytest.mark.parametrize("bands", [2, 3])
def test_a_round_below_the_quorum_moves_the_noise_on_and_a_resumed_run_draws_the_same(
    bands: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (
        "privacy.mode=user",
        "federation.sampling=cyclic",
        "federation.aggregation=ffa",
        "federation.cohort=2",
        "federation.rounds=5",
        f"privacy.noise_bands={bands}",
    )
    drawn: list[list[float]] = []
    real = Correlation.colour

    def note(self: Correlation, white: np.ndarray) -> np.ndarray:
        drawn.append(real(self, white)[:4].tolist())
        return np.array(self.past[-1])

    monkeypatch.setattr(Correlation, "colour", note)
    whole, _ = train_inline(tiny_config(data, *settings), tmp_path / "whole")
    assert len(drawn) == 5
    kept = ServerState.load(
        whole.path / "checkpoint.safetensors", fresh=server_of(whole, ServerLedger(":memory:"), fresh=True).state
    ).noises
    assert [noise[:4].tolist() for noise in kept] == drawn[1 - bands :]

    stopping = prepare(tiny_config(data, *settings), tmp_path / "stopping")
    expected, drawn[:] = [*drawn], []
    for stop in range(1, 6):
        with pytest.raises(StopError):
            run_until(stopping, stop)
    assert drawn == expected


class StopError(BaseException):
    """The process ends."""


def server_of(run: RunFolder, ledger: ServerLedger, *, fresh: bool = False, **options: Any) -> strategy.Strategy:
    folder = run.path / "elsewhere" if fresh else run.path
    return strategy.Strategy(run.config, run.catalogue, folder=folder, ledger=ledger, **options)


def run_until(run: RunFolder, number: int) -> None:
    """Continue a run until round `number` is on disk."""

    def stop(step: str, manifest: Any) -> None:
        if (step, manifest.phase, manifest.round) == ("saved", "train", number):
            raise StopError

    ledger = ServerLedger(run.path / "server-ledger.sqlite", durable=False)
    try:
        server_of(run, ledger, on_step=stop).run(grid_of(run))
    finally:
        ledger.close()


def test_correlated_noise_cancels_in_the_sum_of_the_rounds(data: Path, tmp_path: Path) -> None:
    """Devices without events: the adapter is nothing but noise, and less of it than independent noise leaves."""
    moved = {}
    for bands in (1, 4):
        config = tiny_config(
            data,
            "privacy.mode=user",
            "federation.sampling=cyclic",
            "federation.aggregation=ffa",
            "federation.cohort=2",
            "federation.rounds=12",
            "federation.server_optimizer=sgd",
            "federation.server_learning_rate=1.0",
            "federation.learning_rate_decay=false",
            f"privacy.noise_bands={bands}",
        )
        run = prepare(config, tmp_path / f"bands{bands}")
        run.store().replace([])
        run_inline(run.path, devices=run.devices)
        server = server_of(run, ServerLedger(":memory:"), fresh=True)
        state = ServerState.load(run.path / "checkpoint.safetensors", fresh=server.state)
        candidate = load_candidate(run, names=list(server.runtime.start))
        moved[bands] = (candidate - server.runtime.start).norm()
        assert state.round == 12
    stated = math.sqrt(_prefix_variance(4, rounds=12) / _prefix_variance(1, rounds=12))
    assert stated < 0.75
    assert moved[4] / moved[1] == pytest.approx(stated, rel=0.1)


def load_candidate(run: RunFolder, *, names: list[str]) -> AdapterState:
    return AdapterState(load_arrays(run.path / "candidate.safetensors")).select(names)


def _prefix_variance(bands: int, *, rounds: int) -> float:
    """Variance of the sum of all rounds' noise, for white noise of variance 1."""
    correlation = Correlation(bands)
    response = np.stack([correlation.colour(row) for row in np.eye(rounds)])
    return float(np.sum(response.sum(axis=0) ** 2))
