"""The server's loop against failing devices, crashes, harmful updates and its own privacy plan."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from client.app import app as client_app
from server import shipping
from server import strategy as strategy_module
from server.budget import plan_budget
from server.checkpoint import ServerState
from server.cohorts import sample_cohort
from server.ledger import ServerLedger
from server.strategy import Strategy
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_adapter, load_arrays
from shared.config import Config
from shared.errors import RunError
from shared.noise import MODES
from shared.privacy.ledger import Ledger
from shared.privacy.plan import NoisePlan
from shared.privacy.statement import BANNER
from shared.protocol import Manifest
from shared.runtime import _runtime, runtime_for
from simulations.engines import InlineGrid
from simulations.runfolder import RunFolder, prepare
from tests.simulations.tiny_runs import tiny_config, write_data

USERS = 6
SMALL = ("federation.cohort=4", "federation.rounds=2", "federation.quorum=0.5", "evaluation.every=0")
PRIVATE = ("privacy.mode=event", "training.clip_norm=0.5")
PRIOR = ("prior.half_lives=[1.0, 4.0]", "prior.widths=[12, 6]", "prior.output=10", "prior.ridge=1.0")
CORRELATED = ("federation.aggregation=ffa", "privacy.noise_bands=2")

#: What happens to a reply: (question, node, reply) to the reply that arrives.
Fault = Callable[[Manifest, int, Message], Message]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six users with eight events each."""
    return write_data(tmp_path_factory.mktemp("data") / "tiny", users=USERS, items=40)


pytestmark = pytest.mark.usefixtures("own_cache")


def manifest_of(message: Message) -> Manifest:
    return Manifest.from_json(str(message.content["config"]["manifest"]))


