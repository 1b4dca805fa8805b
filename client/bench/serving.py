"""The service as a process of its own, over HTTP: how soon it ranks, and what it does under load."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from client.bench.timing import Figures, summed_up
from client.bench.workbench import Workbench
from client.profile import Profile
from client.service.parcels import packed
from shared.artifacts import save_catalogue
from shared.errors import DeploymentError
from shared.terminal import flower_environment

#: Starts of the service that are timed.
STARTS = 3
#: Requests in parallel, seconds they go on, and seconds between two events that are written meanwhile.
PARALLEL, SECONDS, BETWEEN = 50, 60.0, 0.25


@dataclass(frozen=True)
class Running:
    """A service that answers."""

    url: str
    token: str
    process: subprocess.Popen[str]

    @property
    def headers(self) -> dict[str, str]:
        """What requests carry."""
        return {"authorization": f"Bearer {self.token}"}


def start(bench: Workbench, *, engine: str = "full") -> Figures:
    """From starting the process to the first slate, with vectors of the catalogue cached. memory: the service's."""
    import psutil  # type: ignore[import-untyped]

    with _home(bench) as home, httpx.Client(timeout=60.0, trust_env=False) as client:
        taken, memory = [], 0
        for _ in range(1 + STARTS):  # the first one encodes the catalogue
            started = time.perf_counter()
            with _serving(home, engine=engine, model=None if engine == "full" else bench.setting.model) as service:
                _slate(service, client)
                taken.append((time.perf_counter() - started) * 1e3)
                memory = int(psutil.Process(service.process.pid).memory_info().rss)
        return replace(summed_up(taken[1:]), memory=memory)


def load(bench: Workbench) -> Figures:
    """50 requests in parallel for a minute, an event every quarter of a second, and a change of adapter in between.

    failed: answers that were not a slate. stale: items in a slate that were recorded before it was asked for.
    """
    with _home(bench) as home, TemporaryDirectory(prefix="homerank-") as other:
        bench.write_adapter(Path(other), seed=bench.seed + 1)
        with _serving(home, engine="full", model=None) as service:
            with httpx.Client(timeout=60.0, trust_env=False) as client:
                _slate(service, client)
            found = asyncio.run(_loaded(service, bench, packed(Path(other))))
    if not found.swapped:
        raise DeploymentError("the adapter was not changed during the measurement; run it again")
    return replace(summed_up(found.taken), failed=found.failed, stale=found.stale)


@dataclass
class _Load:
    taken: list[float] = field(default_factory=list)
    recorded: list[str] = field(default_factory=list)
    failed: int = 0
    stale: int = 0
    swapped: bool = False


async def _loaded(service: Running, bench: Workbench, adapter: bytes) -> _Load:
    found = _Load()
    end = time.perf_counter() + SECONDS
    limits = httpx.Limits(max_connections=PARALLEL + 10, max_keepalive_connections=PARALLEL + 10)
    async with httpx.AsyncClient(
        base_url=service.url, headers=service.headers, timeout=60.0, limits=limits, trust_env=False
    ) as client:

        async def rank() -> None:
            while time.perf_counter() < end:
                before, started = set(found.recorded), time.perf_counter()
                answer = await client.post("/v1/recommend", json={"k": 10})
                found.taken.append((time.perf_counter() - started) * 1e3)
                if answer.status_code != 200:
                    found.failed += 1
                else:
                    found.stale += sum(one["item"] in before for one in answer.json()["slate"])

        async def write() -> None:
            for item in bench.catalogue.items:
                if time.perf_counter() >= end:
                    return
                answer = await client.post("/v1/events", json={"item": item.id})
                if answer.status_code == 200:
                    found.recorded.append(item.id)
                else:
                    found.failed += 1
                await asyncio.sleep(BETWEEN)

        async def swap() -> None:
            await asyncio.sleep(SECONDS / 2)
            answer = await client.post("/v1/import", params={"what": "adapter"}, content=adapter)
            found.swapped = answer.status_code == 200

        await asyncio.gather(*(rank() for _ in range(PARALLEL)), write(), swap())
    return found


@contextmanager
def _home(bench: Workbench) -> Iterator[Path]:
    """A device's folder with the catalogue and the adapter that are measured."""
    with TemporaryDirectory(prefix="homerank-") as folder:
        profile = Profile.open(Path(folder))
        save_catalogue(bench.catalogue, profile.catalogue)
        bench.write_adapter(profile.adapter, seed=bench.seed)
        yield Path(folder)


@contextmanager
def _serving(home: Path, *, engine: str, model: Path | None) -> Iterator[Running]:
    command = [sys.executable, "-m", "client", "serve", "--home", str(home), "--port", "0", "--engine", engine]
    command += ["--model", str(model)] if model else []
    process = subprocess.Popen(
        [*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=flower_environment(home)
    )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise DeploymentError("the service did not start; try homerank-client serve")
        told: dict[str, Any] = json.loads(line)
        token = (home / "profiles" / "default" / "token").read_text(encoding="utf-8").strip()
        yield Running(told["url"], token, process)
    finally:
        process.terminate()
        process.wait()


def _slate(service: Running, client: httpx.Client) -> None:
    client.post(f"{service.url}/v1/recommend", json={"k": 10}, headers=service.headers).raise_for_status()
