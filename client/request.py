"""What a server's message asks of a device, checked before anything is charged for answering it."""

from __future__ import annotations

import hashlib
import math
from typing import Any

from client.trainer import Step
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.errors import ProtocolError
from shared.model import Stage
from shared.noise import LEAST_CLIP, Noise
from shared.protocol import BELOW_CLIP, Manifest
from shared.runtime import Runtime


def check_reply_form(manifest: Manifest, runtime: Runtime) -> None:
    """Refuse an answer that could not be given before anything is charged for it."""
    trained = runtime.start.shapes
    asked = {name: shape for name, shape in manifest.reply.items() if name != BELOW_CLIP}
    layout, reply = runtime.scorer.layout, manifest.reply
    known = {
        "popularity": reply == {POPULARITY: (len(runtime.catalogue),)},
        "prior": layout is not None and reply == layout.shapes,
        "train": bool(asked) and asked.items() <= trained.items() and reply.get(BELOW_CLIP, (1,)) == (1,),
        "validate": reply == {"difference": (len(compared(runtime)),)},
        "install": reply == {} and POPULARITY in manifest.shapes,
    }
    if not known[manifest.phase]:
        raise ProtocolError(f"found a {manifest.phase} message that asks for something else")


def compared(runtime: Runtime) -> tuple[Stage, ...]:
    """Which of a candidate's stages a device compares with the start, in the order of its answer."""
    return ("adapter",) if runtime.scorer.layout is None else ("prior", "adapter")


def read_step(manifest: Manifest, noise: Noise) -> Step:
    """The local training that a manifest asks for; ProtocolError when it is unreadable or not covered by its noise."""
    training: Any = manifest.settings.get("training")
    try:
        rate = float(training["local_learning_rate"])
        step = Step(
            steps=int(training["local_steps"]),
            learning_rate=rate,
            sample_rate=float(training["window_sample_rate"]),
            noise_multiplier=noise.device_std / noise.event.clip if noise.event and noise.by_opacus else 0.0,
            clip_norm=noise.event.clip / rate if noise.event else math.inf,
            names=tuple(sorted(set(manifest.reply) - {BELOW_CLIP})),
        )
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        raise ProtocolError("found no readable training plan in the manifest") from None
    sizes = [float(training.get(name, math.nan)) for name in ("update_clip", "quantile_weight")]
    sound = 1 <= step.steps <= 10_000 and 0 < step.sample_rate <= 1 and 1e-9 <= step.learning_rate <= 1e6
    if not sound or (BELOW_CLIP in manifest.reply and not all(LEAST_CLIP <= size <= 1 / LEAST_CLIP for size in sizes)):
        raise ProtocolError(f"found an unusable training plan {step}")
    if noise.mode == "event" and "attributes" in manifest.settings["model"]["context"]:
        raise ProtocolError("noise for one window does not cover what is read with all of them", code="trust")
    if noise.event and BELOW_CLIP in manifest.reply:
        raise ProtocolError("the noise for one window does not cover what it does to the clip's quantile", code="trust")
    if step.steps > 1 and noise.event and not noise.by_opacus:
        raise ProtocolError("one noise for a whole update protects no event in several local steps", code="trust")
    if step.steps > 1 and noise.event and noise.trust == "aggregate":
        raise ProtocolError("several local steps do not meet epsilon under trust = aggregate", code="trust")
    return step


def refuse_coarse(parameters: AdapterState, clip: float) -> None:
    """ProtocolError when float32 parameters are so large that rounding could outgrow what a window may change.

    An update is a difference of parameters, so it is rounded to their precision; the window's clip does not cover that.
    """
    if 2**-22 * parameters.norm() > 0.01 * clip:
        raise ProtocolError("the adapter is too large for its clip: rounding would outgrow an event", code="trust")


def stream(seed: int, number: int, question: bytes) -> int:
    """Seed of a virtual device's answer to a question: the same question gets the same answer."""
    digest = hashlib.sha256(f"{seed}:{number}:".encode() + question).digest()
    return int.from_bytes(digest[:8], "big") >> 1
