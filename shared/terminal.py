"""What a homerank program does at a terminal: errors, JSON, signals, child processes that end with it.

The three command lines share one entry point, `run_cli`, and one convention: results on stdout (with `--json`
exactly one JSON object), everything else on stderr.

    exit code 0     done
    exit code 2     a mistake the user can correct: one line on stderr, no traceback
    exit code 130   Ctrl-C;  143  SIGTERM;  129  the terminal was closed
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import IO, TYPE_CHECKING, Any, NoReturn

from shared.errors import DeploymentError, HomerankError

if TYPE_CHECKING:
    import click
    import typer

# --- command lines -----------------------------------------------------------------------------------------


def emit_json(obj: Mapping[str, Any]) -> None:
    """Write the one JSON object of a `--json` command to stdout. Raises ValueError on NaN or infinity."""
    sys.stdout.write(json.dumps(obj, allow_nan=False, default=str) + "\n")
    sys.stdout.flush()


def run_cli(app: typer.Typer, name: str, args: Sequence[str] | None = None) -> NoReturn:
    """Run a Typer application as the program `name` and exit with the codes this module promises.

    args: the arguments after the program name; those of the process when None.
    """
    with _signals_as_exits():
        sys.exit(_exit_code(app, name, args))


def _exit_code(app: typer.Typer, name: str, args: Sequence[str] | None) -> int:
    """Run the application; print what went wrong in one line."""
    import click
    import typer.main

    try:
        result = typer.main.get_command(app).main(
            args=None if args is None else list(args), prog_name=name, standalone_mode=False
        )
        return result if isinstance(result, int) else 0
    except HomerankError as error:
        _say(name, str(error))
        return error.exit_code
    except click.UsageError as error:
        _say(name, _usage_message(error, name))
        return 2
    except click.ClickException as error:
        _say(name, error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say(name, "interrupted")
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`); there is nobody left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _usage_message(error: click.UsageError, name: str) -> str:
    """The message on one line, or the help text of a command that was given nothing."""
    import re

    message = error.format_message()
    if "\n" in message or not message:
        return message
    # Typer and newer versions of click both suggest a close command.
    message = re.sub(r"(Did you mean [^?]*\?) (\1|\(Did you mean one of: [^?]*\?\))", r"\1", message)
    return f"{message} (see {error.ctx.command_path if error.ctx else name} --help)"


def _say(name: str, message: str) -> None:
    """One line on stderr; a help text goes there as it is."""
    if message:
        sys.stderr.write(f"{message}\n" if message.startswith("Usage:") else f"{name}: {message}\n")


@contextmanager
def _signals_as_exits() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that `finally` and `with` clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    previous = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# --- child processes ---------------------------------------------------------------------------------------

#: Run before the real program in the child: asks Linux for SIGTERM when the parent dies, even by SIGKILL.
_DIE_WITH_PARENT = """\
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Child:
    """A program in its own process group, its output in a log file, that ends when this object is closed.

    Use it as a context manager. Leaving the block stops the program and everything it started: SIGTERM,
    then SIGKILL after a grace period. When this process is killed outright, the program gets SIGTERM (Linux).
    """

    def __init__(self, command: Sequence[str], *, log: Path, env: Mapping[str, str], cwd: Path) -> None:
        self.name = Path(command[0]).name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        wrapped = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                wrapped,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        self._reader: IO[str] = log.open(encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        """Process id, which is also the id of the process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while the program runs."""
        return self._process.poll()

    def new_lines(self) -> list[str]:
        """What the program wrote since the last call."""
        return self._reader.read().splitlines()

    def tail(self, lines: int = 15) -> str:
        """The last lines of the log, for an error message."""
        return tail(self.log, lines)

    def stop(self, grace: float = 10.0) -> None:
        """End the program and its descendants within about `grace` seconds. Does nothing the second time."""
        family = _descendants(self.pid) if self.exit_code is None else []
        if self.exit_code is None:
            self._process.terminate()
        try:
            self._process.wait(timeout=grace)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _kill_group(self.pid)
            self._process.wait()
            _kill_stragglers(family)
            self._reader.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def tail(log: Path, lines: int = 15) -> str:
    """The last `lines` lines of a text file without terminal colours; empty when there is no such file."""
    import re

    if not log.exists():
        return ""
    text = log.read_text(encoding="utf-8", errors="replace")
    return "\n".join(re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip().splitlines()[-lines:])


def _descendants(pid: int) -> list[Any]:
    """Every process below `pid`, as psutil handles, which survive the reuse of a process id."""
    import psutil  # type: ignore[import-untyped]

    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _kill_stragglers(family: list[Any], grace: float = 3.0) -> None:
    """End descendants in other process groups: SIGTERM, then SIGKILL."""
    import psutil

    for send in (psutil.Process.terminate, psutil.Process.kill):
        for process in family:
            with suppress(psutil.NoSuchProcess):
                send(process)
        family = psutil.wait_procs(family, timeout=grace)[1]


def _kill_group(group: int) -> None:
    """SIGKILL whatever is left of a process group."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


# --- Flower's programs -------------------------------------------------------------------------------------


def flower_program(name: str) -> str:
    """Path of one of the programs Flower installs, such as `flower-superlink`. Raises DeploymentError."""
    from shutil import which

    found = which(name, path=_program_path(os.environ.get("PATH", os.defpath)))
    if found is None:
        raise DeploymentError(
            f"found no program {name!r}; expected it beside {sys.executable}. "
            "Install homerank and Flower into the environment that runs this command."
        )
    return found


def flower_environment(home: Path) -> dict[str, str]:
    """Environment for Flower's programs, whose state then lives in `home` and not in ~/.flwr.

    Telemetry, update checks and the installation of dependencies at run time are off, and models are never
    fetched. Flower starts its own programs by bare name and imports our packages by name, so both are made
    findable whether homerank is installed or run from a checkout.
    """
    environment = dict(os.environ)
    environment |= {
        "FLWR_HOME": str(home),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "PATH": _program_path(os.environ.get("PATH", os.defpath)),
    }
    checkout = str(Path(__file__).resolve().parent.parent)
    if checkout not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        known = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = checkout + (os.pathsep + known if known else "")
    return environment


def _program_path(path: str) -> str:
    """PATH with the directory of this environment's scripts in front."""
    return sysconfig.get_path("scripts") + os.pathsep + path


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port nobody listens on at this moment."""
    import socket

    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Any, *, timeout: float, pause: float = 0.2) -> bool:
    """Poll `condition()` until it is true (True) or `timeout` seconds have passed (False)."""
    deadline = monotonic() + timeout
    while not condition():
        if monotonic() > deadline:
            return False
        sleep(pause)
    return True
