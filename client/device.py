"""The device: the one facade every door uses. It answers a server's messages and ranks for its person.

What a device checks before it answers is its own: model and catalogue fingerprints, the least protection it accepts,
and its ledger, which is charged before anything is computed from behaviour.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from client import trainer
from client.limits import Limits
from client.ranker import recommend, score_catalogue
from client.request import check_reply_form, compared, read_step, refuse_coarse, stream
from client.samples import seen_items, training_windows
from client.secure import SecureDevice
from client.store import History, Role, Store
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, save_adapter
from shared.catalogue import Catalogue
from shared.errors import AdapterError, BackboneError, BudgetError, HomerankError, ProtocolError
from shared.metrics import ndcg, rank_of
from shared.model import Stage
from shared.noise import Noise
from shared.prior import window_moments
from shared.privacy.ledger import Ledger
from shared.protocol import (
    BELOW_CLIP,
    DIFFERENCE_BOUND,
    Manifest,
    decode_request,
    encode_refusal,
    encode_reply,
    request_digest,
)
from shared.runtime import Runtime, public_settings, runtime_from_settings
from shared.schema import Recommendation
from shared.secagg.messages import SecureQuestion, decode_question, is_secure
from shared.secagg.ring import SecurePlan
from shared.secagg.skellam import share_variance

log = logging.getLogger("homerank.client")


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

    def answer(self, content: RecordDict, *, memory: RecordDict | None = None) -> RecordDict:
        """Answer a server's message with one packed array, a stage of secure aggregation, or a refusal code.

        Never raises, never explains. memory: kept between messages, for secure aggregation only.
        """
        manifest: Manifest | None = None
        try:
            if is_secure(content):
                question = decode_question(content)
                manifest = question.manifest
                return self._comply_securely(question, RecordDict() if memory is None else memory, content)
            manifest, state = decode_request(content)
            return encode_reply(manifest, self._comply(manifest, state, question=request_digest(content)))
        except ProtocolError as error:
            log.warning("refused: %s", error)
            return encode_refusal(error.code, manifest)
        except BudgetError as error:
            log.warning("refused: %s", error)
            return encode_refusal("budget", manifest)
        except HomerankError as error:
            log.warning("refused: %s", error)  # for this device's owner; what it says stays here
            return encode_refusal("failed", manifest)
        except Exception as error:  # noqa: BLE001  # Flower would send the text of whatever gets out
            log.warning("failed: %s", type(error).__name__)
            return encode_refusal("failed", manifest)

    def _comply(self, manifest: Manifest, state: AdapterState, *, question: bytes) -> AdapterState:
        runtime = self._verified_runtime(manifest)
        if manifest.phase == "install":
            _install(runtime, state)
            return self._keep(runtime, manifest, state)
        noise = self._accepted_noise(manifest, secure=False)
        reply = self._charged_reply(runtime, manifest, noise, state=state, question=question)
        if manifest.phase == "train" and noise.by_opacus:
            return reply  # the noise is in it already, step by step
        return _with_noise(reply, noise, self._noise_seed(question))

    def _comply_securely(self, question: SecureQuestion, memory: RecordDict, content: RecordDict) -> RecordDict:
        """One stage of secure aggregation. Every check is made in each stage; only `masked` is charged and computed."""
        manifest, digest = question.manifest, request_digest(content)
        runtime = self._verified_runtime(manifest)
        noise = self._accepted_noise(manifest, secure=True)

        def compute() -> NDArray[np.float64]:
            reply = self._charged_reply(runtime, manifest, noise, state=question.state, question=digest)
            return reply.pack().astype(np.float64)

        std = noise.lattice_std(AdapterState.length(manifest.reply))
        variance = share_variance(std, quorum=noise.quorum)
        plan = SecurePlan(noise.bound, noise.scale, noise.quorum, variance)
        seed = self._noise_seed(digest)
        generator = None if seed is None else np.random.default_rng(seed)
        return SecureDevice(memory, plan, compute, generator).answer(question)

    def _noise_seed(self, question: bytes) -> int | None:
        return None if self._seed is None else stream(self._seed, self.number, question)

    def _accepted_noise(self, manifest: Manifest, *, secure: bool) -> Noise:
        noise = Noise.from_dict(manifest.settings.get("noise"))
        self._limits.check(noise, secure=secure, simulated=self._seed is not None)
        return noise

    def _charged_reply(
        self, runtime: Runtime, manifest: Manifest, noise: Noise, *, state: AdapterState, question: bytes
    ) -> AdapterState:
        """Check, charge the ledger, measure: nothing is computed from behaviour before it is paid for."""
        if manifest.phase not in ("popularity", "prior"):
            _install(runtime, state)
        step = read_step(manifest, noise) if manifest.phase == "train" else None
        if step is not None and noise.event and not noise.by_opacus:
            refuse_coarse(state.select(step.names), noise.event.clip)
        if noise.mode != "none":
            self._charge(manifest, noise, step, question=question)
        return self._measure(runtime, manifest, noise, step, self._noise_seed(question))

    def _charge(self, manifest: Manifest, noise: Noise, step: trainer.Step | None, *, question: bytes) -> None:
        """Write down what answering costs; BudgetError when that is too much, and then nothing is answered.

        In a seeded simulation the same question gets the same answer, so asking twice gives nothing away. A real
        device draws fresh noise and is charged each time. Rounds that are priced together are charged once.
        """
        releases = noise.releases(
            manifest.phase,
            dimension=AdapterState.length(manifest.reply),
            sample_rate=step.sample_rate if step else 1.0,
            steps=step.steps if step else 1,
        )
        key = question.hex() if self._seed is not None else secrets.token_hex(16)
        whole_run = [release for release in releases if release.unit == "user" and noise.user_steps]
        charges = [(f"{manifest.run}/rounds", whole_run), (key, [r for r in releases if r not in whole_run])]
        for name, charged in charges if manifest.phase == "train" else [(key, releases)]:
            if charged:
                budgets, delta = self._limits.budgets, self._limits.delta
                self._ledger.charge(self.number, charged, key=name, budgets=budgets, delta=delta)

    def _measure(
        self, runtime: Runtime, manifest: Manifest, noise: Noise, step: trainer.Step | None, seed: int | None
    ) -> AdapterState:
        """The answer before the noise of `_with_noise`, of norm at most `noise.bound`."""
        if step is not None:
            windows = training_windows(self.history(), length=runtime.config.model.history)
            update = trainer.train_locally(runtime.scorer, windows, runtime.table, step=step, seed=seed)
            if BELOW_CLIP in manifest.reply:
                update = _with_quantile(update, manifest.settings["training"])
        elif manifest.phase == "popularity":
            update = self._popularity(runtime, noise)
        elif manifest.phase == "prior":
            update = self._moments(runtime, noise)
        else:
            update = self._differences(runtime, noise, stages=compared(runtime))
        if noise.mode != "none" and not update.is_finite():
            update = update.zeros()  # no clip bounds NaN or infinity, and a refusal would tell that they were there
        return update.clipped(noise.bound)

    def _verified_runtime(self, manifest: Manifest) -> Runtime:
        if manifest.catalogue != self.catalogue.fingerprint:
            raise ProtocolError("the server's catalogue is not this device's", code="catalogue")
        try:
            runtime = runtime_from_settings(manifest.settings, self.catalogue)
        except BackboneError as error:
            raise ProtocolError(str(error), code="backbone") from None
        if manifest.backbone != runtime.backbone.digest:
            raise ProtocolError("the server's backbone is not this device's", code="backbone")
        check_reply_form(manifest, runtime)
        return runtime

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

    def _popularity(self, runtime: Runtime, noise: Noise) -> AdapterState:
        windows = training_windows(self.history(), length=runtime.config.model.history)
        liked = [items[content] for items, content in zip(windows.items.numpy(), windows.content.numpy(), strict=True)]
        clip = noise.event.clip if noise.event else math.inf
        return AdapterState({POPULARITY: trainer.clipped_popularity(liked, count=len(self.catalogue), clip=clip)})

    def _moments(self, runtime: Runtime, noise: Noise) -> AdapterState:
        windows = training_windows(self.history(), length=runtime.config.model.history)
        clip = noise.event.clip if noise.event else math.inf
        if runtime.scorer.layout is None:  # `check_reply_form` has refused such a question
            raise ProtocolError("this model's settings have no prior")
        return AdapterState(window_moments(windows, runtime.table, runtime.scorer.layout, clip=clip))

    def _differences(self, runtime: Runtime, noise: Noise, *, stages: Sequence[Stage]) -> AdapterState:
        """Half the NDCG@10 gain of each stage over the start on this device's held-out event, clipped.

        None for an event that no ranking could offer, on an item met before: a refusal would tell that it is there.
        """
        limit = noise.event.clip / (2 * math.sqrt(len(stages))) if noise.event else math.inf
        gains = np.zeros(len(stages))
        held_out = np.flatnonzero((history := self.history()).roles == Role.VALIDATE)
        if len(held_out):
            before, target = history[: held_out[-1]], int(history.items[held_out[-1]])
            if target not in seen_items(before):
                quality = [_quality(runtime, before, target, stage=stage) for stage in ("start", *stages)]
                limit = min(DIFFERENCE_BOUND, limit)
                gains = np.clip((np.array(quality[1:]) - quality[0]) / 2, -limit, limit)
        return AdapterState({"difference": gains.astype(np.float32)})


def _quality(runtime: Runtime, history: History, target: int, *, stage: Stage) -> float:
    scores = score_catalogue(runtime, [history], stage=stage)[0]
    return float(ndcg([rank_of(scores, target, removed=seen_items(history))], 10)[0])


def _install(runtime: Runtime, state: AdapterState) -> None:
    if not state.is_finite():
        raise ProtocolError("found an adapter with NaN or infinity")
    try:
        runtime.install(state)
    except AdapterError as error:
        raise ProtocolError(str(error)) from None


def _with_quantile(update: AdapterState, training: Any) -> AdapterState:
    """The update, clipped, and whether it had to be: +w/2 when it was within the clip, -w/2 when not."""
    clip, weight = float(training["update_clip"]), float(training["quantile_weight"])
    answer = weight / 2 if update.norm() <= clip else -weight / 2
    return AdapterState({**update.clipped(clip).arrays, BELOW_CLIP: np.array([answer], dtype=np.float32)})


def _with_noise(reply: AdapterState, noise: Noise, seed: int | None) -> AdapterState:
    """The reply with this device's noise, drawn in float64."""
    if not noise.device_std:
        return reply
    noisy = reply.pack() + trainer.gaussian(reply.size, std=noise.device_std, seed=seed)
    return AdapterState.unpack(noisy.astype(np.float32), reply.shapes)
