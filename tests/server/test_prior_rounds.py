"""Whole runs with a prior: who is asked for what, crashes, what is shipped, and what privacy it costs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Message

from client.ranker import score_catalogue
from client.samples import training_windows
from server import strategy as strategy_module
from server.budget import plan_budget
from server.prior import FILE, Priors, turn_of
from server.strategy import Strategy
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_adapter, load_arrays, save_arrays
from shared.errors import RunError
from shared.noise import MODES
from shared.prior import MOMENTS, PRIOR, solve_prior, window_moments
from shared.protocol import Manifest, decode_request
from shared.runtime import runtime_for
from simulations.runfolder import RunFolder
from tests.server.small_server import Network, books, charges, rows, same_end, server, start_run, whole_run

ASKED = ("prior.half_lives=[1.0, 4.0]", "prior.widths=[16, 8]", "prior.output=12", "prior.ridge=1.0")
OPEN = (*ASKED, "prior.folds=2", "privacy.mode=none", "model.identity=4", "model.input_codes=8")
PRIVATE = (*ASKED, "prior.clip=0.5")
USERS = range(1, 7)
COMMIT, SOLVE = Strategy._commit, Priors.solve

pytestmark = pytest.mark.usefixtures("own_cache")


class Watch:
    """Every question as it was sent: manifest, node, state."""

    def __init__(self) -> None:
        self.sent: list[tuple[Manifest, int, AdapterState]] = []

    def __call__(self, asked: Manifest, node: int, question: Message) -> None:
        self.sent.append((asked, node, decode_request(question.content)[1]))

    def of(self, phase: str) -> list[tuple[Manifest, int, AdapterState]]:
        return [entry for entry in self.sent if entry[0].phase == phase]


@pytest.fixture(scope="module")
def watched(six_users: Path, module_cache: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Watch]:
    """A finished run without privacy, two groups and eight rounds. Not to be changed."""
    watch = Watch()
    more = ("federation.rounds=8", "federation.cohort=2", "evaluation.every=1")
    return whole_run(tmp_path_factory.mktemp("prior"), six_users, *OPEN, *more, on_question=watch), watch


def test_the_prior_is_asked_for_once_of_each_device_between_count_and_training(
    watched: tuple[RunFolder, Watch],
) -> None:
    run, watch = watched
    order = list(dict.fromkeys((asked.phase, asked.round) for asked, _, _ in watch.sent))
    assert order[:3] == [("popularity", 0), ("prior", 0), ("prior", 1)]  # by group
    assert order[3:] == [*(("train", number) for number in range(1, 9)), ("validate", 8)]
    assert sorted(node for _, node, _ in watch.of("prior")) == list(USERS)
    assert all(asked.round == node % 2 for asked, node, _ in watch.of("prior"))
    assert all(state.size == 0 for _, _, state in watch.of("prior"))
    (row,) = rows(run, "prior")  # for all groups
    assert (row["round"], row["asked"], row["accepted"], row["groups"]) == (0, 6, 6, 2)
    assert (row["released"], row["refused"]) == (True, {})


def test_a_group_is_trained_against_the_prior_of_the_other_one(watched: tuple[RunFolder, Watch]) -> None:
    run, watch = watched
    priors = load_arrays(run.path / FILE)
    times: dict[int, int] = defaultdict(int)
    for asked, node, state in watch.of("train"):
        group = turn_of(asked.round, groups=2)[0]
        assert node % 2 == group
        assert np.array_equal(state.arrays[PRIOR], priors[f"without/{group}"])
        times[node] += 1
    assert set(times) == set(USERS)
    assert not np.allclose(priors["without/0"], priors["without/1"])
    for _, _, state in watch.of("validate"):
        assert np.array_equal(state.arrays[PRIOR], priors["whole"])
    assert len(watch.of("validate")) == 6


def test_the_priors_are_solved_from_the_devices_own_training_windows(watched: tuple[RunFolder, Watch]) -> None:
    run, _ = watched
    runtime, store = runtime_for(run.config, run.catalogue), run.store()
    layout = runtime.scorer.layout
    assert layout is not None
    assert (layout.widths, layout.output) == ((16, 8), 12)
    found: dict[int, AdapterState] = {}
    for device in range(6):
        windows = training_windows(store.history(device, run.catalogue), length=run.config.model.history)
        moments = AdapterState(window_moments(windows, runtime.table, layout))
        group = (device + 1) % 2
        found[group] = found[group] + moments if group in found else moments
    priors = load_arrays(run.path / FILE)
    expected = {"whole": found[0] + found[1], "without/0": found[1], "without/1": found[0]}
    for name, total in expected.items():
        solved = solve_prior(total.arrays[MOMENTS[0]], total.arrays[MOMENTS[1]], ridge=1.0)
        np.testing.assert_allclose(priors[name], solved, atol=1e-4, err_msg=name)


def test_a_continued_run_has_the_same_prior_and_asks_for_none(watched: tuple[RunFolder, Watch]) -> None:
    run, _ = watched
    again = server(run)
    assert again.priors is not None
    assert np.array_equal(again.priors.whole, load_arrays(run.path / FILE)["whole"])
    again.run(Network(run, on_question=refuse_all))


def refuse_all(asked: Manifest, node: int, question: Message) -> None:
    raise AssertionError(f"asked for {asked.phase} again")


class CrashError(BaseException):
    """The process dies."""


@pytest.mark.parametrize("options", [OPEN, PRIVATE], ids=["two groups", "private"])
@pytest.mark.parametrize("step", ["asked", "charged", "released", "solved", "saved", "recorded"])
def test_a_crash_at_any_step_of_the_prior_ends_like_none(
    options: tuple[str, ...], step: str, six_users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`solved`: after the file of priors was written and before the checkpoint that rests on it."""
    whole = whole_run(tmp_path / "whole", six_users, *options)
    run = start_run(tmp_path / "broken", six_users, *options)

    def die(reached: str, manifest: Manifest) -> None:
        if (reached, manifest.phase) == (step, "prior"):
            raise CrashError

    with monkeypatch.context() as patch:
        if step == "solved":
            patch.setattr(Strategy, "_commit", dying_at_the_prior)
        with pytest.raises(CrashError):
            server(run, on_step=die).run(Network(run))
    assert bool(server(run).state.priors) == (step in ("saved", "recorded"))
    server(run).run(Network(run))
    assert same_end(run, whole)
    assert (run.path / FILE).read_bytes() == (whole.path / FILE).read_bytes()
    assert [row["phase"] for row in run.rows()] == [row["phase"] for row in whole.rows()]
    assert load_adapter(run.path / "adapter")[0] == load_adapter(whole.path / "adapter")[0]


