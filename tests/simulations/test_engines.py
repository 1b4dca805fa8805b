"""The same apps on three engines: in process, on Ray, and with `flwr run`."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import psutil
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

import client.app
from shared.artifacts import load_arrays
from shared.errors import RunError
from shared.runtime import Runtime, _runtime
from shared.terminal import flower_environment, flower_program, wait_until
from simulations.engines import InlineGrid, run_inline, run_ray
from simulations.runfolder import prepare
from tests.simulations.tiny_runs import invoke, same, tiny_config, tiny_options, train_inline, write_data

ROOT = Path(__file__).resolve().parents[2]
PRIVATE = ("privacy.mode=event", "privacy.epsilon=50")


# --- the inline engine -------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [(), ("training.window_sample_rate=0.5",), PRIVATE], ids=str)
def test_the_same_seed_gives_the_same_adapter_bit_for_bit(
    tmp_path: Path, tiny_data: Path, settings: tuple[str, ...]
) -> None:
    config = tiny_config(tiny_data, *settings)
    _, first = train_inline(config, tmp_path / "a" / "run")
    _, again = train_inline(config, tmp_path / "b" / "run")
    _, other = train_inline(tiny_config(tiny_data, *settings, "seed=1"), tmp_path / "c" / "run")
    assert same(first, again)
    assert not same(first, other)


def echo_app() -> ClientApp:
    """Answers with its partition; device 2 fails with a text that must not travel."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_id == 2:
            raise ValueError("ana bought tea")
        answer = ConfigRecord({"partition": context.node_config["partition-id"], "x": message.content["q"]["x"]})
        return Message(RecordDict({"a": answer}), reply_to=message)

    return app


def question(node: int) -> Message:
    return Message(RecordDict({"q": ConfigRecord({"x": 7})}), dst_node_id=node, message_type="train")


def test_every_message_gets_its_own_reply() -> None:
    grid = InlineGrid(echo_app(), devices=4, run_config={})
    assert list(grid.get_node_ids()) == [1, 2, 3, 4]
    messages = [question(node) for node in (4, 1, 3)]
    replies = list(grid.send_and_receive(messages))
    assert [dict(reply.content["a"]) for reply in replies] == [{"partition": p, "x": 7} for p in (3, 0, 2)]
    asked = [message.metadata.message_id for message in messages]
    assert [reply.metadata.reply_to_message_id for reply in replies] == asked
    assert len(set(asked)) == 3


def test_a_failing_device_is_an_error_reply_without_its_text() -> None:
    grid = InlineGrid(echo_app(), devices=3, run_config={})
    replies = list(grid.send_and_receive([question(node) for node in (1, 2, 3)]))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert "tea" not in str(replies[1].error.reason)


def test_messages_can_be_pushed_and_pulled_once() -> None:
    grid = InlineGrid(echo_app(), devices=3, run_config={})
    numbers = list(grid.push_messages([question(1), question(2)]))
    pulled = list(grid.pull_messages(numbers[::-1]))
    assert [reply.metadata.reply_to_message_id for reply in pulled] == numbers[::-1]
    assert [reply.has_error() for reply in pulled] == [True, False]
    assert list(grid.pull_messages(numbers)) == []


