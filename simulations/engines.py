"""Two ways to run the same ServerApp and ClientApp over virtual devices.

inline: a Flower Grid in this process; one backbone in memory, about a millisecond of overhead per message.
ray: Flower's own simulation runtime, one actor per core.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from shared.config import load_config
from shared.errors import RunError

#: A ClientApp, or what wraps one.
ClientFunction = Callable[[Message, Context], Message]


class InlineGrid(Grid):
    """Calls the ClientApp in process, one message at a time. Node ids are 1 … devices; partition = node id - 1.

    An exception in the ClientApp becomes an error reply, as it does over a network.
    """

    def __init__(self, client_app: ClientFunction, *, devices: int, run_config: dict[str, Any]) -> None:
        self._client_app = client_app
        self._devices = devices
        self._run_config = run_config
        self._replies: dict[str, Message] = {}
        self._run = Run.create_empty(run_id=1)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self._sent = 0
        self._memories: dict[int, RecordDict] = {}

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return range(1, self._devices + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        replies = [self._deliver(message) for message in messages]
        self._replies.update({reply.metadata.reply_to_message_id: reply for reply in replies})
        return [reply.metadata.reply_to_message_id for reply in replies]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(number) for number in message_ids if number in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Answers as they come, so that only one reply is in memory besides what the server keeps."""
        return (self._deliver(message) for message in messages)

    def _deliver(self, message: Message) -> Message:
        self._sent += 1
        message.metadata.__dict__["_message_id"] = str(self._sent)
        node = message.metadata.dst_node_id
        context = Context(
            run_id=1,
            node_id=node,
            node_config={"partition-id": node - 1, "num-partitions": self._devices},
            state=self._memories.pop(node, None) or RecordDict(),
            run_config=self._run_config,
        )
        try:
            return self._client_app(message, context)
        except Exception as error:  # noqa: BLE001  # a failing device must not end the run
            return Message(Error(code=0, reason=type(error).__name__), reply_to=message)
        finally:
            if context.state:  # as Flower does; only secure aggregation leaves something there
                self._memories[node] = context.state


def run_inline(folder: Path, *, devices: int) -> None:
    """Run or continue the experiment of a run folder in this process, under faults when its settings ask for them."""
    from client.app import app as client_app

    config = load_config(folder / "config.toml")
    if config.simulation.chaos:
        from simulations.chaos import Chaos, run_chaotic

        run_chaotic(folder, devices=devices, chaos=Chaos.of_rate(config.seed, config.simulation.chaos))
        return
    serve_inline(folder, client_app, devices=devices)


def serve_inline(folder: Path, client_app: ClientFunction, *, devices: int) -> None:
    """Run or continue the experiment of a run folder in this process with the given devices."""
    from server.app import app as server_app

    run_config: dict[str, Any] = {"out": str(folder)}
    grid = InlineGrid(client_app, devices=devices, run_config=run_config)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config)
    server_app(grid, context)


def run_ray(folder: Path, *, devices: int) -> None:
    """Run or continue the experiment of a run folder on Flower's simulation runtime (Ray).

    Raises RunError when Ray is not installed.
    """
    try:
        import ray  # noqa: F401
    except ImportError:
        raise RunError("engine ray: found no Ray; install homerank[simulation]") from None
    from flwr.simulation import run_simulation

    from client.app import app as client_app
    from server.app import app as server_app

    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": os.cpu_count() or 1},
    }
    with _environment(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        logging.getLogger("flwr").setLevel(logging.ERROR)
        run_simulation(server_app, client_app, num_supernodes=devices, backend_config=backend)


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Settings that Ray's workers and Flower read from the environment, put back afterwards."""
    wanted = {
        "HOMERANK_RUN": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_DEDUP_LOGS": "0",
        # Ray announces a change of this setting with a warning; either value is right here.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
