"""What running processes cost: CPU seconds, memory and written bytes of groups of them, over a span of time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import psutil


def family(pid: int) -> list[psutil.Process]:
    """A process and everything below it."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def written(pids: Iterable[int]) -> int:
    """Bytes that processes handed to `write` so far: files and pipes, not sockets (Linux, /proc/PID/io)."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/io").read_text().splitlines():
                if line.startswith("wchar:"):
                    total += int(line.split()[1])
    return total


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """User and system time so far, of those that are still there."""
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


@dataclass(frozen=True)
class Cost:
    """cpu: seconds of one core per second of time. rss: bytes in memory, pages shared between processes in each."""

    cpu: float
    rss: int
    written: float = 0.0


@dataclass
class Meter:
    """Measures named groups of processes from its making until `read`; processes that come or go are not in it."""

    groups: Mapping[str, list[psutil.Process]]
    _began: float = field(default_factory=monotonic)

    def __post_init__(self) -> None:
        self._cpu = {name: cpu_seconds(group) for name, group in self.groups.items()}
        self._written = {name: written(one.pid for one in group) for name, group in self.groups.items()}

    @property
    def seconds(self) -> float:
        """Since its making."""
        return monotonic() - self._began

    def read(self) -> dict[str, Cost]:
        """Cost of each group, bytes written per second included."""
        seconds, found = self.seconds, {}
        for name, group in self.groups.items():
            rss = 0
            for process in group:
                with suppress(psutil.Error):
                    rss += process.memory_info().rss
            cpu = (cpu_seconds(group) - self._cpu[name]) / seconds
            found[name] = Cost(cpu, rss, (written(one.pid for one in group) - self._written[name]) / seconds)
        return found
