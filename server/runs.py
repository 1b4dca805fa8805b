"""What an operator does with a running server: let devices in, run rounds."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from server.certificates import replace_file
from server.deployment import CONNECTION, Deployment, reachable
from server.fleet import Fleet, canonical_key
from server.registry import Registry
from shared.artifacts import load_catalogue, save_catalogue, write_atomic
from shared.config import Config, load_config, merge, override, to_toml
from shared.datasets.generic import read_items
from shared.errors import DeploymentError, RunError
from shared.terminal import Child, flower_environment, flower_program, tail
from shared.transfer import keep_start

#: Values Flower can carry in a run configuration.
RunValue = bool | int | float | str


def register(folder: Path, public_key: Path) -> str:
    """Allow the device with this public key (NIST EC, OpenSSH form) to join. Returns its node id.

    Raises DeploymentError when the server does not run, the file is no such key, or Flower refuses it.
    """
    path = public_key.expanduser().resolve()
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise DeploymentError(f"{path} is not a readable OpenSSH public key; expected device.pub") from error
    key = canonical_key(text, name=str(path))
    deployment = reachable(folder)
    registry = Registry(deployment.registry)
    try:
        with Fleet(deployment) as fleet:
            node = fleet.register(key)
        if node is None:
            raise DeploymentError(
                f"{path} is registered already; its device can join, unless it was revoked: Flower takes no key twice"
            )
        registry.admit(key, node)
    finally:
        registry.close()
    return node


def prepare_run(target: Path, *, catalogue: Path, config: Path | None, assignments: Sequence[str]) -> None:
    """Write what the ServerApp reads: config.toml, items.jsonl and, with `federation.start_from`, start/.

    Without a configuration file the run is private at event level. Raises RunError when the folder holds a run
    with other settings or another catalogue, ConfigError, DataError and AdapterError for bad input.
    """
    settings = load_config(config) if config else merge(Config(), {"privacy": {"mode": "event"}})
    settings = override(settings, *assignments)
    items = read_items(catalogue)
    known = target / "config.toml"
    if known.exists():
        same = load_config(known) == settings
        if not same or load_catalogue(target / "items.jsonl").fingerprint != items.fingerprint:
            raise RunError(f"{target} holds a run with other settings or another catalogue; choose another --out")
        return
    target.mkdir(parents=True, exist_ok=True)
    keep_start(settings, target)
    save_catalogue(items, target / "items.jsonl")
    write_atomic(known, to_toml(settings).encode())


def run_rounds(
    folder: Path,
    *,
    run_config: Mapping[str, RunValue],
    components: tuple[str, str] = ("server.app:app", "client.app:app"),
    timeout: float = 24 * 3600.0,
    on_line: Callable[[str], None] = lambda line: None,
    on_start: Callable[[int], None] = lambda run: None,
) -> int:
    """Run the ServerApp with the devices that have joined, and wait for its end. Returns Flower's run id.

    run_config: becomes `context.run_config` in the ServerApp and in every ClientApp, keys as given.
    components: the ServerApp and the ClientApp as `module:attribute`, importable where they run.
    timeout: seconds for the whole run. on_line: called with each line the ServerApp logs. on_start: with the run id,
    as soon as it is known.

    Raises DeploymentError when the server does not run, when the run does not end in time (it is then
    stopped), and when it ends in any state but completed; the message carries the end of the log.
    """
    deployment = reachable(folder)
    with _only_run(deployment):
        bundle = write_bundle(deployment.folder / "app", run_config=run_config, components=components)
        run_id = _follow_run(deployment, bundle, timeout=timeout, on_line=on_line, on_start=on_start)
        return _require_completed(deployment, run_id)


def _follow_run(
    deployment: Deployment,
    bundle: Path,
    *,
    timeout: float,
    on_line: Callable[[str], None],
    on_start: Callable[[int], None],
) -> int | None:
    """Submit the bundle and stay with the run to its end; a run that is left behind is stopped."""
    command = [flower_program("flwr"), "run", str(bundle), CONNECTION, "--stream"]
    environment = flower_environment(deployment.flower_home)
    with Child(command, log=deployment.run_log, env=environment, cwd=deployment.folder) as run:
        follower = _Follower(run, on_line, on_start)
        try:
            finished = follower.follow(timeout)
        except BaseException:
            stop_run(deployment, follower.run_id)
            raise
        if not finished:
            stop_run(deployment, follower.run_id)
            raise DeploymentError(f"the run did not end within {timeout:.0f} s; end of {run.log}:\n{run.tail()}")
    return follower.run_id


@contextmanager
def _only_run(deployment: Deployment) -> Iterator[None]:
    """Two runs at once would train, and be charged for, the same devices."""
    import fcntl

    with (deployment.folder / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DeploymentError(f"a run of {deployment.folder} is in progress; wait for its end") from error
        yield


def write_bundle(folder: Path, *, run_config: Mapping[str, RunValue], components: tuple[str, str]) -> Path:
    """Write the app bundle Flower wants: a pyproject.toml that names the apps, and no code.

    The apps are imported from the installed package. The run configuration is written into the bundle, since
    Flower refuses to override keys that a bundle does not declare. Raises DeploymentError for other values
    than bool, int, finite float and str.
    """
    import tomli_w

    for key, value in run_config.items():
        if not isinstance(value, (bool, int, float, str)) or value in (float("inf"), float("-inf")) or value != value:
            raise DeploymentError(
                f"run setting {key!r} is {value!r}; Flower carries bool, int, finite float and str only"
            )
    server_app, client_app = components
    content = {
        "project": {
            "name": "homerank",
            "version": _version(),
            "description": "Names the installed homerank apps.",
            "license": "Apache-2.0",
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "homerank",
                    "components": {"serverapp": server_app, "clientapp": client_app},
                    "config": dict(run_config),
                }
            }
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "pyproject.toml", tomli_w.dumps(content).encode())
    return folder


def _version() -> str:
    """Version of the installed package; a checkout that is not installed is 0.0.0."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("homerank")
    except PackageNotFoundError:
        return "0.0.0"


