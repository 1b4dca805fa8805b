"""Counts what passes between one program and a port of this machine, without looking into it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

HOST = "127.0.0.1"
_PART = 2**16


@dataclass
class Passed:
    """Bytes of TCP payload so far, TLS included. down: to the device. up: from it. links: connections opened."""

    down: int = 0
    up: int = 0
    links: int = 0

    def minus(self, earlier: Passed) -> Passed:
        """What passed since then."""
        return Passed(self.down - earlier.down, self.up - earlier.up, self.links - earlier.links)

    def copy(self) -> Passed:
        """As it is now."""
        return Passed(self.down, self.up, self.links)


class Relays:
    """Ports that lead to `target`, one for each device; a thread of its own serves them between start and close."""

    def __init__(self, target: int, count: int) -> None:
        self.passed = [Passed() for _ in range(count)]
        self.ports: list[int] = []
        self._target = target
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="relays", daemon=True)

    def __enter__(self) -> Relays:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        self._loop.run_until_complete(self._listen())
        self._ready.set()
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            with suppress(asyncio.CancelledError):
                self._loop.run_until_complete(task)
        self._loop.close()

    async def _listen(self) -> None:
        for passed in self.passed:
            server = await asyncio.start_server(self._handler(passed), HOST, 0)
            self.ports.append(server.sockets[0].getsockname()[1])

    def _handler(self, passed: Passed) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            passed.links += 1
            try:
                theirs, ours = await asyncio.open_connection(HOST, self._target)
            except OSError:
                writer.close()
                return
            await asyncio.gather(_copy(reader, ours, passed, "up"), _copy(theirs, writer, passed, "down"))

        return handle


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passed: Passed, way: str) -> None:
    """Hand on until one end closes."""
    with suppress(OSError):
        while part := await reader.read(_PART):
            setattr(passed, way, getattr(passed, way) + len(part))
            writer.write(part)
            await writer.drain()
    writer.close()