class FaultyApp:
    """The real ClientApp with a fault between it and the server."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault

    def __call__(self, message: Message, context: Context) -> Message:
        manifest = manifest_of(message)
        reply = client_app(message, context)
        return self._fault(manifest, context.node_id, reply)


def sound(asked: Manifest, node: int, reply: Message) -> Message:
    """No fault."""
    return reply


class Network(InlineGrid):
    """Loses the replies of `silent` nodes and repeats those of `doubled` ones, in training rounds."""

    silent: Callable[[int, int], bool] = staticmethod(lambda number, node: False)
    doubled: Callable[[int, int], bool] = staticmethod(lambda number, node: False)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            manifest, node = manifest_of(message), message.metadata.dst_node_id
            training = manifest.phase == "train"
            if training and self.silent(manifest.round, node):
                continue
            reply = self._deliver(message)
            yield reply
            if training and self.doubled(manifest.round, node):
                yield Message(of_ones(manifest, 1e6), reply_to=message)


def of_ones(manifest: Manifest, value: float) -> RecordDict:
    """A well-formed reply full of one value."""
    size = sum(math.prod(shape) for shape in manifest.reply.values())
    return with_array(manifest, np.full(size, value, dtype=np.float32))


def with_array(manifest: Manifest, packed: np.ndarray) -> RecordDict:
    address = {"schema": 1, "run": manifest.run, "round": manifest.round, "phase": manifest.phase}
    return RecordDict({"config": ConfigRecord(address), "arrays": ArrayRecord({"packed": Array(packed)})})


def network(run: RunFolder, fault: Fault = sound, **how: Any) -> Network:
    grid = Network(FaultyApp(fault), devices=run.devices, run_config={"out": str(run.path)})  # type: ignore[arg-type]
    for name, value in how.items():
        setattr(grid, name, value)
    return grid


def start_run(folder: Path, data: Path, *settings: str) -> RunFolder:
    return prepare(tiny_config(data, *SMALL, *settings), folder / "run")


def strategy(run: RunFolder, **options: Any) -> Strategy:
    ledger = ServerLedger(run.path / "server-ledger.sqlite", durable=False)
    return Strategy(run.config, run.catalogue, folder=run.path, ledger=ledger, **options)


def result(run: RunFolder) -> AdapterState:
    """The trained adapter with popularity, shipped or not."""
    return AdapterState(load_arrays(run.path / "candidate.safetensors"))


def rows(run: RunFolder, phase: str) -> list[dict[str, Any]]:
    return [row for row in run.rows() if row["phase"] == phase]


def first_asked(config: Config) -> int:
    """A node of the first training cohort."""
    return sample_cohort(config.federation, nodes=range(1, USERS + 1), round_number=1, seed=config.seed)[0]


# --- a device that misbehaves ------------------------------------------------------------------------------


def raising(reply: Message) -> Message:
    raise RuntimeError("ana liked i3")


def filled(value: float) -> Callable[[Message], Message]:
    def fault(reply: Message) -> Message:
        packed = reply.content["arrays"]["packed"].numpy().copy()
        packed[-1] = value
        reply.content["arrays"]["packed"] = Array(packed)
        return reply

    return fault


def longer(reply: Message) -> Message:
    reply.content["arrays"]["packed"] = Array(np.append(reply.content["arrays"]["packed"].numpy(), np.float32(0)))
    return reply


def doubles(reply: Message) -> Message:
    reply.content["arrays"]["packed"] = Array(reply.content["arrays"]["packed"].numpy().astype(np.float64))
    return reply


def two_dimensional(reply: Message) -> Message:
    reply.content["arrays"]["packed"] = Array(reply.content["arrays"]["packed"].numpy()[None, :])
    return reply


def with_metrics(reply: Message) -> Message:
    reply.content["metrics"] = MetricRecord({"num-examples": 10**9})
    return reply


def with_another_array(reply: Message) -> Message:
    reply.content["arrays"]["more"] = Array(np.zeros(1, dtype=np.float32))
    return reply


def with_a_key(reply: Message) -> Message:
    reply.content["config"]["loss"] = 0.5
    return reply


def of_another_round(reply: Message) -> Message:
    reply.content["config"]["round"] = 2
    return reply


def refusing(code: str) -> Callable[[Message], Message]:
    def fault(reply: Message) -> Message:
        reply.content = RecordDict({"config": ConfigRecord({**reply.content["config"], "refusal": code})})
        return reply

    return fault


FAULTS: dict[str, tuple[Callable[[Message], Message], str]] = {
    "an exception": (raising, "no-answer"),
    "NaN": (filled(np.nan), "not-finite"),
    "infinity": (filled(-np.inf), "not-finite"),
    "too many entries": (longer, "bad-shape"),
    "float64": (doubles, "bad-shape"),
    "a matrix": (two_dimensional, "bad-shape"),
    "a record of metrics": (with_metrics, "bad-message"),
    "a second array": (with_another_array, "bad-message"),
    "a loss": (with_a_key, "bad-message"),
    "another round's address": (of_another_round, "bad-message"),
    "no budget": (refusing("budget"), "budget"),
    "a made-up code": (refusing("ana liked i3"), "bad-message"),
}


@pytest.fixture(scope="module")
def without_the_first(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[AdapterState, dict[str, Any]]:
    """The result when the first device asked says nothing in round 1, and that round's row."""
    run = start_run(tmp_path_factory.mktemp("silent"), data)
    node = first_asked(run.config)
    strategy(run).run(network(run, silent=lambda number, other: (number, other) == (1, node)))
    return result(run), rows(run, "train")[0]


def test_a_device_that_says_nothing_is_late(without_the_first: tuple[AdapterState, dict[str, Any]]) -> None:
    _, row = without_the_first
    assert (row["asked"], row["accepted"], row["refused"], row["released"]) == (4, 3, {"late": 1}, True)


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_reply_is_refused_and_counted_and_the_round_goes_on(
    name: str, data: Path, tmp_path: Path, without_the_first: tuple[AdapterState, dict[str, Any]]
) -> None:
    spoil, code = FAULTS[name]
    run = start_run(tmp_path, data)
    node = first_asked(run.config)

    def fault(asked: Manifest, other: int, reply: Message) -> Message:
        return spoil(reply) if (asked.phase, asked.round, other) == ("train", 1, node) else reply

    strategy(run).run(network(run, fault))
    first, second = rows(run, "train")
    assert (first["accepted"], first["refused"], first["released"]) == (3, {code: 1}, True)
    assert (second["accepted"], second["refused"]) == (4, {})
    assert result(run) == without_the_first[0]
    assert "i3" not in (run.path / "metrics.jsonl").read_text()


def test_the_second_reply_to_one_message_does_not_count(data: Path, tmp_path: Path) -> None:
    runs = [start_run(tmp_path / name, data) for name in ("twice", "once")]
    node = first_asked(runs[0].config)
    strategy(runs[0]).run(network(runs[0], doubled=lambda number, other: (number, other) == (1, node)))
    strategy(runs[1]).run(network(runs[1]))
    assert rows(runs[0], "train")[0]["refused"] == {"duplicate": 1}
    assert rows(runs[0], "train")[0]["accepted"] == 4
    assert result(runs[0]) == result(runs[1])


