"""What secure aggregation costs against a plain exchange: bytes, seconds, and the error of the sum.

    PYTHONPATH=. OMP_NUM_THREADS=1 python benchmarks/secagg.py

Every device holds a random vector at the clip. A fifth of the cohort drops out after it has shared its keys, the stage
at which a drop-out costs most. The messages, checks, keys, masks and the noise are the real ones; there is no training
and no network. Bytes are those of Flower's records as they travel, in both directions; seconds are of one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_to_proto
from numpy.typing import NDArray

from client.secure import SecureDevice
from server.exchange import Exchange
from server.secure import SecureExchange
from shared.adapter import AdapterState
from shared.protocol import Manifest, decode_request, encode_reply
from shared.secagg.messages import decode_question, is_secure
from shared.secagg.ring import SecurePlan, decode, ring_scale
from shared.secagg.skellam import share_variance
from simulations.engines import InlineGrid

LOST = 0.2


@dataclass
class Cost:
    """Of one exchange: bytes down and up over the whole cohort, seconds inside devices and in all."""

    down: int = 0
    up: int = 0
    device_seconds: float = 0.0
    seconds: float = 0.0

    def row(self, kind: str, *, cohort: int, size: int) -> str:
        """One line of the table, per device where that is what matters."""
        device_ms = 1000 * self.device_seconds / cohort
        server = self.seconds - self.device_seconds
        down, up = self.down / cohort / 1000, self.up / cohort / 1000
        return f"| {size:,} | {cohort} | {kind} | {down:,.1f} | {up:,.1f} | {device_ms:.1f} | {server:.2f} |"


class CountingGrid(InlineGrid):
    """Devices that answer with their vector, in whichever way they are asked; counts what that costs."""

    def __init__(self, vectors: NDArray[np.float64], plan: SecurePlan) -> None:
        super().__init__(ClientApp(), devices=len(vectors), run_config={})
        self.vectors, self.plan, self.cost = vectors, plan, Cost()
        self.states = [RecordDict() for _ in vectors]
        self.paused = 0.0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As InlineGrid, with a state per device."""
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = str(self._sent)
            node, content = message.metadata.dst_node_id - 1, message.content
            self.cost.down += self._size_of(content)
            last = not is_secure(content) or content["secure"]["stage"] in ("masked", "unmask")
            if last and node < LOST * len(self.vectors):
                yield Message(Error(code=0), reply_to=message)
                continue
            started = time.perf_counter()
            reply = self._answer(node, content)
            self.cost.device_seconds += time.perf_counter() - started
            self.cost.up += self._size_of(reply)
            yield Message(reply, reply_to=message)

    def _answer(self, node: int, content: RecordDict) -> RecordDict:
        if is_secure(content):
            device = SecureDevice(self.states[node], self.plan, lambda: self.vectors[node])
            return device.answer(decode_question(content))
        manifest, _ = decode_request(content)
        return encode_reply(manifest, AdapterState.unpack(self.vectors[node].astype(np.float32), manifest.reply))

    def _size_of(self, content: RecordDict) -> int:
        """Bytes on the wire; the time this takes is not part of the exchange."""
        started = time.perf_counter()
        size = int(recorddict_to_proto(content).ByteSize())
        self.paused += time.perf_counter() - started
        return size


def measure(cohort: int, size: int) -> tuple[list[str], float, float]:
    """Rows of the table, the largest error of a sum without noise, and the stated bound for it."""
    rng = np.random.default_rng(cohort)
    vectors = rng.normal(size=(cohort, size))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    quorum = int((1 - LOST) * cohort)
    scale = ring_scale(1.0, cohort=cohort, noise=1.0)
    noisy = SecurePlan(1.0, scale, quorum, share_variance(scale, quorum=quorum))
    silent = SecurePlan(1.0, scale, quorum)
    manifest = Manifest("benchmark", 1, "train", "b" * 64, "c" * 64, {"w": (size,)}, {"w": (size,)})
    state = AdapterState({"w": np.zeros(size, dtype=np.float32)})
    nodes = range(1, cohort + 1)

    plain = CountingGrid(vectors, silent)
    started = time.perf_counter()
    exchange = Exchange(plain, nodes, manifest=manifest, state=state, timeout=600.0)
    total = state.zeros()
    for update in exchange:
        total = total + update
    plain.cost.seconds = time.perf_counter() - started - plain.paused

    costs, error, survivors = [plain.cost.row("plain", cohort=cohort, size=size)], 0.0, 0
    for plan in (silent, noisy):
        grid = CountingGrid(vectors, plan)
        started = time.perf_counter()
        found = SecureExchange(grid, nodes, manifest=manifest, state=state, plan=plan, timeout=600.0).run()
        grid.cost.seconds = time.perf_counter() - started - grid.paused
        if found is None:
            raise SystemExit("no sum came out")
        if plan is silent:
            expected = vectors[int(np.ceil(LOST * cohort)) :].sum(axis=0)
            error = float(np.abs(decode(found.total, scale=scale) - expected).max())
            survivors = found.survivors
        else:
            costs.append(grid.cost.row("secure", cohort=cohort, size=size))
    return costs, error, survivors / (2 * scale)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cohorts", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--sizes", type=int, nargs="+", default=[3500, 150_000])
    chosen = parser.parse_args()
    print("| entries | cohort | exchange | kB down per device | kB up per device | ms per device | s at the server |")
    print("|---|---|---|---|---|---|---|")
    errors = []
    for size in chosen.sizes:
        for cohort in chosen.cohorts:
            rows, error, bound = measure(cohort, size)
            print("\n".join(rows), flush=True)
            errors.append(f"| {size:,} | {cohort} | {error:.2e} | {bound:.2e} |")
    print("\n| entries | cohort | largest error of the sum | stated bound |\n|---|---|---|---|")
    print("\n".join(errors))


if __name__ == "__main__":
    main()
