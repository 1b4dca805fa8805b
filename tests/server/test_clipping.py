"""The clip follows the asked quantile of norms, from nothing but a noisy share."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.budget import quantile_weight
from server.clipping import next_clip
from shared.adapter import AdapterState
from shared.config import Config, merge
from shared.protocol import BELOW_CLIP


def config(quantile: float = 0.5, *, rate: float = 0.2) -> Config:
    return merge(Config(), {"privacy": {"mode": "user", "clip_quantile": quantile, "clip_learning_rate": rate}})


def answer(settings: Config, clip: float, share: float, *, noise: float = 0.0) -> AdapterState:
    """The released mean when this share of devices was within the clip."""
    mean = quantile_weight(settings, clip) * (share - 0.5) + noise
    return AdapterState({BELOW_CLIP: np.array([mean], dtype=np.float32)})


@pytest.mark.parametrize(
    ("share", "factor"),
    [(0.5, 1.0), (1.0, math.exp(-0.1)), (0.0, math.exp(0.1)), (0.75, math.exp(-0.05))],
)
def test_one_step_by_hand(share: float, factor: float) -> None:
    assert next_clip(config(), clip=3.0, update=answer(config(), 3.0, share)) == pytest.approx(3.0 * factor, rel=1e-5)


@given(st.floats(1e-6, 1e6), st.floats(-1e6, 1e6), st.floats(0.01, 0.99))
def test_whatever_the_noise_one_step_is_capped(clip: float, noise: float, quantile: float) -> None:
    settings = config(quantile, rate=0.3)
    after = next_clip(settings, clip=clip, update=answer(settings, clip, 0.5, noise=noise * clip))
    assert clip * math.exp(-0.3) <= after <= clip * math.exp(0.3)


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.05, 5.0])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_clip_finds_the_quantile_of_the_norms(quantile: float, start: float, noise: float) -> None:
    generator = np.random.default_rng(7)
    norms = generator.lognormal(0.0, 0.5, 4000)
    settings, clip = config(quantile), start
    trail = []
    for _ in range(150):
        cohort = generator.choice(norms, 100)
        drawn = noise * quantile_weight(settings, clip) * generator.standard_normal()
        clip = next_clip(
            settings, clip=clip, update=answer(settings, clip, float(np.mean(cohort <= clip)), noise=drawn)
        )
        trail.append(clip)
    wanted = float(np.quantile(norms, quantile))
    assert np.median(trail[100:]) == pytest.approx(wanted, rel=0.15)