def test_a_run_goes_on_without_the_devices_that_fail(
    tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_device, answer = client.app.open_device, client.app._answer

    def opened(context: Context) -> Any:
        if context.node_id == 1:
            raise OSError("found no store; a code travels, this text does not")
        return open_device(context)

    def answered(content: RecordDict, context: Context) -> RecordDict:
        if context.node_id == 2:
            raise ValueError("not even a code; this text does not travel either")
        return answer(content, context)

    monkeypatch.setattr(client.app, "open_device", opened)
    monkeypatch.setattr(client.app, "_answer", answered)
    config = tiny_config(tiny_data, "federation.cohort=12", "federation.rounds=2")
    run, _ = train_inline(config, tmp_path / "run")
    for row in run.rows():
        assert row["accepted"] == 10
        assert row["refused"] == {"failed": 1, "no-answer": 1}
    assert "travel" not in (run.path / "metrics.jsonl").read_text()


def test_too_many_failing_devices_end_the_run(tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(context: Context) -> Any:
        raise OSError

    monkeypatch.setattr(client.app, "open_device", never)
    run = prepare(tiny_config(tiny_data), tmp_path / "run")
    with pytest.raises(RunError, match="0 of 12 replies: 12 failed"):
        run_inline(run.path, devices=run.devices)


def test_a_message_costs_less_than_two_milliseconds_beside_the_device() -> None:
    grid = InlineGrid(echo_app(), devices=1, run_config={})
    messages = [question(1) for _ in range(500)]
    started = process_time()
    assert len(list(grid.send_and_receive(messages))) == 500
    assert (process_time() - started) / 500 < 0.002


@pytest.mark.slow
def test_ten_thousand_devices_share_one_model(tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_inline(tiny_config(tiny_data), tmp_path / "warm")  # imports and first allocations happen here
    _runtime.cache_clear()
    data = write_data(tmp_path / "data", users=10_000, events=2, items=40)
    run = prepare(tiny_config(data, "federation.cohort=8", "federation.rounds=1"), tmp_path / "run")
    built, asked = [], []
    build, deliver = Runtime.__init__, InlineGrid._deliver

    def counted(self: Runtime, *arguments: Any) -> None:
        built.append(self)
        build(self, *arguments)

    def watched(self: InlineGrid, message: Message) -> Message:
        asked.append(message.metadata.message_type)
        return deliver(self, message)

    monkeypatch.setattr(Runtime, "__init__", counted)
    monkeypatch.setattr(InlineGrid, "_deliver", watched)
    before = psutil.Process().memory_info().rss
    run_inline(run.path, devices=run.devices)
    assert (run.devices, len(built)) == (10_000, 1)
    assert (asked.count("train"), asked.count("query")) == (8, 20_000)
    assert psutil.Process().memory_info().rss - before < 200e6  # 20 kB a device; its messages and replies


# --- Flower's own engines ----------------------------------------------------------------------------------


def close(folder: Path, other: Path) -> bool:
    """The trained adapters of two runs agree to 1e-5."""
    first, second = (load_arrays(path / "candidate.safetensors") for path in (folder, other))
    return set(first) == set(second) and all(np.allclose(first[n], second[n], rtol=0, atol=1e-5) for n in first)


@pytest.mark.slow
def test_ray_and_inline_agree(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", users=6)
    # Ray numbers its nodes at random, so a cohort is the same on both engines only when everybody is in it.
    config = tiny_config(data, "federation.cohort=6", "federation.rounds=2")
    run, _ = train_inline(config, tmp_path / "inline" / "run")
    twin = prepare(config, tmp_path / "ray" / "run")
    run_ray(twin.path, devices=twin.devices)
    assert [row["accepted"] for row in twin.rows()] == [6] * len(run.rows())
    assert close(run.path, twin.path)


@contextmanager
def flower_home(home: Path) -> Iterator[dict[str, str]]:
    """Environment with a Flower home of its own; what `flwr run` leaves running there is stopped afterwards."""
    environment = {**flower_environment(home), "OMP_NUM_THREADS": "1"}
    try:
        yield environment
    finally:
        left = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("FLWR_HOME") == str(home):
                    left.append(process)
        for send in (psutil.Process.terminate, psutil.Process.kill):
            for process in left:
                with suppress(psutil.Error):
                    send(process)
            left = psutil.wait_procs(left, timeout=10)[1]


@pytest.mark.slow
def test_flwr_run_trains_a_prepared_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data", users=3, items=30)
    settings = ("federation.cohort=3", "federation.rounds=1")
    options = tiny_options(data, tmp_path / "flwr" / "run", *settings)
    assert invoke(*options, "--prepare-only", "--json") == 0
    prepared = json.loads(capsys.readouterr().out)
    app = tmp_path / "app"  # a copy, because Flower may rewrite pyproject.toml in place
    shutil.copytree(ROOT, app, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs", "*.egg-info", "data"))
    with flower_home(tmp_path / "home") as environment:
        command = [flower_program("flwr"), *shlex.split(prepared["flwr_run"])[1:]]
        started = subprocess.run(command, cwd=app, env=environment, capture_output=True, text=True, timeout=120)
        assert started.returncode == 0, started.stdout + started.stderr

        def status() -> str:
            listed = subprocess.run(
                [flower_program("flwr"), "list", "--format", "json"],
                cwd=app,
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
            )
            return str(json.loads(listed.stdout)["runs"][0]["status"])

        assert wait_until(lambda: status().startswith("finished"), timeout=240, pause=2)
        assert status() == "finished:completed"
    run, _ = train_inline(tiny_config(data, *settings), tmp_path / "inline" / "run")
    assert close(run.path, tmp_path / "flwr" / "run")