def test_below_the_quorum_nothing_is_released_and_three_in_a_row_end_the_run(data: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path, data, "federation.rounds=5", "federation.quorum=0.8")
    silent = {"silent": lambda number, node: node in sample_cohort_of(run, number)[:1]}
    with pytest.raises(RunError, match=r"3 rounds in a row had fewer replies than the quorum.*metrics\.jsonl"):
        strategy(run).run(network(run, **silent))
    assert [row["released"] for row in rows(run, "train")] == [False] * 3
    assert [row["update_norm"] for row in rows(run, "train")] == [None] * 3
    again = strategy(run)
    assert again.state.round == 3
    assert again.state.adapter == again.runtime.start
    assert again.state.optimiser.steps == {}
    assert not (run.path / "adapter").exists()


def sample_cohort_of(run: RunFolder, number: int) -> list[int]:
    nodes = range(1, run.devices + 1)
    return sample_cohort(run.config.federation, nodes=nodes, round_number=number, seed=run.config.seed)


def test_failed_rounds_that_are_not_in_a_row_do_not_end_the_run(data: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path, data, "federation.rounds=5", "federation.quorum=1.0")
    strategy(run).run(
        network(run, silent=lambda number, node: number != 3 and node == sample_cohort_of(run, number)[0])
    )
    assert [row["released"] for row in rows(run, "train")] == [False, False, True, False, False]


def test_a_count_without_a_quorum_ends_the_run_and_nothing_is_kept(data: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path, data)

    def fault(asked: Manifest, node: int, reply: Message) -> Message:
        return raising(reply) if node > 2 else reply

    with pytest.raises(RunError, match="the popularity count got 2 of 6 replies: 4 no-answer"):
        strategy(run).run(network(run, fault))
    assert strategy(run).state.popularity is None


def test_too_few_devices_are_waited_for_and_then_reported(data: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path, data, "federation.reply_timeout=0.01")
    grid = InlineGrid(client_app, devices=USERS - 1, run_config={"out": str(run.path)})
    with pytest.raises(RunError, match="found 5 connected devices; expected at least 6"):
        strategy(run).run(grid)


# --- crash and resume --------------------------------------------------------------------------------------


class CrashError(BaseException):
    """The process dies."""


class CrashingApp:
    """Dies before and after every message that it sees for the first time."""

    def __init__(self) -> None:
        self._left: dict[tuple[str, int, int], list[str]] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        manifest = manifest_of(message)
        moments = self._left.setdefault((manifest.phase, manifest.round, context.node_id), ["before", "after"])
        moment = moments.pop(0) if moments else ""
        if moment == "before":
            raise CrashError
        reply = client_app(message, context)
        if moment == "after":
            raise CrashError
        return reply


