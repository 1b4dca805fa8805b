"""How much noise each side adds, what it is charged as, and which plans are refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ProtocolError
from shared.noise import LEAST_CLIP, MODES, Layer, Noise
from shared.privacy.accounting import Release
from shared.privacy.plan import lattice_sensitivity

WINDOW, PERSON = Layer(multiplier=3.0, clip=0.5), Layer(multiplier=4.0, clip=0.25)
PLAN: dict[str, Any] = {"mode": "event", "trust": "aggregate", "by": "device", "quorum": 9, "event": WINDOW}
#: A plan of each mode, as a server makes them.
PLANS: dict[str, Noise] = {
    "none": Noise("none", "aggregate", "device", quorum=9),
    "event": Noise(**PLAN),
    "user": Noise("user", "aggregate", "server", 9, user=PERSON, bound=0.25),
    "both": Noise("both", "aggregate", "server", 9, event=WINDOW, user=PERSON, bound=0.25),
    "local": Noise("both", "local", "device", 9, event=WINDOW, user=PERSON, bound=0.25),
    "secure": Noise("user", "aggregate", "device", 9, user=PERSON, bound=0.25, scale=1000.0),
    "sampled": Noise("user", "aggregate", "server", 9, user=PERSON, bound=0.2, user_rate=0.1, user_steps=30),
}


def plan(**changes: Any) -> Noise:
    return Noise(**{**PLAN, **changes})


#: The table of the module: (changes, std, of one device, of the server, of the sum of 16 replies).
@pytest.mark.parametrize(
    ("noise", "std", "device", "server", "of_the_sum"),
    [
        (plan(trust="local"), 1.5, 1.5, 0.0, 1.5 * 4),  # std sqrt(n)
        (plan(), 1.5, 0.5, 0.0, 0.5 * 4),  # std sqrt(n / quorum)
        (PLANS["secure"], 1.0, 1 / 3, 0.0, 4 / 3),
        (PLANS["user"], 1.0, 0.0, 1.0, 1.0),  # std, whoever answers
        (PLANS["both"], 1.5, 0.0, 1.5, 1.5),  # the larger of 3 x 0.5 and 4 x 0.25
        (PLANS["local"], 1.5, 1.5, 0.0, 6.0),
        (PLANS["none"], 0.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_table_of_who_adds_what(noise: Noise, std: float, device: float, server: float, of_the_sum: float) -> None:
    assert noise.std == pytest.approx(std)
    assert noise.device_std == pytest.approx(device)
    assert noise.server_std == pytest.approx(server)
    assert noise.std_of_sum(16) == pytest.approx(of_the_sum)


@given(quorum=st.integers(1, 10_000), more=st.integers(0, 10_000), z=st.floats(0.01, 1e4), clip=st.floats(1e-3, 1e3))
def test_once_the_quorum_is_met_the_sum_carries_all_of_the_noise(quorum: int, more: int, z: float, clip: float) -> None:
    layer = Layer(z, clip)
    noise = plan(event=layer, quorum=quorum)
    assert noise.std_of_sum(quorum + more) >= z * clip * (1 - 1e-9)
    assert noise.std_of_sum(quorum) == pytest.approx(z * clip)
    assert plan(trust="local", event=layer, quorum=quorum).std_of_sum(1) == pytest.approx(z * clip)
    central = Noise("user", "aggregate", "server", quorum, user=layer, bound=clip)
    assert central.std_of_sum(quorum) == central.std_of_sum(1) == pytest.approx(z * clip)


def test_shares_that_are_drawn_really_add_up() -> None:
    noise = plan()
    generator = np.random.default_rng(0)
    total = sum(generator.normal(0, noise.device_std, 20_000) for _ in range(12))
    assert np.std(total) == pytest.approx(noise.std_of_sum(12), rel=0.02)


def test_the_ledger_writes_down_the_protected_quantity_and_not_the_share() -> None:
    assert plan().releases("train", dimension=7, sample_rate=0.5, steps=1) == [Release("train", 3.0, 0.5, 1)]
    local = plan(trust="local")
    assert local.releases("validate", dimension=1) == [Release("validate", 3.0)]
    assert local.releases("train", dimension=7, sample_rate=0.5, steps=2) == [Release("train", 3.0, 0.5, 2)]
    assert PLANS["none"].releases("train", dimension=7) == []


def test_two_units_are_charged_for_the_one_noise_that_is_really_there() -> None:
    """A noise of 1.5 is 3 clips of a window and 6 clips of a person."""
    for name in ("both", "local"):
        assert PLANS[name].releases("train", dimension=7, sample_rate=0.5) == [
            Release("train", 3.0, 0.5),
            Release("train", 6.0, unit="user"),
        ]
    other = Noise("both", "aggregate", "server", 9, event=Layer(1.0, 0.5), user=PERSON, bound=0.25)
    assert [release.noise_multiplier for release in other.releases("train", dimension=7)] == [2.0, 4.0]


def test_noise_of_several_local_steps_is_charged_as_planned_and_no_less() -> None:
    """Opacus adds what the window's layer asks for in each step; the person's larger noise is not in a single step."""
    noise = Noise("both", "local", "device", 1, event=Layer(1.0, 0.5), user=PERSON, bound=0.25)
    assert noise.releases("train", dimension=7, steps=3)[0] == Release("train", 1.0, steps=3)


def test_rounds_that_are_priced_together_are_one_release_of_training_alone() -> None:
    assert PLANS["sampled"].releases("train", dimension=7) == [Release("train", 4.0, 0.1, 30, "user")]
    assert PLANS["sampled"].releases("popularity", dimension=7) == [Release("popularity", 4.0, unit="user")]


def test_integer_noise_is_charged_at_the_sensitivity_after_rounding() -> None:
    l2, l1 = lattice_sensitivity("user", grid=250.0, dimension=16)
    assert l2 == 252.0  # 250 steps and half a step in each of 16 entries
    [release] = PLANS["secure"].releases("train", dimension=16)
    assert release == Release("train", 4.0, unit="user", l2=l2, l1=l1)
    assert PLANS["secure"].lattice_std(16) == 4.0 * 252.0


def test_two_units_share_the_larger_integer_noise() -> None:
    both = Noise("both", "aggregate", "device", 9, event=WINDOW, user=PERSON, bound=0.25, scale=1000.0)
    window, person = both.releases("train", dimension=16)
    assert both.lattice_std(16) == 3.0 * 504.0  # the window's: 500 steps and one in each entry
    assert (window.noise_multiplier, person.noise_multiplier) == (3.0, pytest.approx(3.0 * 504.0 / 252.0))
    assert window.noise_multiplier * window.l2 == pytest.approx(person.noise_multiplier * person.l2)


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_survives_its_way_through_a_manifest(name: str) -> None:
    assert Noise.from_dict(json.loads(json.dumps(PLANS[name].to_dict()))) == PLANS[name]


positive = st.floats(1e-6, 1e6)
layers = st.builds(Layer, positive, positive)


@st.composite
def sound_plans(draw: st.DrawFn) -> Noise:
    mode = draw(st.sampled_from(sorted(MODES)))
    event = draw(layers) if "event" in MODES[mode] else None
    user = draw(layers) if "user" in MODES[mode] else None
    trust, by = draw(st.sampled_from([("local", "device"), ("aggregate", "device"), ("aggregate", "server")]))
    if user is None:
        by = "device"
    bound = user.clip * draw(st.floats(1e-3, 1.0)) if user else math.inf
    return Noise(mode, trust, by, draw(st.integers(1, 10**6)), event=event, user=user, bound=bound)


@given(sound_plans())
def test_any_sound_plan_survives_and_charges_each_of_its_units_once(noise: Noise) -> None:
    assert Noise.from_dict(json.loads(json.dumps(noise.to_dict()))) == noise
    releases = noise.releases("train", dimension=3)
    assert tuple(release.unit for release in releases) == MODES[noise.mode]
    clips = {"event": noise.event, "user": noise.user}
    for release in releases:  # never for more noise than there is, never for less than was asked
        layer = clips[release.unit]
        assert layer is not None
        assert release.noise_multiplier * layer.clip == pytest.approx(noise.std)
        assert release.noise_multiplier >= layer.multiplier * (1 - 1e-12)


@pytest.mark.parametrize(
    ("clip", "bound", "sound"),
    [
        (1e-18, 1e-18, True),
        (1 / LEAST_CLIP, 1 / LEAST_CLIP, True),
        (0.99e-18, 0.99e-18, False),
        (1.01e18, 1.0, False),
        (1.0, 0.99e-18, False),
        (1.0, 1e-18, True),
    ],
)
@pytest.mark.parametrize("mode", ["user", "both"])
def test_clips_at_which_float32_noise_would_lose_its_size_are_refused(
    mode: str, clip: float, bound: float, sound: bool
) -> None:
    assert LEAST_CLIP == 1e-18
    window = Layer(2.0, 1.0) if mode == "both" else None
    noise = Noise(mode, "aggregate", "server", 4, event=window, user=Layer(2.0, clip), bound=bound)
    if sound:
        assert Noise.from_dict(noise.to_dict()) == noise
    else:
        with pytest.raises(ProtocolError, match="unusable noise plan"):
            Noise.from_dict(noise.to_dict())


@pytest.mark.parametrize("clip", [0.99e-18, 1.01e18])
@pytest.mark.parametrize("mode", ["event", "both"])
def test_a_windows_clip_has_the_same_limits(mode: str, clip: float) -> None:
    plan = PLANS[mode].to_dict()
    with pytest.raises(ProtocolError, match="unusable noise plan"):
        Noise.from_dict({**plan, "event": {"multiplier": 2.0, "clip": clip}})


BOTH = PLANS["both"].to_dict()
SECURE = PLANS["secure"].to_dict()
EVENT = PLANS["event"].to_dict()
bad_sizes = st.sampled_from([0.0, -1.0, math.inf, -math.inf, math.nan, None, "many", [], 10**400])
SPOILT: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "a layer": st.tuples(st.sampled_from(["event", "user"]), st.sampled_from(["multiplier", "clip"]), bad_sizes).map(
        lambda way: {**BOTH, way[0]: {**BOTH[way[0]], way[1]: way[2]}}
    ),
    "a layer that is none": st.tuples(
        st.sampled_from(["event", "user"]), st.sampled_from([None, {}, [], "x", 3, {"multiplier": 2.0}])
    ).map(lambda way: {**BOTH, way[0]: way[1]}),
    "a layer too many": st.sampled_from([{**EVENT, "user": BOTH["user"]}, {**EVENT, "mode": "none"}]),
    "mode": st.one_of(st.none(), st.text(max_size=5), st.integers()).map(lambda found: {**BOTH, "mode": found}),
    "trust": st.one_of(st.none(), st.text(max_size=5)).map(lambda found: {**BOTH, "trust": found}),
    "by": st.one_of(st.none(), st.text(max_size=5)).map(lambda found: {**BOTH, "by": found}),
    "noise by the server under local trust": st.just({**BOTH, "trust": "local"}),
    "noise by the server at event level": st.just({**EVENT, "by": "server"}),
    "quorum": st.sampled_from([0, -4, math.inf, math.nan, "x", None, []]).map(lambda found: {**BOTH, "quorum": found}),
    "bound": st.one_of(st.floats(max_value=0.0), st.sampled_from([math.nan, "x", [], None, 0.2500001, 1e9])).map(
        lambda found: {**BOTH, "bound": found}
    ),
    "scale": st.one_of(st.floats(max_value=-1e-9), st.sampled_from([math.nan, math.inf, None, "x"])).map(
        lambda found: {**SECURE, "scale": found}
    ),
    "integers without a bound": st.just({**EVENT, "scale": 10.0}),
    "integers with noise by the server": st.just({**SECURE, "by": "server"}),
    "integers under local trust": st.just({**SECURE, "trust": "local"}),
    "rate": st.sampled_from([0.0, -0.1, 1.5, math.nan, None, "x"]).map(lambda found: {**BOTH, "user_rate": found}),
    "steps": st.sampled_from([-1, math.inf, math.nan, None, "x"]).map(lambda found: {**BOTH, "user_steps": found}),
    "a missing key": st.sampled_from(sorted(BOTH)).map(lambda name: {k: v for k, v in BOTH.items() if k != name}),
    "no plan": st.sampled_from([None, "noise", [], {}, 3]),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_plan_that_means_less_noise_than_it_says_is_refused(name: str) -> None:
    @given(SPOILT[name])
    def every(values: Any) -> None:
        with pytest.raises(ProtocolError) as caught:
            Noise.from_dict(values)
        assert caught.value.code == "bad-message"

    every()
