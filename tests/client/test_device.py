"""A device answers with the contract or a code, never charges for what it refuses, and charges before it computes."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client import device as device_module
from client import trainer
from client.limits import Limits
from client.store import Role
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, load_adapter
from shared.errors import BackboneError, ProtocolError
from shared.model import Stage
from shared.privacy.accounting import Release, gaussian_epsilon
from shared.protocol import Manifest, decode_reply
from shared.runtime import runtime_for
from tests.client.small_device import (
    ANYTHING,
    CAREFUL,
    EVENT,
    ITEMS,
    LENGTH,
    OPEN,
    SHELF,
    TRAINING,
    Home,
    global_state,
    question,
    rows,
    tiny_config,
    tiny_runtime,
)

PHASES = ("popularity", "train", "validate")
ADDRESS = {"schema": 1, "run": "r", "round": 3}


pytestmark = pytest.mark.usefixtures("own_cache")


def refusal(reply: RecordDict, phase: str | None) -> str:
    """The code of a refusal that carries nothing but its address."""
    assert set(reply) == {"config"}
    values = dict(reply["config"])
    code = values.pop("refusal")
    assert values == ({} if phase is None else {**ADDRESS, "phase": phase})
    return str(code)


def answered(reply: RecordDict, manifest: Manifest) -> AdapterState:
    """The content of an answer that carries nothing but its address and one packed array."""
    assert set(reply) == {"config", "arrays"}
    assert dict(reply["config"]) == {**ADDRESS, "phase": manifest.phase}
    assert set(reply["arrays"]) == {"packed"}
    return decode_reply(reply, manifest)


def event(**changes: float) -> dict[str, Any]:
    """EVENT with its layer changed: multiplier, clip."""
    return {**EVENT, "event": {**EVENT["event"], **changes}}


def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the noise out of counts and comparisons."""
    monkeypatch.setattr(trainer, "gaussian", lambda count, *, std, seed: np.zeros(count))


# --- what leaves the device --------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("limits", [CAREFUL, ANYTHING])
def test_an_answer_is_its_address_and_one_packed_array(phase: str, limits: Limits) -> None:
    home = Home(limits=limits)
    manifest, content = question(phase)
    state = answered(home.device.answer(content), manifest)
    assert state.shapes == manifest.reply
    assert home.charges == [phase]


@pytest.mark.parametrize("phase", PHASES)
def test_a_device_without_events_answers_like_any_other(phase: str) -> None:
    home = Home(events=[])
    manifest, content = question(phase)
    state = answered(home.device.answer(content), manifest)
    assert state.norm() > 0  # noise
    assert home.charges == [phase]


@pytest.mark.parametrize("phase", PHASES)
def test_without_privacy_nothing_is_added_and_nothing_charged(phase: str) -> None:
    home = Home(events=[], limits=ANYTHING)
    manifest, content = question(phase, noise=OPEN)
    assert answered(home.device.answer(content), manifest).norm() == 0.0
    assert home.charges == []


NAN = np.array([np.nan], dtype=np.float32)


def bad_state(**changed: np.ndarray) -> AdapterState:
    return global_state(tiny_runtime(), **changed)


def without(name: str) -> AdapterState:
    state = bad_state()
    return state.select([key for key in state if key != name])