class _Follower:
    """Reads what `flwr run --stream` writes until it ends, and picks up the run id on the way."""

    def __init__(self, run: Child, on_line: Callable[[str], None], on_start: Callable[[int], None]) -> None:
        self.run_id: int | None = None
        self._run = run
        self._on_line, self._on_start = on_line, on_start

    def follow(self, timeout: float) -> bool:
        """False when the run went on past `timeout` seconds."""
        deadline = monotonic() + timeout
        while self._run.exit_code is None:
            self._read()
            if monotonic() > deadline:
                return False
            sleep(0.2)
        self._read()
        return True

    def _read(self) -> None:
        for line in self._run.new_lines():
            if found := re.search(r"Successfully started run (\d+)", line):
                self.run_id = int(found[1])
                self._on_start(self.run_id)
            self._on_line(line)


def _require_completed(deployment: Deployment, run_id: int | None) -> int:
    """`flwr run` exits with 0 when the run failed, so its state is asked for."""
    if run_id is None:
        raise DeploymentError(f"the run did not start; end of {deployment.run_log}:\n{tail(deployment.run_log)}")
    reply = _flwr(deployment, "list", CONNECTION, "--run-id", str(run_id))
    runs = reply.get("runs") or [{}]
    status = runs[0].get("status", "unknown")
    if status != "finished:completed":
        raise DeploymentError(
            f"run {run_id} ended as {status}: {runs[0].get('status-details', 'no details')}; "
            f"end of {deployment.run_log}:\n{tail(deployment.run_log)}"
        )
    return run_id


def unfinished_run(deployment: Deployment) -> str:
    """Flower's id of the run that goes on, "" when none does."""
    reply = _flwr(deployment, "list", CONNECTION)
    going = [run for run in reply.get("runs") or [] if not str(run.get("status")).startswith("finished")]
    return str(going[0]["run-id"]) if going else ""


def wait_for_run(deployment: Deployment, run: str, *, timeout: float, pause: float) -> None:
    """Wait for a run that another process started. DeploymentError unless it completes within `timeout` seconds."""
    deadline = monotonic() + timeout
    while run == unfinished_run(deployment):
        if monotonic() > deadline:
            stop_run(deployment, int(run))
            raise DeploymentError(f"run {run} did not end within {timeout:.0f} s")
        sleep(pause)
    _require_completed(deployment, int(run))


def stop_run(deployment: Deployment, run_id: int | None) -> None:
    """End a run now. Flower only marks it as stopped: its ServerApp goes on for a minute, or for ever."""
    if run_id is None:
        return
    with suppress(DeploymentError):
        # No answer means that the server is gone, and with it the run.
        _flwr(deployment, "stop", str(run_id), CONNECTION, timeout=20)
    end_server_apps(deployment)


def end_server_apps(deployment: Deployment) -> None:
    """End every ServerApp that works for this deployment's SuperLink, or for one that was killed."""
    import psutil  # type: ignore[import-untyped]

    address = ["--runtime-api-address", deployment.address]
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            if any("flwr-serverapp" in part for part in command[:2]) and address == command[2:4]:
                process.terminate()


def _flwr(deployment: Deployment, *arguments: str, timeout: float = 60.0) -> dict[str, Any]:
    """Run one `flwr` command and return its JSON. Raises DeploymentError on failure or delay."""
    what = "flwr " + " ".join(arguments[:2])
    try:
        done = subprocess.run(
            [flower_program("flwr"), *arguments, "--format", "json"],
            env=flower_environment(deployment.flower_home),
            cwd=deployment.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise DeploymentError(f"{what} did not end within {timeout:.0f} s") from error
    try:
        reply = json.loads(done.stdout)
    except ValueError as error:
        detail = " ".join((done.stdout + done.stderr).split())[-600:]
        raise DeploymentError(f"{what} failed (exit {done.returncode}): {detail}") from error
    if not reply.get("success", False):
        raise DeploymentError(f"{what} failed: {reply.get('error-message') or reply}")
    return dict(reply)
