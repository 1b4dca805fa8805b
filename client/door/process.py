"""The worker as its parent sees it: ask, or kill."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from time import monotonic

from flwr.app import RecordDict

from client.door import wire
from client.limits import Limits
from client.profile import Profile
from shared.errors import ProtocolError

_ROOT = Path(__file__).resolve().parents[2]
#: For the worker to take a question in; it is read as soon as its imports are done.
_START_SECONDS = 120.0


class Worker:
    """A running `client.door.worker`. It ends when this object is killed, or this process ends in whichever way."""

    def __init__(self, profile: Profile, limits: Limits) -> None:
        self._channel, theirs = socket.socketpair()
        settings = json.dumps({"profile": str(profile.folder), "limits": asdict(limits)})
        command = [sys.executable, "-P", "-m", "client.door.worker", str(theirs.fileno()), settings]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the program at the other end
            )
        except OSError:
            self._channel.close()
            raise
        finally:
            theirs.close()
        self.idle_since = monotonic()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None

    def answer(self, content: RecordDict, memory: RecordDict, *, deadline: float) -> tuple[RecordDict, RecordDict]:
        """The answer and what the secure session remembers from now on.

        Raises ConnectionError when the worker was killed, and TimeoutError after `deadline` seconds, after which it
        must be killed.
        """
        until = monotonic() + deadline
        try:
            for records in (content, memory):
                wire.write(self._channel, wire.pack(records), timeout=min(deadline, _START_SECONDS))
            reply, memory = (
                wire.unpack(wire.read(self._channel, timeout=max(1e-3, until - monotonic()))) for _ in range(2)
            )
        except TimeoutError:
            raise
        except (EOFError, OSError, ProtocolError):
            raise ConnectionError("the training process is gone") from None
        self.idle_since = monotonic()
        return reply, memory

    def kill(self) -> None:
        """End it at once. Does nothing the second time."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill it and give back the socket; only for who is not in `answer`."""
        self.kill()
        self._channel.close()


def _environment() -> dict[str, str]:
    """One thread, nothing fetched or reported, and our packages findable from a checkout too."""
    known = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONPATH": str(_ROOT) + (os.pathsep + known if known else ""),
    }