#: name: (phase, changes to a sound message, limits, code)
REFUSED: dict[str, tuple[str, dict[str, Any], Limits, str]] = {
    "another catalogue": ("train", {"catalogue": "c" * 64}, CAREFUL, "catalogue"),
    "another backbone": ("train", {"backbone": "b" * 64}, CAREFUL, "backbone"),
    "a backbone that is not here": (
        "train",
        {
            "model": None,
            "settings": {"seed": 0, "model": {"backbone": "no/where"}, "prior": {}, "lora": {}, "noise": EVENT},
        },
        CAREFUL,
        "backbone",
    ),
    "settings of a newer version": (
        "train",
        {"settings": {"seed": 0, "model": {"depth": 3}, "prior": {}, "lora": {}, "noise": EVENT}},
        CAREFUL,
        "bad-message",
    ),
    "no settings": ("train", {"settings": {}}, CAREFUL, "bad-message"),
    "NaN in the adapter": ("train", {"state": {"gamma_weight": NAN}}, CAREFUL, "bad-message"),
    "infinity in the adapter": ("validate", {"state": {"gamma_weight": NAN / 0}}, CAREFUL, "bad-message"),
    "a parameter of another shape": ("train", {"state": {"gamma_weight": np.ones(2)}}, CAREFUL, "bad-message"),
    "an unknown parameter": ("validate", {"state": {"delta.weight": np.ones(1)}}, CAREFUL, "bad-message"),
    "popularity of another length": ("train", {"state": {POPULARITY: np.ones(3)}}, CAREFUL, "bad-message"),
    "no noise plan": ("train", {"noise": None}, CAREFUL, "bad-message"),
    "a noise plan that is text": ("popularity", {"noise": "a lot"}, CAREFUL, "bad-message"),
    "no noise multiplier": ("validate", {"noise": event(multiplier=0.0)}, CAREFUL, "bad-message"),
    "a negative noise multiplier": ("train", {"noise": event(multiplier=-2.0)}, CAREFUL, "bad-message"),
    "a quorum of nobody": ("popularity", {"noise": {**EVENT, "quorum": 0}}, CAREFUL, "bad-message"),
    "an unknown mode": ("train", {"noise": {**EVENT, "mode": "house"}}, CAREFUL, "bad-message"),
    "a mode without its layer": ("train", {"noise": {**EVENT, "mode": "user"}}, CAREFUL, "bad-message"),
    "an unknown trust": ("train", {"noise": {**EVENT, "trust": "me"}}, CAREFUL, "bad-message"),
    "no training plan": ("train", {"training": None}, CAREFUL, "bad-message"),
    "no local step": ("train", {"training": {**TRAINING, "local_steps": 0}}, CAREFUL, "bad-message"),
    "a sample rate above 1": ("train", {"training": {**TRAINING, "window_sample_rate": 1.5}}, CAREFUL, "bad-message"),
    "several steps on a share of the noise": (
        "train",
        {"training": {**TRAINING, "local_steps": 2}},
        ANYTHING,
        "trust",
    ),
    "an unprotected round": ("train", {"noise": OPEN}, CAREFUL, "trust"),
    "an unprotected count": ("popularity", {"noise": OPEN}, CAREFUL, "trust"),
    "trust in the sum": ("validate", {}, Limits("event", "local", epsilon=8.0, delta=1e-5), "trust"),
    "no budget left": ("train", {}, Limits("event", "aggregate", epsilon=0.5, delta=1e-5), "budget"),
    "an answer to nothing": ("train", {"reply": {}}, CAREFUL, "bad-message"),
    "an answer of unknown names": ("train", {"reply": {"history": (9,)}}, CAREFUL, "bad-message"),
    "an answer of another shape": ("train", {"reply": {"gamma.weight": (2,)}}, CAREFUL, "bad-message"),
    "counts of other items": ("popularity", {"reply": {POPULARITY: (ITEMS + 1,)}}, CAREFUL, "bad-message"),
    "a whole row of comparisons": ("validate", {"reply": {"difference": (5,)}}, CAREFUL, "bad-message"),
    "delivery that nobody asked for": ("install", {}, CAREFUL, "bad-message"),
    "delivery with a question": ("install", {"reply": {"difference": (1,)}}, CAREFUL, "bad-message"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_gets_a_code_and_costs_nothing(name: str) -> None:
    phase, changes, limits, code = REFUSED[name]
    changes = dict(changes)
    if "state" in changes:
        changes["state"] = bad_state(**{key: np.float32(value) for key, value in changes["state"].items()})
    home = Home(limits=limits)
    _, content = question(phase, **changes)
    assert refusal(home.device.answer(content), phase) == code
    assert home.charges == []


def test_a_delivery_without_popularity_is_refused(tmp_path: Path) -> None:
    home = Home(adapter_folder=tmp_path / "adapter")
    _, content = question("install", state=without(POPULARITY))
    assert refusal(home.device.answer(content), "install") == "bad-message"
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (RecordDict(), "bad-message"),
        (RecordDict({"config": ConfigRecord({"manifest": "{"})}), "bad-message"),
        (RecordDict({"config": ConfigRecord({"refusal": "budget"})}), "bad-message"),
    ],
)
def test_what_is_no_message_gets_a_code_without_an_address(content: RecordDict, code: str) -> None:
    assert refusal(Home().device.answer(content), None) == code


