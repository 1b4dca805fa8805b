"""The privacy statement that goes with every adapter: numbers from the plan, and the same in plain words."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from shared.config import Config
from shared.privacy.accounting import NoisePlan

NOT_COVERED = (
    "a server that runs other software than this one",
    "earlier or other runs on the same people, including runs made to choose settings",
    "the fact that a device took part, and when",
    "what a person's own device shows to whoever uses it",
)


def privacy_facts(config: Config, *, devices: int, noise: NoisePlan | None) -> dict[str, Any]:
    """The content of privacy.json. epsilon is what the planned releases add up to, never a typed-in number."""
    if noise is None:
        return {
            "mode": "none",
            "statement": "No privacy: updates were sent without clipping or noise. Whoever sees an update or this "
            "adapter may learn what a person did. Use it for experiments on public data only.",
        }
    amplified = config.training.window_sample_rate < 1
    facts: dict[str, Any] = {
        "mode": config.privacy.mode,
        "unit": f"one window of up to {config.model.history} consecutive events of one person",
        "adjacency": "add or remove one unit",
        "trust": config.privacy.trust,
        "epsilon": noise.epsilon,
        "delta": config.privacy.delta,
        "mechanism": "Gaussian",
        "noise_multipliers": {
            "popularity": noise.popularity,
            "train": noise.train,
            "validate": noise.validate,
        },
        "clip_norm": config.training.clip_norm,
        "participation_cap": noise.participations,
        "devices": devices,
        "accountant": f"opacus RDP {version('opacus')}" if amplified else "exact Gaussian composition",
        "not_covered": list(NOT_COVERED),
    }
    return {**facts, "statement": _in_words(facts)}


def _in_words(facts: dict[str, Any]) -> str:
    if facts["trust"] == "local":
        trust = "Each device adds all of this noise itself, so nobody else has to be trusted for it."
    else:
        trust = (
            "Each device adds a share of the noise and the sum carries all of it. Until secure aggregation is in"
            " place, the server sees the single replies and is trusted to look only at their sum."
        )
    return (
        f"The unit that is protected is {facts['unit']}. Over a device's life, everything that its behaviour flowed"
        f" into (a popularity count, at most {facts['participation_cap']} training rounds, one quality comparison)"
        f" is ({facts['epsilon']:.2f}, {facts['delta']:g})-differentially private for adding or removing one such"
        f" unit. A person with several units is protected less than one unit is. {trust}"
        f" Not covered: {'; '.join(facts['not_covered'])}."
    )
