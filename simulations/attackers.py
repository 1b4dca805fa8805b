"""Hostile devices for the simulator. They have no special access: they answer the messages every device gets.

| attack | what a hostile device sends in a training round |
|---|---|
| promote | an honestly trained update, from a store in which the target follows every event; times `boost` |
| sign-flip | the honest update times -`boost` |
| noise | a random direction, `boost` times as long as the honest update |

Model boosting is from Bagdasaryan et al. 2020 (arXiv 1807.00459). With `count`, a promoting device also answers the
popularity count from its poisoned store. Everything else is answered honestly, and every reply is well formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from flwr.app import Context, Message, RecordDict
from numpy.typing import NDArray

from client.app import app as honest_app
from client.device import Device
from client.limits import Limits
from client.store import History, Role, Row, Store, known
from shared.adapter import AdapterState
from shared.catalogue import Catalogue
from shared.errors import ConfigError, ProtocolError
from shared.privacy.ledger import Ledger
from shared.protocol import Manifest, decode_reply, decode_request, encode_reply
from shared.schema import POSITIVE_KINDS, EventKind
from simulations.runfolder import RunFolder

KINDS = ("promote", "sign-flip", "noise")
#: A target is drawn from this share of the catalogue, the least popular items.
TAIL = 0.2
#: The largest boost; beyond it float32 entries could overflow and the server would refuse them.
MAX_BOOST = 1e6


@dataclass(frozen=True)
class Attack:
    """What hostile devices do. target: catalogue index to promote. devices: their numbers. ConfigError if unusable."""

    kind: str
    target: int
    devices: frozenset[int]
    boost: float = 1.0
    count: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"found attack {self.kind!r}; expected one of {', '.join(KINDS)}")
        if not 0 < self.boost <= MAX_BOOST:
            raise ConfigError(f"found boost {self.boost:g}; expected above 0, at most {MAX_BOOST:g}")


class HostileApp:
    """The ClientApp with some devices turned hostile; give it to InlineGrid as `client_app`."""

    def __init__(self, run: RunFolder, attack: Attack) -> None:
        self._attack = attack
        self._seed = run.config.seed
        self._catalogue = run.catalogue
        privacy = run.config.privacy
        self._limits = Limits("none", "aggregate", epsilon=privacy.epsilon, delta=privacy.delta)
        self._store = Store(":memory:")
        if attack.kind == "promote":
            self._store.replace(_poisoned_rows(run, attack))

    def __call__(self, message: Message, context: Context) -> Message:
        device = int(context.node_config["partition-id"])
        if device not in self._attack.devices:
            return honest_app(message, context)
        manifest, _ = decode_request(message.content)
        if self._attack.kind == "promote" and (manifest.phase == "train" or self._counts(manifest)):
            reply = self._poisoned(device).answer(message.content)
        else:
            reply = honest_app(message, context).content
        if manifest.phase == "train":
            reply = self._bent(reply, manifest, device)
        return Message(reply, reply_to=message)

    def _counts(self, manifest: Manifest) -> bool:
        return manifest.phase == "popularity" and self._attack.count

    def _poisoned(self, device: int) -> Device:
        """The same device over its poisoned store. It keeps no books and accepts anything."""
        return Device(
            device,
            store=self._store,
            ledger=Ledger(":memory:"),
            catalogue=self._catalogue,
            limits=self._limits,
            seed=self._seed,
        )

    def _bent(self, reply: RecordDict, manifest: Manifest, device: int) -> RecordDict:
        try:
            update = decode_reply(reply, manifest)
        except ProtocolError:
            return reply  # a refusal has nothing to bend
        boost = self._attack.boost
        if self._attack.kind == "noise":
            random = np.random.default_rng((self._seed, manifest.round, device, 23))
            direction = random.standard_normal(update.size)
            direction *= boost * update.norm() / np.linalg.norm(direction)
            bent = AdapterState.unpack(direction.astype(np.float32), update.shapes)
        else:
            bent = update * (-boost if self._attack.kind == "sign-flip" else boost)
        return encode_reply(manifest, bent)


def choose_hostile(devices: int, *, share: float, seed: int) -> frozenset[int]:
    """Device numbers, round(share * devices) of them; a larger share only adds to a smaller one's."""
    if not 0 <= share <= 1:
        raise ConfigError(f"found a hostile share of {share:g}; expected 0 to 1")
    order = np.random.default_rng((seed, 17)).permutation(devices)
    return frozenset(order[: round(share * devices)].tolist())


def choose_target(popularity: NDArray[np.int64], *, seed: int) -> int:
    """An item from the tail: ranked below 80 % of the catalogue. popularity: (N,) counts; ties in catalogue order."""
    tail = np.argsort(-popularity, kind="stable")[len(popularity) - max(1, int(TAIL * len(popularity))) :]
    return int(np.random.default_rng((seed, 19)).choice(tail))


def item_counts(run: RunFolder) -> NDArray[np.int64]:
    """How many positive training events each item has (N,), all devices together; only a simulator can see this."""
    counts = np.zeros(len(run.catalogue), dtype=np.int64)
    store = run.store()
    positive = [int(kind) for kind in POSITIVE_KINDS]
    for device in range(run.devices):
        history = store.history(device, run.catalogue)
        liked = np.isin(history.kinds, positive) & (history.roles == Role.TRAIN)
        counts += np.bincount(history.items[liked], minlength=len(counts))
    store.close()
    return counts


def _poisoned_rows(run: RunFolder, attack: Attack) -> Iterator[Row]:
    store = run.store()
    for device in sorted(attack.devices):
        yield from _with_target(device, store.history(device, run.catalogue), run.catalogue, target=attack.target)
    store.close()


def _with_target(device: int, history: History, catalogue: Catalogue, *, target: int) -> Iterator[Row]:
    """A device's events, each followed a second later by a click on the target."""
    target_id = catalogue.items[target].id
    columns = (history.items, history.times, history.kinds, history.values)
    events = zip(*(column.tolist() for column in columns), strict=True)
    for number, (item, moment, kind, value) in enumerate(events):
        train = int(Role.TRAIN)
        yield device, 2 * number, catalogue.items[item].id, known(moment), kind, train, known(value)
        yield device, 2 * number + 1, target_id, known(moment + 1.0), int(EventKind.CLICK), train, None
