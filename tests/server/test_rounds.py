"""The loop that keeps rounds going, with Flower's part played by lists of what its runs do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from server import rounds
from server.app import alone_in, stop_when_asked
from server.deployment import Deployment, initialise
from server.rounds import Experiment, Loop, ServerAway, progress, stop_rounds
from shared.config import Config, to_toml
from shared.errors import DeploymentError, RunError
from shared.protocol import Manifest


class Flower:
    """Runs one after another: each entry of `plan` is what a run releases, and whether it then completes."""

    def __init__(self, deployment: Deployment, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.plan: list[tuple[int, bool]] = []
        self.started = 0
        self.followed: list[str] = []
        self.going = ""
        self.answers: Callable[[], bool] = lambda: True
        self.during: Callable[[], None] = lambda: None
        self._out = out
        monkeypatch.setattr(rounds, "PAUSE", 0.0)
        monkeypatch.setattr(rounds, "run_rounds", self._run)
        monkeypatch.setattr(rounds, "unfinished_run", lambda where: self.going)
        monkeypatch.setattr(rounds, "wait_for_run", self._follow)
        monkeypatch.setattr(rounds, "end_server_apps", lambda where: None)
        monkeypatch.setattr(rounds, "stop_run", lambda where, run: setattr(self, "stopped", run))
        monkeypatch.setattr(Deployment, "answers", lambda where: self.answers())

    def _run(self, folder: Path, *, on_start: Callable[[int], None], **options: object) -> int:
        self.started += 1
        on_start(self.started)
        released, completes = self.plan.pop(0)
        self.during()
        with (self._out / "metrics.jsonl").open("a") as file:
            for number in range(released):
                file.write(json.dumps({"phase": "train", "round": number + 1, "released": True, "accepted": 2}) + "\n")
        if not completes:
            raise DeploymentError("run ended as finished:failed")
        return self.started

    def _follow(self, deployment: Deployment, run: str, **options: object) -> None:
        self.followed.append(run)
        self.going = ""


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return initialise(tmp_path / "d")


@pytest.fixture
def experiment(deployment: Deployment) -> Experiment:
    out = deployment.folder / "run"
    out.mkdir()
    (out / "config.toml").write_text(to_toml(Config()))
    return Experiment(str(out), "running")


@pytest.fixture
def flower(deployment: Deployment, experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> Flower:
    return Flower(deployment, Path(experiment.folder), monkeypatch)


def test_runs_follow_one_another_until_one_completes(
    deployment: Deployment, experiment: Experiment, flower: Flower
) -> None:
    flower.plan = [(1, False), (0, False), (0, False), (2, False), (0, True)]
    lines: list[str] = []
    ended = Loop(on_line=lines.append).run(deployment, experiment)
    assert (ended.state, ended.run, flower.started) == ("finished", "5", 5)
    assert Experiment.of(deployment) == ended
    assert sum("going on at the last committed round" in line for line in lines) == 4


def test_runs_that_get_nowhere_are_given_up(deployment: Deployment, experiment: Experiment, flower: Flower) -> None:
    flower.plan = [(1, False), *[(0, False)] * 5]
    with pytest.raises(DeploymentError, match="finished:failed"):
        Loop().run(deployment, experiment)
    assert flower.started == 1 + rounds.ATTEMPTS
    known = Experiment.of(deployment)
    assert known is not None
    assert known.state == "running"  # and can be resumed
    flower.plan = [(0, True)]
    assert Loop().run(deployment, known).state == "finished"


def test_a_run_that_goes_on_is_followed_and_not_started_again(
    deployment: Deployment, experiment: Experiment, flower: Flower
) -> None:
    flower.going = "77"
    ended = Loop().run(deployment, replace(experiment, run="77"))
    assert (ended.state, ended.run) == ("finished", "77")
    assert (flower.followed, flower.started) == (["77"], 0)


def test_after_a_run_of_somebody_else_the_own_one_is_started(
    deployment: Deployment, experiment: Experiment, flower: Flower
) -> None:
    flower.going, flower.plan = "88", [(1, True)]
    ended = Loop().run(deployment, replace(experiment, run="77"))
    assert (flower.followed, flower.started, ended.state, ended.run) == (["88"], 1, "finished", "1")


def test_a_server_that_comes_back_is_waited_for_and_one_that_stays_away_is_not(
    deployment: Deployment, experiment: Experiment, flower: Flower
) -> None:
    asked = iter([False, False, False, True])
    flower.answers, flower.plan = lambda: next(asked, True), [(0, True)]
    assert Loop().run(deployment, experiment).state == "finished"
    flower.answers = lambda: False
    with pytest.raises(ServerAway, match="homerank-server rounds resume"):
        Loop(patience=0.0).run(deployment, experiment)


def test_stopped_rounds_end_quietly_and_go_on_when_resumed(
    deployment: Deployment, experiment: Experiment, flower: Flower
) -> None:
    out = Path(experiment.folder)
    flower.plan, flower.during = [(1, False)], lambda: setattr(flower, "asked", stop_rounds(deployment, now=False))
    ended = Loop().run(deployment, experiment.keep(deployment))
    assert (ended.state, flower.started) == ("stopped", 1)
    assert (out / rounds.STOP).exists()
    flower.plan, flower.during = [(1, True)], lambda: None
    assert Loop().run(deployment, ended).state == "finished"
    assert not (out / rounds.STOP).exists()
    assert stop_rounds(deployment, now=True).state == "finished"  # nothing left to stop


def test_stopping_now_ends_the_run(deployment: Deployment, experiment: Experiment, flower: Flower) -> None:
    experiment.keep(deployment)
    flower.going = "77"
    stop_rounds(deployment, now=True)
    assert getattr(flower, "stopped", None) == 77


def test_stopping_while_the_server_is_awaited_ends_the_wait(
    deployment: Deployment, experiment: Experiment, flower: Flower
) -> None:
    flower.answers = lambda: bool(stop_rounds(deployment, now=False)) and False
    assert Loop().run(deployment, experiment).state == "stopped"
    assert flower.started == 0


def test_two_loops_do_not_work_on_one_deployment(
    deployment: Deployment, experiment: Experiment, flower: Flower
) -> None:
    flower.plan = [(0, True)]
    said: list[str] = []

    def second() -> None:
        try:
            Loop().run(deployment, experiment)
        except DeploymentError as error:
            said.append(str(error))

    flower.during = second
    assert Loop().run(deployment, experiment).state == "finished"
    assert "are in progress" in said[0]


def test_progress_is_read_from_the_folder(deployment: Deployment, experiment: Experiment, flower: Flower) -> None:
    flower.plan = [(2, True)]
    facts = progress(Loop().run(deployment, experiment))
    assert (facts["state"], facts["round"], facts["rounds"]) == ("finished", 2, Config().federation.rounds)
    assert facts["last"] == {"phase": "train", "accepted": 2}
    with pytest.raises(DeploymentError, match="no settings of the experiment"):
        progress(Experiment(str(deployment.folder / "gone"), "running"))


def test_a_damaged_note_of_the_rounds_is_said(deployment: Deployment) -> None:
    assert Experiment.of(deployment) is None
    for text in ("{", "[]", '{"folder": "x"}', '{"folder": "x", "state": "running", "other": 1}'):
        (deployment.folder / "rounds.json").write_text(text)
        with pytest.raises(DeploymentError, match="found no experiment"):
            Experiment.of(deployment)


# --- the ServerApp's side ------------------------------------------------------------------------------------


def test_a_run_stops_only_when_a_round_is_on_disk(tmp_path: Path) -> None:
    look = stop_when_asked(tmp_path)
    manifest = Manifest.__new__(Manifest)
    object.__setattr__(manifest, "phase", "train")
    object.__setattr__(manifest, "round", 3)
    look("recorded", manifest)
    (tmp_path / rounds.STOP).touch()
    for step in ("asked", "charged", "released", "saved"):
        look(step, manifest)
    with pytest.raises(RunError, match="stopped as asked, after train round 3"):
        look("recorded", manifest)


def test_one_experiment_has_one_server_app(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(RunError, match="another ServerApp"), alone_in(tmp_path, patience=0.0):
        pass
    with alone_in(tmp_path, patience=0.0):
        pass