def dying_at_the_prior(self: Strategy, manifest: Manifest, *arguments: Any, **facts: Any) -> None:
    if manifest.phase == "prior":
        raise CrashError
    COMMIT(self, manifest, *arguments, **facts)


@pytest.mark.parametrize("how", ["missing", "another"])
def test_a_run_does_not_go_on_with_another_prior(how: str, six_users: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path / "run", six_users, *OPEN)

    def die(reached: str, manifest: Manifest) -> None:
        if (reached, manifest.phase, manifest.round) == ("saved", "train", 1):
            raise CrashError

    with pytest.raises(CrashError):
        server(run, on_step=die).run(Network(run))
    priors = load_arrays(run.path / FILE)
    if how == "missing":
        (run.path / FILE).unlink()
    else:
        save_arrays(run.path / FILE, {name: array * 1.001 for name, array in priors.items()})
    with pytest.raises(RunError, match="found no usable prior"):
        server(run)


def silent(asked: Manifest, node: int, replies: list[Message]) -> list[Message]:
    """Only three devices tell their moments."""
    return [] if asked.phase == "prior" and node not in (1, 2, 4) else replies


def test_a_prior_below_the_quorum_of_a_group_ends_the_run_and_can_be_asked_for_again(
    six_users: Path, tmp_path: Path
) -> None:
    run = start_run(tmp_path / "run", six_users, *OPEN)
    with pytest.raises(RunError, match="the prior got 1 of 3 replies: 2 late"):
        server(run).run(Network(run, on_replies=silent))
    assert server(run).state.priors == ""
    assert not (run.path / FILE).exists()
    server(run).run(Network(run))
    assert rows(run, "prior")[0]["accepted"] == 6