@pytest.mark.parametrize("schema", [0, 2])
def test_another_schema_is_told_apart(schema: int) -> None:
    _, content = question("train")
    values = json.loads(str(content["config"]["manifest"]))
    content["config"]["manifest"] = json.dumps(values | {"schema": schema})
    assert refusal(Home().device.answer(content), None) == "schema"


@pytest.mark.parametrize(
    ("found", "hostile"),
    [
        ('"clip": 2.0', '"clip": 1e999'),
        ('"scale": 0.0', '"scale": 1e999'),
        ('"user_steps": 0', '"user_steps": 1e999'),
        ('"multiplier": 2.0', '"multiplier": 1e999'),
        ('"quorum": 4', '"quorum": 1e999'),
        ('"local_steps": 1', '"local_steps": 1e999'),
        ('"local_learning_rate": 1.0', '"local_learning_rate": 1e999'),
        ('"gamma": 10.0', '"gamma": 1e999'),
        ('"noise": {', '"noise": {"more": [[[[1]]]], '),
    ],
)
def test_numbers_that_json_lets_overflow_are_refused_or_ignored(found: str, hostile: str) -> None:
    home = Home()
    _, content = question("train")
    text = str(content["config"]["manifest"])
    assert found in text
    content["config"]["manifest"] = text.replace(found, hostile)
    reply = home.device.answer(content)
    if "more" in hostile:
        assert home.charges == ["train"]
    else:
        assert refusal(reply, "train") == "bad-message"
        assert home.charges == []


SECRET = "person-007 liked i3"
ERRORS = [
    RuntimeError(SECRET),
    KeyError(SECRET),
    TypeError(SECRET),
    AttributeError(SECRET),
    MemoryError(SECRET),
    sqlite3.OperationalError(SECRET),
    BackboneError(SECRET),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    ("phase", "inside"),
    [
        ("train", "client.trainer.train_locally"),
        ("popularity", "client.trainer.clipped_popularity"),
        ("validate", "client.device.score_catalogue"),
        ("train", "client.store.Store.history"),
        ("train", "client.device.runtime_from_settings"),
    ],
)
def test_an_error_inside_is_one_word_and_no_text(
    phase: str, inside: str, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    home = Home()
    _, content = question(phase)
    monkeypatch.setattr(inside, fail)
    reply = home.device.answer(content)
    assert refusal(reply, phase) == ("backbone" if "settings" in inside and error is ERRORS[-1] else "failed")
    assert home.charges == ([] if "settings" in inside else [phase])
    if error is not ERRORS[-1]:
        assert SECRET not in caplog.text


def test_a_reply_of_the_wrong_form_does_not_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "train_locally", lambda *_, **__: AdapterState({"gamma.weight": np.ones(7)}))
    _, content = question("train")
    assert refusal(Home().device.answer(content), "train") == "failed"


