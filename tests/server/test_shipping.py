"""Which ranker a comparison ships: the best that is clearly better, and the simpler one where it is not clear."""

from __future__ import annotations

import math

import pytest

from server.shipping import CONFIDENCE, verdict
from shared.model import Stage

Gains = dict[Stage, float]


def test_without_answers_the_start_is_kept_and_the_reason_says_why() -> None:
    found = verdict({}, 0.0, refused="4 no-answer")
    assert (found["shipped"], found["gain"], found["noise"], found["gains"]) == ("start", None, None, {})
    assert "too few devices answered the comparison (4 no-answer)" in found["reason"]


@pytest.mark.parametrize(
    ("gains", "shipped", "gain"),
    [
        ({"adapter": 0.1}, "adapter", 0.1),
        ({"adapter": 0.0}, "start", 0.0),
        ({"adapter": -0.1}, "start", -0.1),
        ({"prior": 0.1, "adapter": 0.2}, "adapter", 0.2),
        ({"prior": 0.2, "adapter": 0.1}, "prior", 0.2),
        ({"prior": 0.2, "adapter": 0.2}, "prior", 0.2),
        ({"prior": -0.1, "adapter": 0.1}, "adapter", 0.1),
        ({"prior": -0.2, "adapter": -0.1}, "start", -0.1),
    ],
    ids=str,
)
def test_without_noise_the_best_is_shipped(gains: Gains, shipped: str, gain: float) -> None:
    found = verdict(gains, 0.0, refused="no refusals")
    assert (found["shipped"], found["gain"], found["gains"]) == (shipped, gain, gains)
    assert "privacy noise" not in found["reason"]
    for stage, value in gains.items():
        assert f"{stage} {value:+.4f}" in found["reason"]


DEVIATION = 0.01
NEEDED = CONFIDENCE * DEVIATION


@pytest.mark.parametrize(
    ("gains", "shipped"),
    [
        ({"adapter": 0.99 * NEEDED}, "start"),
        ({"adapter": 1.01 * NEEDED}, "adapter"),
        ({"prior": 0.99 * NEEDED, "adapter": 0.98 * NEEDED}, "start"),
        ({"prior": 1.01 * NEEDED, "adapter": 2.2 * NEEDED}, "prior"),  # not clearly better than the prior
        ({"prior": 1.01 * NEEDED, "adapter": (1.02 + math.sqrt(2)) * NEEDED}, "adapter"),
        ({"prior": 0.99 * NEEDED, "adapter": 1.01 * NEEDED}, "adapter"),
    ],
    ids=["no", "yes", "neither", "prior", "clearly more", "only the second"],
)
def test_with_noise_a_stage_must_be_clearly_better_than_the_simpler_one(gains: Gains, shipped: str) -> None:
    """Each gain has the noise of one comparison; the difference of two has that of both."""
    found = verdict(gains, DEVIATION, refused="no refusals")
    assert (found["shipped"], found["noise"]) == (shipped, DEVIATION)
    assert f"with privacy noise of standard deviation {DEVIATION:.4f}" in found["reason"]


@pytest.mark.parametrize("gains", [{"adapter": 50.0}, {"prior": 50.0, "adapter": 90.0}], ids=str)
def test_noise_larger_than_any_gain_decides_nothing(gains: Gains) -> None:
    found = verdict(gains, 1.01 / CONFIDENCE, refused="no refusals")
    assert found["shipped"] == "start"
    assert "not clearly better" in found["reason"]


def test_the_words_say_which_of_the_two_it_is() -> None:
    words = {
        "prior": "the prior is better, training on top of it is not",
        "adapter": "the trained adapter is better",
    }
    for gains in ({"prior": 0.2, "adapter": 0.1}, {"prior": 0.1, "adapter": 0.2}):
        found = verdict(gains, 0.0, refused="no refusals")
        assert found["reason"].endswith(words[found["shipped"]])