def test_a_quorum_of_moments_is_enough(six_users: Path, tmp_path: Path) -> None:
    run = whole_run(tmp_path / "run", six_users, *PRIVATE, on_replies=silent)
    (row,) = rows(run, "prior")
    assert (row["asked"], row["accepted"], row["refused"]) == (6, 3, {"late": 3})


# --- what is shipped ---------------------------------------------------------------------------------------


def claiming(*gains: float) -> Callable[[Manifest, int, list[Message]], list[Message]]:
    """Every device claims the same NDCG gains of prior and adapter over the start."""

    def change(asked: Manifest, node: int, replies: list[Message]) -> list[Message]:
        if asked.phase == "validate":
            replies[0].content["arrays"]["packed"] = Array(np.array(gains, dtype=np.float32) / 2)
        return replies

    return change


@pytest.mark.parametrize(
    ("gains", "shipped"),
    [
        ((-0.1, -0.2), "start"),
        ((0.0, 0.0), "start"),
        ((0.2, 0.1), "prior"),
        ((0.2, 0.2), "prior"),
        ((0.1, 0.2), "adapter"),
        ((-0.1, 0.2), "adapter"),
    ],
    ids=str,
)
def test_the_best_stage_is_shipped_and_a_tie_goes_to_the_simpler_one(
    gains: tuple[float, float], shipped: str, six_users: Path, tmp_path: Path
) -> None:
    weights = ("prior.gamma=0.7", "prior.beta=0.2", "model.gamma=3.0", "model.beta=0.4")
    run = whole_run(tmp_path / "run", six_users, *OPEN, *weights, on_replies=claiming(*gains))
    adapter, popularity, facts = load_adapter(run.path / "adapter")
    assert facts["outcome"]["shipped"] == shipped
    assert facts["outcome"]["gains"] == pytest.approx(dict(zip(("prior", "adapter"), gains, strict=True)), abs=1e-6)
    (row,) = rows(run, "validate")
    assert row["reason"] == facts["outcome"]["reason"]
    runtime, priors = runtime_for(run.config, run.catalogue), load_arrays(run.path / FILE)
    candidate = AdapterState(load_arrays(run.path / "candidate.safetensors"))
    arrays = dict(adapter.arrays)
    matrix = arrays.pop(PRIOR, None)
    assert (matrix is None) == (shipped == "start")
    assert matrix is None or np.array_equal(matrix, priors["whole"])
    assert (AdapterState(arrays) == runtime.start) == (shipped != "adapter")
    # What ranks from now on is what was compared: a stage of the candidate, whatever else is in it.
    history = [run.store().history(device, run.catalogue) for device in range(6)]
    runtime.install(candidate)
    compared = {stage: score_catalogue(runtime, history, stage=stage) for stage in ("start", "prior", "adapter")}
    runtime.install(AdapterState({**adapter.arrays, POPULARITY: popularity}))
    ranking = score_catalogue(runtime, history)
    np.testing.assert_allclose(ranking, compared[shipped], atol=1e-5)
    for stage in compared:
        assert np.allclose(ranking, compared[stage], atol=1e-3) == (stage == shipped)


def test_a_prior_without_training_can_be_shipped(six_users: Path, tmp_path: Path) -> None:
    watch = Watch()
    run = whole_run(
        tmp_path / "run",
        six_users,
        *OPEN,
        "federation.rounds=0",
        on_question=watch,
        on_replies=claiming(0.1, 0.1),
    )
    assert [row["phase"] for row in run.rows()] == ["popularity", "prior", "validate"]
    assert {asked.round for asked, _, _ in watch.of("prior")} == {0}
    adapter, _, facts = load_adapter(run.path / "adapter")
    assert facts["outcome"]["shipped"] == "prior"
    assert np.array_equal(adapter.arrays[PRIOR], load_arrays(run.path / FILE)["whole"])


def test_a_delivery_carries_the_prior(six_users: Path, tmp_path: Path) -> None:
    watch = Watch()
    run = start_run(tmp_path / "run", six_users, *OPEN)
    server(run, deployment=True).run(Network(run, on_question=watch, on_replies=claiming(0.2, 0.1)))
    delivered = watch.of("install")
    assert len(delivered) == 6
    for _, _, state in delivered:
        assert np.array_equal(state.arrays[PRIOR], load_arrays(run.path / FILE)["whole"])


