"""The parts of the deployment's benchmarks that compute: what they count, and what they call what they found."""

from __future__ import annotations

import asyncio
import math
import socket
from pathlib import Path
from threading import Thread
from time import process_time

import psutil
import pytest

from benchmarks.devices import role_of, write_people
from benchmarks.fleet import IDLE_HEAD, IDLE_RATE, idle_row
from benchmarks.processes import Cost, Meter
from benchmarks.relay import HOST, Passed, Relays
from benchmarks.thin import Tally, percentile, read_answer
from shared.terminal import wait_until


@pytest.mark.parametrize(("share", "expected"), [(0.5, 20.0), (0.51, 30.0), (0.99, 40.0), (0.0, 10.0), (1.0, 40.0)])
def test_a_percentile_is_one_of_the_values(share: float, expected: float) -> None:
    assert percentile([40.0, 10.0, 30.0, 20.0], share) == expected
    assert math.isnan(percentile([], share))


def test_a_tally_adds_up_over_routes_and_begins_anew() -> None:
    tally = Tally()
    tally.answered("pull-messages", 0.010)
    tally.answered("pull-messages", 0.030)
    tally.answered("send-node-heartbeat", 0.020)
    tally.errors["504 pull-messages"] += 1
    assert tally.requests == 3
    assert tally.percentile(0.5) == pytest.approx(20.0)
    tally.begin()
    assert (tally.requests, dict(tally.errors), tally.down, tally.up) == (0, {}, 0, 0)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP", (200, b"abc")),
        (b"HTTP/1.1 504 Gateway Time-out\r\ncontent-length: 0\r\n\r\n", (504, b"")),
    ],
)
def test_an_answer_is_read_to_its_length(data: bytes, expected: tuple[int, bytes]) -> None:
    async def read() -> tuple[int, bytes, bytes]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        return await read_answer(reader)

    status, _, body = asyncio.run(read())
    assert (status, body) == expected


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", EOFError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", ValueError),
    ],
)
def test_an_answer_that_is_cut_short_or_in_chunks_is_an_error(data: bytes, error: type[Exception]) -> None:
    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        await read_answer(reader)

    with pytest.raises(error):
        asyncio.run(read())


def test_a_row_has_a_cell_for_each_column_and_states_what_was_offered() -> None:
    tally = Tally()
    for _ in range(10):
        tally.answered("pull-messages", 0.004)

    class Known(Meter):
        seconds = 2.0

        def read(self) -> dict[str, Cost]:
            return {"nginx": Cost(0.01, 0), "SuperLink": Cost(0.05, 152_000_000, 40_000.0), "devices": Cost(0.02, 0)}

    row = idle_row(60, tally, Known({}), offline=1, log_rate=10_000.0)
    assert pytest.approx(1 / 3 + 1 / 20) == IDLE_RATE
    assert row == "| 60 | 23 | 5 | 4 | 4 | 0 | 1 | 0.01 | 0.05 | 10.0 | 0.02 | 6.0 | 152 |"
    assert row.count("|") == IDLE_HEAD.splitlines()[0].count("|") == IDLE_HEAD.splitlines()[1].count("|")


@pytest.mark.parametrize(
    ("words", "role"),
    [
        (["python", "-P", "-m", "client.door.worker", "5", "{}"], "worker"),
        (["python", "-m", "client", "serve", "--home", "/h/d0"], "service"),
        (["python", "-m", "client", "node", "--socket", "/h/run/default.sock"], "starter"),
        (["python", "/bin/flower-supernode", "--node-config", "/h/node.toml"], "SuperNode"),
        (["python", "/bin/flower-superexec", "--parent-pid", "7"], "SuperExec"),
        (["python", "/bin/flwr-clientapp", "--token", "x"], "ClientApp"),
        (["sleep", "9"], "other"),
    ],
)
def test_a_process_is_known_by_its_command_line(words: list[str], role: str) -> None:
    assert role_of(words) == role


def test_people_share_a_catalogue_and_differ(tmp_path: Path) -> None:
    first, second = write_people(tmp_path, 2)
    assert (first / "items.csv").read_bytes() == (second / "items.csv").read_bytes()
    assert (first / "events.csv").read_bytes() != (second / "events.csv").read_bytes()


def test_a_relay_hands_on_and_counts_both_ways() -> None:
    with socket.create_server((HOST, 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(connection.recv(100) * 2)

        thread = Thread(target=answer)
        thread.start()
        with Relays(listener.getsockname()[1], 2) as relays:
            with socket.create_connection((HOST, relays.ports[1]), timeout=5) as channel:
                channel.sendall(b"hello")
                found = b""
                while part := channel.recv(100):
                    found += part
            assert wait_until(lambda: relays.passed[1].up == 5, timeout=5)
        thread.join()
    assert found == b"hellohello"
    assert relays.passed == [Passed(), Passed(down=10, up=5, links=1)]
    assert Passed(10, 5, 1).minus(Passed(4, 1, 1)) == Passed(6, 4, 0)


def test_a_meter_sees_work_and_memory_of_this_process() -> None:
    meter, before = Meter({"this": [psutil.Process()]}), process_time()
    while process_time() - before < 0.2:
        pass
    cost = meter.read()["this"]
    assert cost.cpu * meter.seconds == pytest.approx(0.2, abs=0.1)
    assert cost.rss > 10_000_000
