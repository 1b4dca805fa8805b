"""The device: the one facade every door uses. It answers a server's messages and ranks for its person.

What a device checks before it answers is its own: model and catalogue fingerprints, the least protection it accepts,
and its ledger, which is charged before anything is computed from behaviour.
"""

from __future__ import annotations

import hashlib
import logging
import math
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict

from client import trainer
from client.ranker import recommend, score_catalogue
from client.samples import seen_items, training_windows
from client.store import History, Role, Store
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, save_adapter
from shared.catalogue import Catalogue
from shared.errors import AdapterError, BackboneError, BudgetError, ProtocolError
from shared.metrics import ndcg, rank_of
from shared.noise import Noise
from shared.privacy.ledger import Ledger
from shared.protocol import Manifest, decode_request, encode_refusal, encode_reply, request_digest
from shared.runtime import Runtime, public_settings, runtime_from_settings
from shared.schema import Recommendation

log = logging.getLogger("homerank.client")

#: The quality comparison is sent as half the NDCG@10 difference, so one person moves the sum by at most this.
DIFFERENCE_CLIP = 0.5


@dataclass(frozen=True)
class Limits:
    """What this device accepts: the least protection, and the budget of its whole life.

    mode: none accepts anything; event refuses unprotected rounds. trust: local refuses to rely on the sum.
    """

    mode: str
    trust: str
    epsilon: float
    delta: float


class Device:
    """One person's device.

    seed: fixed noise and sampling, for simulations only; None draws from the operating system.
    adapter_folder: where an adapter that the server delivers is kept; None refuses delivery.
    """

    def __init__(
        self,
        number: int,
        *,
        store: Store,
        ledger: Ledger,
        catalogue: Catalogue,
        limits: Limits,
        seed: int | None = None,
        adapter_folder: Path | None = None,
    ) -> None:
        self.number = number
        self.catalogue = catalogue
        self._store = store
        self._ledger = ledger
        self._limits = limits
        self._seed = seed
        self._adapter_folder = adapter_folder

    def history(self) -> History:
        """This person's events, oldest first."""
        return self._store.history(self.number, self.catalogue)

    def recommend(self, runtime: Runtime, *, k: int) -> list[Recommendation]:
        """The k best unseen items with the installed adapter."""
        return recommend(runtime, self.history(), k=k)

    def answer(self, content: RecordDict) -> RecordDict:
        """Answer a server's message with one packed array or a refusal code; never raises, never explains."""
        manifest: Manifest | None = None
        try:
            manifest, state = decode_request(content)
            return encode_reply(manifest, self._comply(manifest, state, question=request_digest(content)))
        except ProtocolError as error:
            log.warning("refused: %s", error)
            return encode_refusal(error.code, manifest)
        except BudgetError as error:
            log.warning("refused: %s", error)
            return encode_refusal("budget", manifest)
        except Exception as error:  # noqa: BLE001  # Flower would send the text of whatever gets out
            log.warning("failed: %s", type(error).__name__)
            return encode_refusal("failed", manifest)

    def _comply(self, manifest: Manifest, state: AdapterState, *, question: bytes) -> AdapterState:
        runtime = self._verified_runtime(manifest, state)
        _check_reply_form(manifest, runtime)
        if manifest.phase == "install":
            return self._keep(runtime, manifest, state)
        noise = Noise.from_dict(manifest.settings.get("noise"))
        self._check_protection(noise)
        step = _step(manifest, noise) if manifest.phase == "train" else None
        seed = None if self._seed is None else _stream(self._seed, self.number, question)
        if noise.mode != "none":
            # In a seeded simulation the same question gets the same answer, so asking twice gives nothing away.
            # A real device draws fresh noise and is charged each time.
            key = question.hex() if self._seed is not None else secrets.token_hex(16)
            release = noise.release(
                manifest.phase,
                sample_rate=step.sample_rate if step else 1.0,
                steps=step.steps if step else 1,
            )
            self._ledger.charge(
                self.number,
                release,
                key=key,
                epsilon=self._limits.epsilon,
                delta=self._limits.delta,
            )
        if step is not None:
            windows = training_windows(self.history(), length=runtime.config.model.history)
            return trainer.train_locally(runtime.scorer, windows, runtime.table, step=step, seed=seed)
        if manifest.phase == "popularity":
            return self._popularity(runtime, noise, seed)
        return self._difference(runtime, noise, seed)

    def _verified_runtime(self, manifest: Manifest, state: AdapterState) -> Runtime:
        if manifest.catalogue != self.catalogue.fingerprint:
            raise ProtocolError("the server's catalogue is not this device's", code="catalogue")
        try:
            runtime = runtime_from_settings(manifest.settings, self.catalogue)
        except BackboneError as error:
            raise ProtocolError(str(error), code="backbone") from None
        if manifest.backbone != runtime.backbone.digest:
            raise ProtocolError("the server's backbone is not this device's", code="backbone")
        if not state.is_finite():
            raise ProtocolError("found an adapter with NaN or infinity")
        if manifest.phase != "popularity":
            try:
                runtime.install(state)
            except AdapterError as error:
                raise ProtocolError(str(error)) from None
        return runtime

    def _check_protection(self, noise: Noise) -> None:
        if self._limits.mode == "event" and noise.mode != "event":
            raise ProtocolError("the server asks for an unprotected update", code="trust")
        if noise.mode == "event" and self._limits.trust == "local" and noise.trust != "local":
            raise ProtocolError("the server asks this device to rely on the sum", code="trust")

    def _keep(self, runtime: Runtime, manifest: Manifest, state: AdapterState) -> AdapterState:
        """Save a delivered adapter, which has just been installed without complaint."""
        if self._adapter_folder is None:
            raise ProtocolError("this device takes no delivered adapters")
        arrays = dict(state.arrays)
        popularity = arrays.pop(POPULARITY)
        facts = {"run": manifest.run, "round": manifest.round, "outcome": manifest.settings.get("outcome")}
        save_adapter(
            self._adapter_folder,
            AdapterState(arrays),
            popularity=popularity,
            peft_config=runtime.peft_config(),
            manifest={
                **facts,
                "backbone": manifest.backbone,
                "catalogue": manifest.catalogue,
                "settings": public_settings(runtime.config),
            },
            privacy=dict(manifest.settings.get("privacy") or {}),
        )
        return AdapterState({})

    def _popularity(self, runtime: Runtime, noise: Noise, seed: int | None) -> AdapterState:
        windows = training_windows(self.history(), length=runtime.config.model.history)
        liked = [items[content] for items, content in zip(windows.items.numpy(), windows.content.numpy(), strict=True)]
        clip = noise.clip if noise.mode == "event" else math.inf
        counts = trainer.noisy_popularity(
            liked, count=len(self.catalogue), clip=clip, noise_std=noise.share * noise.clip, seed=seed
        )
        return AdapterState({POPULARITY: counts})

    def _difference(self, runtime: Runtime, noise: Noise, seed: int | None) -> AdapterState:
        """Half the NDCG@10 gain of the adapter over the start on this device's held-out event, clipped and noised."""
        history = self.history()
        held_out = np.flatnonzero(history.roles == Role.VALIDATE)
        gain = 0.0
        if len(held_out):
            target = int(held_out[-1])
            before = history[:target]
            quality = [
                ndcg(
                    np.array(
                        [
                            rank_of(
                                score_catalogue(runtime, [before], learned=learned)[0],
                                int(history.items[target]),
                                removed=seen_items(before),
                            )
                        ]
                    ),
                    10,
                )[0]
                for learned in (True, False)
            ]
            gain = float(np.clip((quality[0] - quality[1]) / 2, -DIFFERENCE_CLIP, DIFFERENCE_CLIP))
        # Another window of the same person can move the clipped value from one end to the other.
        noisy = gain + trainer.gaussian(1, std=noise.share * 2 * DIFFERENCE_CLIP, seed=seed)
        return AdapterState({"difference": noisy.astype(np.float32)})