# --- privacy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "trust"), [(mode, trust) for mode in ("event", "user", "both") for trust in ("aggregate", "local")]
)
def test_moments_are_charged_as_planned_and_named_in_the_statement(
    mode: str, trust: str, six_users: Path, tmp_path: Path
) -> None:
    options = (*PRIVATE, f"privacy.mode={mode}", f"privacy.trust={trust}")
    run = whole_run(tmp_path / "run", six_users, *options)
    plan = plan_budget(run.config, 6)
    assert plan is not None
    assert charges(run) == [("popularity", 0), ("prior", 0), ("train", 1), ("train", 2), ("train", 3), ("validate", 3)]
    _, devices = books(run)
    assert isinstance(devices, list)
    facts = json.loads((run.path / "adapter" / "privacy.json").read_text())
    for unit in MODES[mode]:
        planned = getattr(plan, unit)
        for releases in devices:
            (moments,) = [r for r in releases if (r.phase, r.unit) == ("prior", unit)]
            assert moments.noise_multiplier >= planned.prior * (1 - 1e-9)
            if mode != "both":
                assert moments.noise_multiplier == pytest.approx(planned.prior)
        layer = facts["layers"][unit]
        assert layer["epsilon"] <= 8.0 * (1 + 1e-9)
        assert layer["noise_multipliers"]["prior"] >= planned.prior * (1 - 1e-9)
        assert set(layer["noise_multipliers"]) == {"popularity", "prior", "train", "validate"}
    assert "(a popularity count, the moments of the prior, at most 3 training rounds," in facts["statement"]


@pytest.mark.parametrize(
    ("mode", "trust", "expected"),
    [("event", "aggregate", (6 / 3) ** 0.5), ("event", "local", 6**0.5), ("user", "aggregate", 1.0)],
)
def test_the_noise_in_the_released_moments_is_the_planned_noise(
    mode: str, trust: str, expected: float, six_users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Devices without events send noise only: six replies, quorum three, clip 0.5."""
    run = start_run(tmp_path / "run", six_users, *PRIVATE, f"privacy.mode={mode}", f"privacy.trust={trust}")
    run.store().replace([])
    seen: list[tuple[AdapterState, float]] = []

    class Note(Priors):
        @classmethod
        def solve(cls, sums: Any, *, ridge: float, noise_stds: Any) -> Priors:
            seen.extend(zip(sums, noise_stds, strict=True))
            return Priors.solve(sums, ridge=ridge, noise_stds=noise_stds)

    monkeypatch.setattr(strategy_module, "Priors", Note)
    server(run).run(Network(run))
    plan = plan_budget(run.config, 6)
    ((total, stated),) = seen
    assert stated == pytest.approx(getattr(plan, mode).prior * 0.5 * expected)
    assert total.size == 24 * 25 // 2 + 24 * 12
    assert float(total.pack().std()) == pytest.approx(stated, rel=4 / (2 * total.size) ** 0.5)


@pytest.mark.parametrize("noisy", [False, True])
def test_a_secure_sum_of_moments_is_the_plain_one_up_to_half_a_step_a_device(
    noisy: bool, six_users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, found = 16.0, {}
    options = (*ASKED, f"prior.clip={clip}", "privacy.mode=" + ("user" if noisy else "none"))
    for secure in ("false", "true"):

        def note(cls: Any, sums: Any, *, key: str = secure, **options: Any) -> Priors:
            found[key] = sums[0].pack().astype(float)
            return SOLVE(sums, **options)

        monkeypatch.setattr(Priors, "solve", classmethod(note))
        run = whole_run(tmp_path / secure, six_users, *options, f"federation.secure_aggregation={secure}")
        assert all(row["released"] and not row["refused"] for row in run.rows())
    step = clip / 2**20
    difference = np.abs(found["true"] - found["false"])
    if noisy:  # two different draws, of which neither is small
        assert difference.max() > 1000 * step
    else:
        assert 0 < difference.max() <= 6 * step / 2 + 1e-6 * np.abs(found["false"]).max()
        assert np.linalg.norm(found["false"]) > 1
