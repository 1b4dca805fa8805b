"""The clip of whole updates, moved towards a quantile of their norms without seeing a norm."""

from __future__ import annotations

import math

from server.budget import quantile_weight
from shared.adapter import AdapterState
from shared.config import Config
from shared.protocol import BELOW_CLIP


def next_clip(config: Config, *, clip: float, update: AdapterState) -> float:
    """The next clip C, from the released mean of the devices' answers "was my update's norm at most C?".

    Each answer is +w/2 or -w/2, so the released mean is w (share - 1/2) up to noise, and
    `C <- C exp(-rate (share - quantile))` (Andrew et al. 2021, arXiv 1905.03871). Everything here is post-processing of
    a release. One step changes C by at most a factor of exp(rate).
    """
    privacy = config.privacy
    mean = float(update.arrays[BELOW_CLIP][0]) / quantile_weight(config, clip)
    share = min(1.0, max(0.0, mean + 0.5))
    return clip * math.exp(-privacy.clip_learning_rate * (share - privacy.clip_quantile))
