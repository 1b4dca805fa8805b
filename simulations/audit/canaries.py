"""Canary clients, and rounds of the real exchange and the real aggregator with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from flwr.app import Context, Message
from numpy.typing import NDArray

from server.aggregation import Aggregator, noise_generator
from server.exchange import Exchange
from shared.adapter import AdapterState
from shared.errors import ConfigError, RunError
from shared.privacy.accounting import gaussian_epsilon, least
from shared.protocol import Manifest, Shapes, decode_request, encode_reply
from simulations.engines import InlineGrid

#: L2 clip C of an audited round, and how many times as long a canary's update is.
BOUND, LOUDNESS = 1.0, 1e5
#: Largest number of examples that a canary declares; in a round they spread evenly over the decades from 1.
MOST_EXAMPLES = 1e3
UPDATE, EXAMPLES = "canaries", "examples"
#: Seconds an inline round may take.
TIMEOUT = 3600.0

MakeAggregator = Callable[..., Aggregator]


@dataclass(frozen=True, slots=True)
class Claim:
    """What is claimed: one person, who takes part in so many rounds, is protected with epsilon at delta."""

    epsilon: float
    delta: float = 1e-5
    participations: int = 1

    def __post_init__(self) -> None:
        if not (0 < self.epsilon < math.inf and 0 < self.delta < 1 and self.participations >= 1):
            raise ConfigError(f"found {self}; expected a positive epsilon, 0 < delta < 1 and participations >= 1")

    @property
    def mu(self) -> float:
        """Sensitivity over noise of all participations together."""
        return 1 / least(lambda noise: gaussian_epsilon(1 / noise, delta=self.delta) <= self.epsilon)

    @property
    def noise_multiplier(self) -> float:
        """Noise of one round that costs what is claimed after all participations."""
        return math.sqrt(self.participations) / self.mu


@dataclass(frozen=True)
class Rounds:
    """What was played. G groups of n canaries, P rounds a group; round r is group r mod G's.

    included: bool (G, n), the coins. released: float64 (P, G, n), the canaries' coordinates of each released sum.
    quiet: float64 (P, G, n), as many coordinates in which no canary says anything, so that they show the noise.
    """

    included: NDArray[np.bool_]
    released: NDArray[np.float64]
    quiet: NDArray[np.float64]


class Canaries:
    """Stands in for the ClientApp: device i answers with an update along coordinate i that is far over the clip.

    It also declares a number of examples, as replies do in federated averaging: a server that believed it would
    weigh the canary by it. To the real server it is one more entry of the update.
    """

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer one training message."""
        manifest, _ = decode_request(message.content)
        count = context.node_config["num-partitions"]
        coordinate = context.node_config["partition-id"]
        update = np.zeros(manifest.reply[UPDATE], dtype=np.float32)
        update[coordinate] = LOUDNESS * BOUND
        examples = np.array([MOST_EXAMPLES ** (coordinate / max(1, count - 1))], dtype=np.float32)
        reply = AdapterState({UPDATE: update, EXAMPLES: examples})
        return Message(encode_reply(manifest, reply), reply_to=message)


def play(claim: Claim, *, make_aggregator: MakeAggregator, groups: int, canaries: int, seed: int | None) -> Rounds:
    """Flip a coin for each of `groups * canaries` canaries and run every round with those that take part.

    The order in which the devices of a round are asked is drawn anew. seed: None draws coins and noise from the
    operating system. Raises RunError when the server refuses a canary's reply.
    """
    generator = np.random.default_rng(seed)
    included = generator.random((groups, canaries)) < 0.5
    grid = InlineGrid(Canaries(), devices=canaries, run_config={})
    shapes: Shapes = {UPDATE: (2 * canaries,), EXAMPLES: (1,)}
    aggregator = make_aggregator(shapes, bound=BOUND, noise_std=claim.noise_multiplier * BOUND)
    released = np.zeros((claim.participations, groups, 2 * canaries))
    for turn, group in np.ndindex(claim.participations, groups):
        nodes = (generator.permutation(np.flatnonzero(included[group])) + 1).tolist()
        manifest = Manifest("audit", 1 + turn * groups + group, "train", backbone="", catalogue="", reply=shapes)
        exchange = Exchange(grid, nodes, manifest=manifest, state=AdapterState({}), timeout=TIMEOUT)
        total = aggregator.add_up(exchange)
        if exchange.refused:
            raise RunError(f"found refused canaries ({dict(exchange.refused)}); expected every reply to be accepted")
        total = np.zeros(AdapterState.length(shapes)) if total is None else total
        released[turn, group] = aggregator.release(total, noise_generator(seed, exchange.digest)).arrays[UPDATE]
    return Rounds(included, released[..., :canaries], released[..., canaries:])
