"""What a manifest may ask of a device, and how its training plan is read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from client.request import check_reply_form, compared, read_step, refuse_coarse, stream
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.errors import ProtocolError
from shared.noise import Layer, Noise
from shared.protocol import BELOW_CLIP
from tests.client.small_device import (
    BOTH,
    EVENT,
    ITEMS,
    OPEN,
    TRAINING,
    USER,
    WITH_PRIOR,
    question,
    tiny_runtime,
)

SHARED, CENTRAL, TWO, NOTHING = (Noise.from_dict(values) for values in (EVENT, USER, BOTH, OPEN))
LOCAL = Noise("event", "local", "device", 1, event=Layer(2.0, 2.0))
LOCAL_TWO = Noise("both", "local", "device", 1, event=Layer(2.0, 1.0), user=Layer(2.0, 2.0), bound=2.0)
SECURE = Noise("event", "aggregate", "device", 4, event=Layer(2.0, 2.0), bound=2.0, scale=1000.0)
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(
    ("noise", "by_opacus", "clip"),
    [
        (LOCAL, 2.0, 2.0),
        (SHARED, 1.0, 2.0),  # z / sqrt(quorum)
        (SECURE, 0.0, 2.0),  # integer noise is added to the rounded update
        (CENTRAL, 0.0, math.inf),
        (TWO, 0.0, 1.0),
        (LOCAL_TWO, 0.0, 1.0),  # one noise for both, added to the whole update
        (NOTHING, 0.0, math.inf),
    ],
)
def test_windows_are_clipped_to_their_layer_and_noised_step_by_step_only_at_event_level(
    noise: Noise, by_opacus: float, clip: float
) -> None:
    manifest, _ = question("train", reply={"gamma.weight": (1,), "beta.weight": (1,)})
    step = read_step(manifest, noise)
    assert (step.noise_multiplier, step.clip_norm) == (by_opacus, clip)
    assert (step.steps, step.sample_rate, step.learning_rate) == (1, 1.0, 1.0)
    assert step.names == ("beta.weight", "gamma.weight")


def test_the_window_clip_is_the_layers_over_the_learning_rate_so_that_the_reply_moves_by_the_layers() -> None:
    manifest, _ = question("train", training={**TRAINING, "local_learning_rate": 0.25, "clip_norm": 99.0})
    assert read_step(manifest, SHARED).clip_norm == 8.0  # the manifest's own clip_norm has no say


def test_attributes_are_not_read_under_a_guarantee_for_one_window() -> None:
    manifest, _ = question("train", model={"context": ["kind", "attributes"]})
    for noise in (SHARED, LOCAL, SECURE):
        with pytest.raises(ProtocolError, match="does not cover what is read with all of them") as caught:
            read_step(manifest, noise)
        assert caught.value.code == "trust"
    for covered in (CENTRAL, TWO, NOTHING):
        assert read_step(manifest, covered).steps == 1


@pytest.mark.parametrize(
    ("noise", "code"), [(SHARED, "trust"), (TWO, "trust"), (LOCAL_TWO, "trust"), (SECURE, "trust")]
)
def test_several_steps_that_the_noise_does_not_cover_are_refused(noise: Noise, code: str) -> None:
    manifest, _ = question("train", training={**TRAINING, "local_steps": 2})
    with pytest.raises(ProtocolError) as caught:
        read_step(manifest, noise)
    assert caught.value.code == code
    for covered in (LOCAL, CENTRAL, NOTHING):
        assert read_step(manifest, covered).steps == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"local_steps": 0},
        {"local_steps": 10_001},
        {"local_steps": "one"},
        {"window_sample_rate": 0.0},
        {"window_sample_rate": 1.1},
        {"window_sample_rate": math.nan},
        {"local_learning_rate": 0.0},
        {"local_learning_rate": -1.0},
        {"local_learning_rate": math.inf},
        {"local_learning_rate": 0.99e-9},
        {"local_learning_rate": 1.01e6},
        {"local_learning_rate": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("noise", [SHARED, CENTRAL, NOTHING])
def test_a_training_plan_that_makes_no_sense_is_refused(changes: dict[str, Any], noise: Noise) -> None:
    manifest, _ = question("train", training={**TRAINING, **changes})
    with pytest.raises(ProtocolError):
        read_step(manifest, noise)


@pytest.mark.parametrize("rate", [1e-9, 1e6])
def test_learning_rates_up_to_the_limits_are_used(rate: float) -> None:
    manifest, _ = question("train", training={**TRAINING, "local_learning_rate": rate})
    assert read_step(manifest, CENTRAL).learning_rate == rate


@pytest.mark.parametrize("clip", [1e-3, 1.0, 1e3])
def test_parameters_whose_rounding_outgrows_a_windows_clip_are_refused(clip: float) -> None:
    """The limit is a norm of 0.01 * 2^22 clips, over all entries together."""
    limit = 0.01 * 2**22 * clip
    refuse_coarse(AdapterState({"a": np.full(4, 0.499 * limit, np.float32)}), clip)
    for entries in (np.full(4, 0.501 * limit), np.array([1.001 * limit]), np.array([1e38])):
        with pytest.raises(ProtocolError, match="rounding would outgrow an event") as caught:
            refuse_coarse(AdapterState({"a": entries.astype(np.float32)}), clip)
        assert caught.value.code == "trust"


WITH_QUANTILE = {"gamma.weight": (1,), BELOW_CLIP: (1,)}


@pytest.mark.parametrize("name", ["update_clip", "quantile_weight"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, 0.99e-18, 1.01e18])
def test_a_quantile_of_no_size_is_refused_where_it_is_asked_for(name: str, value: float) -> None:
    training = {**TRAINING, name: value}
    with pytest.raises(ProtocolError):
        read_step(question("train", reply=WITH_QUANTILE, training=training)[0], CENTRAL)
    read_step(question("train", training=training)[0], CENTRAL)
    assert read_step(question("train", reply=WITH_QUANTILE)[0], CENTRAL).names == ("gamma.weight",)


@pytest.mark.parametrize("noise", [TWO, LOCAL_TWO, SECURE])
def test_the_clips_quantile_is_not_asked_of_a_protected_window(noise: Noise) -> None:
    """An event can turn the answer from one end to the other, by more than the noise of a window covers."""
    with pytest.raises(ProtocolError) as caught:
        read_step(question("train", reply=WITH_QUANTILE)[0], noise)
    assert caught.value.code == "trust"


MOMENTS = {"prior_features": (16 * 17 // 2,), "prior_targets": (16, 8)}
#: phase: (replies that may be asked for, replies that may not).
FORMS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "popularity": (
        [{POPULARITY: (ITEMS,)}],
        [{}, {POPULARITY: (ITEMS + 1,)}, {POPULARITY: (ITEMS,), BELOW_CLIP: (1,)}, {"difference": (1,)}],
    ),
    "prior": (
        [MOMENTS],
        [
            {},
            {"prior_features": (136,)},
            {**MOMENTS, "prior_features": (135,)},
            {**MOMENTS, "prior_targets": (8, 16)},
            {**MOMENTS, "prior_targets": (128,)},
            {**MOMENTS, BELOW_CLIP: (1,)},
            {"prior": (16, 8)},
        ],
    ),
    "train": (
        [{"gamma.weight": (1,)}, WITH_QUANTILE],
        [
            {},
            {BELOW_CLIP: (1,)},
            {"gamma.weight": (2,)},
            {"gamma.weight": (1,), BELOW_CLIP: (2,)},
            {"gamma.weight": (1,), "more": (1,)},
            {POPULARITY: (ITEMS,)},
        ],
    ),
    "validate": ([{"difference": (1,)}], [{}, {"difference": (2,)}, {"difference": (1,), BELOW_CLIP: (1,)}]),
    "install": ([{}], [{"difference": (1,)}, {BELOW_CLIP: (1,)}]),
}


@pytest.mark.parametrize("phase", FORMS)
def test_only_the_answers_of_a_phase_can_be_asked_for(phase: str) -> None:
    runtime = tiny_runtime(prior=WITH_PRIOR if phase == "prior" else None)
    fine, odd = FORMS[phase]
    for reply in fine:
        check_reply_form(question(phase, reply=reply)[0], runtime)
    for reply in odd:
        with pytest.raises(ProtocolError, match=f"found a {phase} message that asks for something else"):
            check_reply_form(question(phase, reply=reply)[0], runtime)


def test_moments_are_not_asked_of_a_model_without_a_prior() -> None:
    for reply in (MOMENTS, {}):
        with pytest.raises(ProtocolError, match="found a prior message that asks for something else"):
            check_reply_form(question("prior", reply=reply)[0], tiny_runtime())


@pytest.mark.parametrize(("prior", "stages"), [(None, ("adapter",)), (WITH_PRIOR, ("prior", "adapter"))])
def test_as_many_differences_are_asked_for_as_there_are_candidates(prior: Any, stages: tuple[str, ...]) -> None:
    """Whatever the message carries: in most stages of secure aggregation that is nothing."""
    runtime = tiny_runtime(prior=prior)
    assert compared(runtime) == stages
    for asked in (1, 2, 3):
        reply = {"difference": (asked,)}
        manifest, _ = question("validate", prior=prior, state=AdapterState({}), reply=reply)
        if asked == len(stages):
            check_reply_form(manifest, runtime)
        else:
            with pytest.raises(ProtocolError, match="found a validate message"):
                check_reply_form(manifest, runtime)


def test_each_device_and_question_has_a_stream_of_its_own() -> None:
    seeds = [stream(seed, number, question) for seed in (0, 1) for number in (0, 1, 10) for question in (b"a", b"b")]
    assert len(set(seeds)) == len(seeds)
    assert stream(0, 1, b"a") == seeds[2]
    assert all(0 <= seed < 2**63 for seed in seeds)