# --- the budget --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "inside"),
    [
        ("train", "client.trainer.train_locally"),
        ("popularity", "client.trainer.clipped_popularity"),
        ("validate", "client.trainer.gaussian"),
    ],
)
def test_the_ledger_is_charged_before_the_answer_is_computed(
    phase: str, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, seen = Home(), []

    def look(*_: object, **__: object) -> None:
        seen.append(home.charges)
        raise RuntimeError

    _, content = question(phase)
    monkeypatch.setattr(inside, look)
    home.device.answer(content)
    assert seen == [[phase]]


def test_a_release_is_written_down_as_the_manifest_plans_it() -> None:
    home = Home(limits=Limits("event", "local", epsilon=50.0, delta=1e-5))
    training = {**TRAINING, "local_steps": 3, "window_sample_rate": 0.5}
    home.device.answer(question("train", noise={**EVENT, "trust": "local"}, training=training)[1])
    home.device.answer(question("popularity", noise={**EVENT, "trust": "local"})[1])
    assert home.ledger.releases(0) == [Release("train", 2.0, 0.5, 3), Release("popularity", 2.0)]


@pytest.mark.parametrize("phase", PHASES)
def test_a_real_device_draws_fresh_noise_and_is_charged_every_time(phase: str) -> None:
    home = Home(seed=None)
    manifest, content = question(phase)
    first, second = (answered(home.device.answer(content), manifest).pack() for _ in range(2))
    assert not np.array_equal(first, second)
    assert home.charges == [phase, phase]


@pytest.mark.parametrize("phase", PHASES)
def test_a_simulated_device_gives_the_same_answer_again_and_is_charged_once(phase: str) -> None:
    home = Home()
    manifest, content = question(phase)
    first, second = (answered(home.device.answer(content), manifest) for _ in range(2))
    assert first == second
    assert home.charges == [phase]
    later, content = question(phase, round=4)
    assert not np.array_equal(decode_reply(home.device.answer(content), later).pack(), first.pack())
    assert home.charges == [phase, phase]


def test_a_device_stops_at_its_own_limit_and_goes_on_ranking() -> None:
    """Two Gaussian releases at z = 1.5 cost epsilon 4.09 at delta 1e-5 (mu = .943), a third would make it 5.17."""
    home = Home(seed=None, limits=Limits("event", "aggregate", epsilon=4.5, delta=1e-5))
    _, content = question("train", noise=event(multiplier=1.5))
    codes = [home.device.answer(content)["config"].get("refusal") for _ in range(4)]
    assert codes == [None, None, "budget", "budget"]
    assert home.charges == ["train", "train"]
    assert home.ledger.spent(0, unit="event", delta=1e-5) == pytest.approx(gaussian_epsilon(2**0.5 / 1.5, delta=1e-5))
    assert len(home.device.recommend(tiny_runtime(), k=3)) == 3


def test_a_device_that_ranks_before_its_first_message_still_trains() -> None:
    home, model = Home(limits=ANYTHING), {"gamma": 3.25}
    home.device.recommend(runtime_for(tiny_config(**model), SHELF), k=3)
    manifest, content = question("train", model=model, noise=OPEN)
    assert answered(home.device.answer(content), manifest).norm() > 0


# --- what the answers say ----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    events=st.lists(st.integers(0, 5), max_size=3).map(lambda full: full * LENGTH),
    window=st.lists(st.integers(0, 5), min_size=1, max_size=LENGTH),
)
def test_one_more_window_moves_the_counts_by_at_most_the_clip(
    events: list[int], window: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet(monkeypatch)
    clip = 1.5
    manifest, content = question("popularity", noise=event(clip=clip))
    whole = events[: len(events) // LENGTH * LENGTH]
    before, after = (
        answered(Home(events=rows(items)).device.answer(content), manifest).pack() for items in (whole, whole + window)
    )
    assert np.linalg.norm(after - before) <= clip * (1 + 1e-6)


def test_counts_are_of_positive_training_events_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.schema import EventKind

    kinds = [EventKind.CLICK, EventKind.SKIP, EventKind.IMPRESSION, EventKind.LIKE, EventKind.CLICK]
    home = Home(events=rows([3, 4, 5, 6, 7], kinds=kinds, held_out=4), limits=ANYTHING)
    manifest, content = question("popularity", noise=OPEN)
    counts = answered(home.device.answer(content), manifest).arrays[POPULARITY]
    assert np.flatnonzero(counts).tolist() == [3, 6]
    assert counts.sum() == 2


def test_training_sends_the_change_of_the_named_parameters_only() -> None:
    names = {"beta.weight": (1,), "gamma.weight": (1,)}
    manifest, content = question("train", reply=names, noise=OPEN)
    update = answered(Home(limits=ANYTHING).device.answer(content), manifest)
    assert list(update) == ["beta.weight", "gamma.weight"]
    assert update.norm() > 0


def one_hot(item: int, height: float) -> np.ndarray:
    array = np.zeros(ITEMS, dtype=np.float32)
    array[item] = height
    return array


def test_a_held_out_item_that_was_met_before_is_compared_as_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores give such an event another role; a file from elsewhere may not, and a code would tell."""
    quiet(monkeypatch)
    manifest, content = question("validate")
    home = Home(events=rows([9, 4, 9], held_out=2))
    assert answered(home.device.answer(content), manifest).pack().tolist() == [0.0]


@pytest.mark.parametrize(
    ("start_beta", "adapter_beta", "expected"), [(0.0, 5.0, 0.5), (5.0, -5.0, -0.5), (5.0, 5.0, 0.0)]
)
def test_the_comparison_is_half_the_ndcg_gain_over_the_true_start(
    start_beta: float, adapter_beta: float, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out item is the only popular one, so the popularity weight alone decides: first or last.

    The start is the start's weights, not the adapter's with its learned part left out; a harmful weight would
    otherwise be compared with itself.
    """
    quiet(monkeypatch)
    model = {"gamma": 0.0, "beta": start_beta}
    beta = np.array([adapter_beta], dtype=np.float32)
    state = global_state(tiny_runtime(**model), beta_weight=beta, **{POPULARITY: one_hot(9, 1.0)})
    manifest, content = question("validate", state=state, model=model)
    difference = answered(Home().device.answer(content), manifest).pack()
    assert difference.tolist() == [expected]


def test_the_comparison_cannot_exceed_its_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet(monkeypatch)
    quality = iter([-100.0, 100.0])  # the start's, then the adapter's
    monkeypatch.setattr(device_module, "ndcg", lambda ranks, k: np.array([next(quality)]))
    manifest, content = question("validate")
    assert answered(Home().device.answer(content), manifest).pack().tolist() == [0.5]


def test_noise_in_the_comparison_covers_its_whole_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """One window can move the clipped value from -1/2 to 1/2: sensitivity 1, share z / sqrt(quorum)."""
    asked: list[float] = []

    def note(count: int, *, std: float, seed: int | None) -> np.ndarray:
        asked.append(std)
        return np.zeros(count)

    monkeypatch.setattr(trainer, "gaussian", note)
    Home().device.answer(question("validate", noise=event(clip=1.0))[1])
    assert asked == [1.0]


def test_a_server_that_noises_a_smaller_range_gets_a_smaller_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger is charged for z; so the answers of any two histories must lie within the clip that z goes with."""
    quiet(monkeypatch)
    answers = []
    for gain in (1.0, -1.0):
        ndcgs = iter([0.0, gain])
        monkeypatch.setattr(device_module, "ndcg", lambda ranks, k, ndcgs=ndcgs: np.array([next(ndcgs)]))
        manifest, content = question("validate", noise=event(clip=1e-3))
        answers.append(float(answered(Home().device.answer(content), manifest).pack()[0]))
    assert abs(answers[0] - answers[1]) <= 1e-3 * (1 + 1e-6)


def test_the_held_out_event_and_what_follows_it_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    real = device_module.score_catalogue

    def note(runtime: Any, histories: Any, *, stage: Stage) -> Any:
        lengths.extend(len(history) for history in histories)
        return real(runtime, histories, stage=stage)

    monkeypatch.setattr(device_module, "score_catalogue", note)
    events = rows([1, 2, 3, 4, 5], held_out=3)
    events[4] = (*events[4][:5], int(Role.HISTORY), None)
    Home(events=events).device.answer(question("validate")[1])
    assert lengths == [3, 3]


# --- delivery ----------------------------------------------------------------------------------------------


def test_a_delivered_adapter_is_kept_with_its_statement_and_ranks(tmp_path: Path) -> None:
    home = Home(adapter_folder=tmp_path / "adapter")
    state = global_state(tiny_runtime(), **{POPULARITY: one_hot(20, 100.0)})
    outcome, privacy = {"shipped": "adapter"}, {"mode": "event", "epsilon": 7.9}
    manifest, content = question("install", state=state, outcome=outcome, privacy=privacy, noise=OPEN)
    assert answered(home.device.answer(content), manifest).pack().tolist() == []
    assert home.charges == []
    adapter, popularity, facts = load_adapter(tmp_path / "adapter")
    assert adapter == tiny_runtime().start
    assert popularity.tolist() == one_hot(20, 100.0).tolist()
    assert (facts["run"], facts["round"], facts["outcome"]) == ("r", 3, outcome)
    assert facts["settings"]["model"] == tiny_config().to_dict()["model"]
    assert json.loads((tmp_path / "adapter" / "privacy.json").read_text()) == privacy
    runtime = tiny_runtime()
    runtime.install(AdapterState({**adapter.arrays, POPULARITY: popularity}))
    assert home.device.recommend(runtime, k=1)[0].item_id == "i20"


def test_a_bad_delivery_leaves_the_adapter_that_is_there(tmp_path: Path) -> None:
    home = Home(adapter_folder=tmp_path / "adapter")
    home.device.answer(question("install", noise=OPEN)[1])
    before = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    for state in (bad_state(gamma_weight=NAN), bad_state(gamma_weight=np.ones(2, dtype=np.float32))):
        assert refusal(home.device.answer(question("install", state=state)[1]), "install") == "bad-message"
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == before


def test_a_refusal_is_what_the_server_counts() -> None:
    manifest, content = question("train", noise=OPEN)
    with pytest.raises(ProtocolError) as caught:
        decode_reply(Home().device.answer(content), manifest)
    assert caught.value.code == "trust"