def _check_reply_form(manifest: Manifest, runtime: Runtime) -> None:
    """Refuse an answer that could not be given before anything is charged for it."""
    trained = runtime.start.shapes
    known = {
        "popularity": manifest.reply == {POPULARITY: (len(runtime.catalogue),)},
        "train": bool(manifest.reply) and manifest.reply.items() <= trained.items(),
        "validate": manifest.reply == {"difference": (1,)},
        "install": manifest.reply == {} and POPULARITY in manifest.shapes,
    }
    if not known[manifest.phase]:
        raise ProtocolError(f"found a {manifest.phase} message that asks for something else")


def _step(manifest: Manifest, noise: Noise) -> trainer.Step:
    training: Any = manifest.settings.get("training")
    try:
        step = trainer.Step(
            steps=int(training["local_steps"]),
            learning_rate=float(training["local_learning_rate"]),
            sample_rate=float(training["window_sample_rate"]),
            noise_multiplier=noise.share,
            clip_norm=noise.clip if noise.mode == "event" else math.inf,
            names=tuple(sorted(manifest.reply)),
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ProtocolError("found no readable training plan in the manifest") from None
    if not (1 <= step.steps <= 10_000 and 0 < step.sample_rate <= 1 and math.isfinite(step.learning_rate)):
        raise ProtocolError(f"found an unusable training plan {step}")
    if step.steps > 1 and noise.mode == "event" and noise.trust == "aggregate":
        raise ProtocolError("several local steps do not meet epsilon under trust = aggregate", code="trust")
    return step


def _stream(seed: int, number: int, question: bytes) -> int:
    digest = hashlib.sha256(f"{seed}:{number}:".encode() + question).digest()
    return int.from_bytes(digest[:8], "big") >> 1
