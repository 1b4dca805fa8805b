"""From one question to one released sum: ask, clip, add up, check the quorum, charge, add noise. In that order."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from server.aggregation import Aggregator, noise_generator
from server.correlated import Correlation
from server.exchange import Exchange
from server.ledger import ServerLedger
from server.robust import check_rules, robust_mean
from server.secure import SecureExchange
from shared.adapter import AdapterState
from shared.config import Config
from shared.noise import Noise
from shared.privacy.chain import Head
from shared.protocol import Manifest
from shared.secagg.ring import SecurePlan, decode

log = logging.getLogger("homerank.server")


@dataclass(frozen=True)
class Released:
    """What an exchange came to. total: the noisy sum, None below the quorum; then nothing was charged here.

    head: of the server's ledger after the charge. answers: accepted replies. refused: the rest by reason.
    """

    total: AdapterState | None
    answers: int
    head: Head | None = None
    refused: dict[str, int] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """Refusals in words."""
        return ", ".join(f"{count} {code}" for code, count in sorted(self.refused.items())) or "no refusals"


@dataclass(frozen=True)
class _Replies:
    """What came back, before anything is released. question: SHA-256 of the request."""

    total: NDArray[np.float64] | None
    answers: int
    refused: dict[str, int]
    question: bytes


class Releaser:
    """Asks devices and releases the sum of their answers.

    seed: fixed noise, in a simulation only; None draws it from the operating system. on_step: told of each step
    ("asked", "charged", "released"), so that a test or a chaos run can fail there.
    """

    def __init__(
        self,
        config: Config,
        ledger: ServerLedger,
        *,
        seed: int | None,
        on_step: Callable[[str, Manifest], None] = lambda step, manifest: None,
    ) -> None:
        check_rules(config.federation.robust, share=config.federation.robust_share)
        self._config = config
        self._ledger = ledger
        self._seed = seed
        self._on_step = on_step

    def __call__(
        self,
        grid: Grid,
        nodes: Sequence[int],
        *,
        manifest: Manifest,
        state: AdapterState,
        noise: Noise,
        correlation: Correlation | None = None,
    ) -> Released:
        """Send `state` with `manifest` to `nodes` and release the sum of what comes back.

        | replies | result |
        |---|---|
        | at least the quorum | charged, then released with noise |
        | fewer, or none | nothing charged on the server, nothing released; correlated noise moves on all the same |
        | fewer, under trust = local | charged: each reply was a release to this server; the sum is not used |

        Devices charge themselves when they answer, whatever becomes of the sum. Raises PrivacyError when the ledger
        cannot be written; nothing is released then.
        """
        # Under local trust a reply already carries noise, far longer than the clip: clipping it would only bias it.
        bound = noise.bound if noise.trust == "aggregate" else math.inf
        aggregator = Aggregator(manifest.reply, bound=bound, noise_std=noise.server_std, correlation=correlation)
        if noise.scale:
            replies = self._collect_securely(grid, nodes, manifest=manifest, state=state, noise=noise)
        else:
            replies = self._collect(grid, nodes, manifest=manifest, state=state, aggregator=aggregator)
        self._on_step("asked", manifest)
        size = AdapterState.length(manifest.reply)
        generator = noise_generator(self._seed, replies.question)
        if replies.total is None or replies.answers < noise.quorum:
            if correlation is not None:
                aggregator.noise(size, generator)
            # Under trust = local every reply is a release to this server, whether it is summed or not.
            seen = noise.trust == "local" and replies.answers > 0
            head = self._charge(manifest, noise, dimension=size) if seen else None
            return Released(None, replies.answers, head, replies.refused)
        head = self._charge(manifest, noise, dimension=size)
        self._on_step("charged", manifest)
        released = aggregator.release(replies.total, generator)
        self._on_step("released", manifest)
        return Released(released, replies.answers, head, replies.refused)

    def _collect(
        self, grid: Grid, nodes: Sequence[int], *, manifest: Manifest, state: AdapterState, aggregator: Aggregator
    ) -> _Replies:
        federation = self._config.federation
        exchange = Exchange(grid, nodes, manifest=manifest, state=state, timeout=federation.reply_timeout)
        if federation.robust and manifest.phase == "train":
            updates = list(exchange)
            mean = robust_mean(updates, names=federation.robust, share=federation.robust_share) if updates else None
            total = None if mean is None else mean.pack().astype(np.float64) * len(updates)
        else:
            total = aggregator.add_up(exchange)
        return _Replies(total, exchange.accepted, dict(exchange.refused), exchange.digest)

    def _collect_securely(
        self, grid: Grid, nodes: Sequence[int], *, manifest: Manifest, state: AdapterState, noise: Noise
    ) -> _Replies:
        """The sum alone: in this mode no code here ever holds a single reply."""
        plan = SecurePlan(noise.bound, noise.scale, noise.quorum)
        timeout = self._config.federation.reply_timeout
        exchange = SecureExchange(grid, nodes, manifest=manifest, state=state, plan=plan, timeout=timeout)
        found = exchange.run()
        refused = dict(exchange.refused)
        if found is None:
            return _Replies(None, 0, {**refused, "no-sum": 1}, b"")
        return _Replies(decode(found.total, scale=noise.scale), found.survivors, refused, b"")

    def _charge(self, manifest: Manifest, noise: Noise, *, dimension: int) -> Head | None:
        if noise.mode == "none":
            return None
        training = self._config.training
        in_training = manifest.phase == "train"
        per_round = replace(noise, user_steps=1) if noise.user_steps else noise
        releases = per_round.releases(
            manifest.phase,
            dimension=dimension,
            sample_rate=training.window_sample_rate if in_training else 1.0,
            steps=training.local_steps if in_training else 1,
        )
        facts = {"releases": [asdict(release) for release in releases]}
        return self._ledger.charge(run=manifest.run, phase=manifest.phase, round=manifest.round, facts=facts)