def crash_around(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Of three calls of a function, one dies before it, one after it, one lives."""
    real, calls = getattr(owner, name), iter(range(10**6))

    def dying(*args: Any, **options: Any) -> Any:
        turn = next(calls) % 3
        if turn == 0:
            raise CrashError
        value = real(*args, **options)
        if turn == 1:
            raise CrashError
        return value

    monkeypatch.setattr(owner, name, dying)


@pytest.mark.parametrize(
    "settings",
    [
        ("federation.average_last=0.6", "training.window_sample_rate=0.5"),
        ("privacy.mode=event", "federation.server_optimizer=sgd"),
        ("privacy.mode=user", "privacy.clip_quantile=0.5"),
        ("privacy.mode=user", "federation.sampling=cyclic", "federation.cohort=2", *CORRELATED),
        ("federation.sampling=poisson", "federation.cohort=3"),
        (*PRIOR, "prior.folds=2"),
        ("privacy.mode=event", *PRIOR),
    ],
    ids=["averaged", "private", "adaptive", "correlated", "poisson", "prior", "private prior"],
)
def test_a_run_that_dies_at_every_message_and_every_save_ends_like_one_that_does_not(
    settings: tuple[str, ...], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("federation.quorum=0.01", *settings, "evaluation.every=1")
    whole, broken = (start_run(tmp_path / name, data, *settings) for name in ("whole", "broken"))
    strategy(whole).run(network(whole))
    app, deaths = CrashingApp(), 0
    crash_around(monkeypatch, ServerState, "save")
    crash_around(monkeypatch, shipping, "save_adapter")
    for _ in range(400):
        try:
            grid = InlineGrid(app, devices=USERS, run_config={"out": str(broken.path)})  # type: ignore[arg-type]
            strategy(broken).run(grid)
            break
        except CrashError:
            deaths += 1
    assert deaths > 2 * (USERS + USERS)
    names = ["checkpoint.safetensors", "candidate.safetensors", "rounds/00000.safetensors"]
    for name in names + ["prior.safetensors"] * bool(whole.config.prior.half_lives):
        assert (broken.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    for path in (whole.path / "adapter").iterdir():
        assert (broken.path / "adapter" / path.name).read_bytes() == path.read_bytes(), path.name
    assert ledgers(broken) == ledgers(whole)


def ledgers(run: RunFolder) -> list[list[Any]]:
    """Releases of every device."""
    ledger = Ledger(run.path / "ledger.sqlite", durable=False)
    return [ledger.releases(device) for device in range(run.devices)]


def test_a_finished_run_is_not_run_again(data: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path, data)
    strategy(run).run(network(run))
    before = {path: path.read_bytes() for path in run.path.rglob("*.safetensors")}

    def fail(asked: Manifest, node: int, reply: Message) -> Message:
        raise AssertionError

    strategy(run).run(network(run, fail))
    assert {path: path.read_bytes() for path in run.path.rglob("*.safetensors")} == before
    assert len(rows(run, "validate")) == 1


def test_another_configuration_does_not_continue_a_run(data: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path, data)
    strategy(run).run(network(run))
    other = tiny_config(data, *SMALL, "lora.rank=2")
    with pytest.raises(RunError, match="other names or shapes"):
        Strategy(other, run.catalogue, folder=run.path, ledger=ServerLedger(":memory:"))


# --- what is shipped ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six users; three have trained on `hit`, for the other three it is the event that is held out."""
    folder = tmp_path_factory.mktemp("hit") / "data"
    folder.mkdir()
    items = ["hit", *(f"i{number}" for number in range(40))]
    (folder / "items.csv").write_text("item,title\n" + "".join(f"{item},Thing {item}\n" for item in items))
    lines, fresh = ["user,item\n"], iter(items[1:])
    for user in range(USERS):
        history = [next(fresh) for _ in range(5)]
        history.insert(1 if user < 3 else 4, "hit")  # the last is the test item, the one before it is held out
        lines += [f"u{user},{item}\n" for item in history]
    (folder / "events.csv").write_text("".join(lines))
    return folder


def moving_beta(by: float) -> Fault:
    """Every device claims that the popularity weight should move, and nothing else."""

    def fault(asked: Manifest, node: int, reply: Message) -> Message:
        if asked.phase == "train":
            arrays = {name: np.full(shape, by * (name == "beta.weight")) for name, shape in asked.reply.items()}
            reply.content["arrays"]["packed"] = Array(AdapterState(arrays).pack())
        return reply

    return fault


PLAIN_SUM = (
    "federation.server_optimizer=sgd",
    "federation.server_learning_rate=1.0",
    "federation.learning_rate_decay=false",
    "federation.rounds=1",
    "model.gamma=0.0",
)


@pytest.mark.parametrize(
    ("beta", "move", "shipped", "gain"),
    [
        (1.0, -1000.0, "start", -0.5),  # harmful: the hit is ranked last
        (1.0, 0.0, "start", 0.0),  # no better
        (0.0, 1000.0, "adapter", 0.5),  # the start ranks nothing
    ],
    ids=["harmful", "the same", "better"],
)
def test_an_adapter_that_ranks_no_better_than_the_start_is_not_shipped(
    beta: float, move: float, shipped: str, gain: float, hit: Path, tmp_path: Path
) -> None:
    run = start_run(tmp_path, hit, *PLAIN_SUM, f"model.beta={beta}")
    server = strategy(run)
    server.run(network(run, moving_beta(move)))
    adapter, popularity, facts = load_adapter(run.path / "adapter")
    assert facts["outcome"]["shipped"] == shipped
    assert facts["outcome"]["gain"] == pytest.approx(gain, abs=1e-6)
    assert rows(run, "validate")[0]["reason"] == facts["outcome"]["reason"]
    assert popularity.argmax() == 0
    assert float(adapter.arrays["beta.weight"][0]) == (beta + move if shipped == "adapter" else beta)
    assert (adapter == server.runtime.start) == (shipped == "start")
    delivered = server._messages.delivered(server.priors)  # what real devices would be sent
    assert delivered == AdapterState({**adapter.arrays, POPULARITY: popularity})
    assert float(result(run).arrays["beta.weight"][0]) == beta + move


def test_without_enough_answers_to_the_comparison_the_start_is_shipped(hit: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path, hit, *PLAIN_SUM, "model.beta=0.0")

    def fault(asked: Manifest, node: int, reply: Message) -> Message:
        return raising(reply) if asked.phase == "validate" and node > 2 else moving_beta(1.0)(asked, node, reply)

    strategy(run).run(network(run, fault))
    adapter, _, facts = load_adapter(run.path / "adapter")
    assert adapter == strategy(run).runtime.start
    assert facts["outcome"]["shipped"] == "start"
    assert facts["outcome"]["gain"] is None
    assert "too few devices answered the comparison (4 no-answer)" in facts["outcome"]["reason"]


def test_a_gain_within_the_noise_of_the_comparison_does_not_ship(
    hit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six devices at z of the plan: the noise in the mean is 2 z sqrt(6 / 3) / 6, far above the possible gain of 1."""
    run = start_run(tmp_path, hit, *PLAIN_SUM, *PRIVATE, "model.beta=0.0", "privacy.epsilon=0.5")
    server = strategy(run)
    monkeypatch.setattr("client.trainer.gaussian", lambda count, *, std, seed: np.full(count, 3 * std))
    server.run(network(run, moving_beta(1000.0)))
    outcome = load_adapter(run.path / "adapter")[2]["outcome"]
    plan = plan_of(run).event
    assert plan is not None
    assert outcome["noise"] == pytest.approx(2 * plan.validate * math.sqrt(6 / 3) / 6)
    assert outcome["gain"] > 1.645 * outcome["noise"] > 1  # every device drew three deviations
    assert outcome["shipped"] == "start"


def test_delivery_is_offered_to_every_device_and_recorded(data: Path, tmp_path: Path) -> None:
    """Virtual devices take no deliveries; real ones do, in the end-to-end test."""
    run = start_run(tmp_path, data)
    strategy(run, deployment=True).run(network(run))
    assert [(row["asked"], row["accepted"], row["refused"]) for row in rows(run, "install")] == [
        (6, 0, {"bad-message": 6})
    ]


def test_a_delivery_that_is_repeated_repeats_no_row_of_the_run(data: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path, data)
    for _ in range(3):
        strategy(run, deployment=True).run(network(run))
    phases = [row["phase"] for row in run.rows()]
    assert phases == ["popularity", "train", "train", "validate", "install", "install", "install"]


def test_the_average_of_the_last_rounds_is_the_result(data: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path, data, "federation.rounds=4", "federation.average_last=0.5", "evaluation.every=1")
    strategy(run).run(network(run))
    kept = [AdapterState(load_arrays(run.path / "rounds" / f"{number:05d}.safetensors")) for number in (3, 4)]
    assert np.allclose(result(run).pack(), ((kept[0] + kept[1]) * 0.5).pack(), atol=1e-7)


# --- privacy -----------------------------------------------------------------------------------------------


def plan_of(run: RunFolder) -> NoisePlan:
    plan = plan_budget(run.config, run.devices)
    assert plan is not None
    return plan


WAYS = [(mode, trust) for mode in ("event", "user", "both") for trust in ("aggregate", "local")]


@pytest.mark.parametrize(("mode", "trust"), WAYS)
def test_no_device_is_charged_more_than_planned_and_the_statement_says_what_the_ledger_does(
    mode: str, trust: str, data: Path, tmp_path: Path
) -> None:
    private = ("training.clip_norm=0.5", f"privacy.mode={mode}", f"privacy.trust={trust}", "privacy.user_clip=0.7")
    run = start_run(tmp_path, data, *private, "federation.rounds=5", "federation.cohort=2")
    strategy(run).run(network(run))
    plan = plan_of(run)
    assert plan.participations == 2
    ledger = Ledger(run.path / "ledger.sqlite", durable=False)
    assert ledger.devices() == list(range(USERS))
    facts = json.loads((run.path / "adapter" / "privacy.json").read_text())
    assert set(facts["layers"]) == set(MODES[mode])
    for unit in MODES[mode]:
        planned = getattr(plan, unit)
        for device in range(USERS):
            releases = [release for release in ledger.releases(device) if release.unit == unit]
            trained = [release for release in releases if release.phase == "train"]
            assert 1 <= len(trained) <= plan.participations
            assert [release.phase for release in releases] == ["popularity", *["train"] * len(trained), "validate"]
            for release in releases:  # with two units the noise is that of the one that needs more
                asked = getattr(planned, release.phase)
                assert release.noise_multiplier >= asked * (1 - 1e-9)
                if mode != "both":
                    assert release.noise_multiplier == pytest.approx(asked)
            assert ledger.spent(device, unit=unit, delta=1e-5) <= 8.0 * (1 + 1e-6)
        most = max(ledger.spent(device, unit=unit, delta=1e-5) for device in range(USERS))
        stated = facts["layers"][unit]
        assert stated["epsilon"] == pytest.approx(most, rel=1e-6)
        assert stated["clip"] == {"event": 0.5, "user": 0.7}[unit]
        if mode != "both":
            assert most == pytest.approx(8.0, rel=1e-3)
            assert stated["noise_multipliers"] == pytest.approx(
                {phase: getattr(planned, phase) for phase in ("popularity", "train", "validate")}
            )
    assert all(row["refused"] == {} for row in run.rows())
    assert (facts["delta"], facts["trust"], facts["participation_cap"], facts["devices"]) == (1e-5, trust, 2, USERS)


#: (mode, trust): standard deviation of the sum of four replies, quorum two, in units of z C.
SUMS = {
    ("event", "aggregate"): math.sqrt(4 / 2),
    ("event", "local"): 2.0,
    ("user", "aggregate"): 1.0,
    ("user", "local"): 2.0,
}


@pytest.mark.parametrize(("mode", "trust"), SUMS)
def test_the_noise_in_the_sum_is_the_planned_noise(
    mode: str, trust: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Devices without events send noise only."""
    private = (f"privacy.mode={mode}", "training.clip_norm=0.5", "privacy.user_clip=0.5", f"privacy.trust={trust}")
    run = start_run(tmp_path, data, *private, *PLAIN_SUM, "federation.aggregation=fedit")
    run.store().replace([])
    released: list[tuple[np.ndarray, float]] = []

    def note(counts: np.ndarray, *, noise_std: float) -> np.ndarray:
        released.append((counts, noise_std))
        return np.zeros(len(counts), dtype=np.float32)

    monkeypatch.setattr(strategy_module, "log_popularity", note)
    server = strategy(run)
    server.run(network(run))
    layer = getattr(plan_of(run), mode)
    noise = (result(run).select(list(server.runtime.start)) - server.runtime.start).pack() * 4  # the sum over K = 4
    expected = layer.train * 0.5 * SUMS[mode, trust]
    assert noise.size > 1000
    assert noise.std() == pytest.approx(expected, rel=4 / math.sqrt(2 * noise.size))
    assert abs(noise.mean()) < 4 * expected / math.sqrt(noise.size)
    counts, stated = released[0]
    in_all = {"event": math.sqrt(6 / 3), "user": 1.0}[mode] if trust == "aggregate" else math.sqrt(6)
    assert stated == pytest.approx(layer.popularity * math.sqrt(8) * in_all)  # clip: sqrt of 8 events in a window
    assert counts.std() == pytest.approx(stated, rel=4 / math.sqrt(2 * len(counts)))


def test_without_privacy_the_statement_says_so_and_no_ledger_is_charged(data: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path, data)
    strategy(run).run(network(run))
    facts = json.loads((run.path / "adapter" / "privacy.json").read_text())
    assert facts == {"mode": "none", "statement": BANNER}
    assert ledgers(run) == [[]] * USERS
    assert ServerLedger(run.path / "server-ledger.sqlite", durable=False).entries() == []


# --- one model in memory -----------------------------------------------------------------------------------


def test_every_message_is_answered_with_the_servers_own_model(data: Path, tmp_path: Path) -> None:
    run = start_run(tmp_path, data)
    server = strategy(run)
    built = _runtime.cache_info().misses
    seen: set[int] = set()

    def note(asked: Manifest, node: int, reply: Message) -> Message:
        seen.add(id(runtime_for(run.config, run.catalogue)))
        return reply

    server.run(network(run, note))
    assert seen == {id(server.runtime)}
    assert _runtime.cache_info().misses == built
    assert POPULARITY not in server.state.adapter
