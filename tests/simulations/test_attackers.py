"""Hostile devices: who they are, what they send, and that it works when nothing stands in their way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict

from client.app import app as honest_app
from client.samples import training_windows
from client.store import History, Role
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY
from shared.catalogue import Catalogue
from shared.errors import ConfigError, DataError
from shared.noise import Noise
from shared.protocol import Manifest, decode_reply, encode_refusal, encode_request
from shared.runtime import public_settings, runtime_for
from shared.schema import EventKind, Item
from simulations import attackers, robustness
from simulations.attackers import Attack, HostileApp, choose_hostile, choose_target, item_counts
from simulations.engines import InlineGrid
from simulations.robustness import ATTACKS, DEFENCES, Outcome, robustness_table
from simulations.runfolder import RunFolder, prepare
from tests.simulations.tiny_runs import tiny_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]

HOSTILE = 3
TARGET = 11
PHASES = ("popularity", "train", "validate")


@pytest.fixture(scope="module")
def run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Twelve devices that nobody has asked anything yet."""
    return prepare(tiny_config(tiny_data), tmp_path_factory.mktemp("run") / "run")


def question(run: RunFolder, phase: str, *, number: int = 1) -> tuple[Manifest, RecordDict]:
    """What the server of a run without privacy asks."""
    runtime = runtime_for(run.config, run.catalogue)
    popularity = {POPULARITY: np.zeros(len(run.catalogue), dtype=np.float32)}
    state = AdapterState({} if phase == "popularity" else {**runtime.start.arrays, **popularity})
    form: dict[str, Any] = {
        "popularity": {POPULARITY: (len(run.catalogue),)},
        "train": runtime.start.shapes,
        "validate": {"difference": (1,)},
    }
    noise = Noise("none", "aggregate", "device", quorum=1)
    settings = {**public_settings(run.config), "noise": noise.to_dict(), "training": run.config.to_dict()["training"]}
    manifest = Manifest(
        run="r",
        round=number,
        phase=phase,
        backbone=runtime.backbone.digest,
        catalogue=run.catalogue.fingerprint,
        shapes=state.shapes,
        reply=form[phase],
        settings=settings,
    )
    return manifest, encode_request(manifest, state)


def ask(run: RunFolder, app: Any, phase: str, *, device: int = HOSTILE, number: int = 1) -> AdapterState:
    """One device's reply, as the server checks it."""
    manifest, content = question(run, phase, number=number)
    grid = InlineGrid(app, devices=run.devices, run_config={"out": str(run.path)})
    message = Message(content, dst_node_id=device + 1, message_type="train" if phase == "train" else "query")
    return decode_reply(next(iter(grid.send_and_receive([message]))).content, manifest)


def hostile(run: RunFolder, kind: str, **changes: Any) -> HostileApp:
    return HostileApp(run, Attack(kind, TARGET, frozenset({HOSTILE}), **changes))


def cosine(one: AdapterState, other: AdapterState) -> float:
    return float(one.pack() @ other.pack() / one.norm() / other.norm())


# --- who and what ------------------------------------------------------------------------------------------


def test_hostile_devices_are_drawn_once_and_only_join() -> None:
    few, many = (choose_hostile(50, share=share, seed=4) for share in (0.1, 0.3))
    assert (len(few), len(many), few < many) == (5, 15, True)
    assert few == choose_hostile(50, share=0.1, seed=4) != choose_hostile(50, share=0.1, seed=5)
    assert choose_hostile(50, share=0, seed=4) == frozenset()
    assert choose_hostile(4, share=1, seed=4) == frozenset(range(4))
    with pytest.raises(ConfigError, match="hostile share"):
        choose_hostile(50, share=1.1, seed=4)


def test_the_target_comes_from_the_tail() -> None:
    popularity = np.array([9, 1, 8, 0, 7, 6, 5, 4, 3, 2])
    found = {choose_target(popularity, seed=seed) for seed in range(30)}
    assert found == {1, 3}
    assert choose_target(popularity, seed=2) == choose_target(popularity, seed=2)
    assert choose_target(np.array([3]), seed=0) == 0


def test_popularity_counts_positive_training_events(run: RunFolder) -> None:
    counts = item_counts(run)
    assert counts.sum() == 12 * 6  # eight clicks each: one for the test, one for validation
    assert counts.shape == (len(run.catalogue),)


@pytest.mark.parametrize("bad", [{"kind": "promotion"}, {"boost": 0.0}, {"boost": 1e7}, {"boost": float("nan")}])
def test_unusable_attacks_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(Attack("promote", 0, frozenset()), **bad)


def test_a_poisoned_store_has_the_target_after_every_event() -> None:
    catalogue = Catalogue(tuple(Item(id=f"i{n}", title="a", text="b") for n in range(3)))
    history = History(
        items=np.array([0, 1]),
        times=np.array([5.0, np.nan]),
        kinds=np.array([EventKind.SKIP, EventKind.LIKE]),
        roles=np.array([Role.TRAIN, Role.VALIDATE]),
        values=np.array([np.nan, 4.0]),
    )
    train = int(Role.TRAIN)
    assert list(attackers._with_target(7, history, catalogue, target=2)) == [
        (7, 0, "i0", 5.0, int(EventKind.SKIP), train, None),
        (7, 1, "i2", 6.0, int(EventKind.CLICK), train, None),
        (7, 2, "i1", None, int(EventKind.LIKE), train, 4.0),
        (7, 3, "i2", None, int(EventKind.CLICK), train, None),
    ]


# --- what they send ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", attackers.KINDS)
@pytest.mark.parametrize("count", [False, True])
def test_replies_are_well_formed_and_others_stay_honest(run: RunFolder, kind: str, phase: str, count: bool) -> None:
    app = hostile(run, kind, boost=5.0, count=count)
    assert ask(run, app, phase, device=HOSTILE + 1) == ask(run, honest_app, phase, device=HOSTILE + 1)
    lies = phase == "train" or (phase == "popularity" and kind == "promote" and count)
    assert (ask(run, app, phase) != ask(run, honest_app, phase)) is lies


def test_sign_flip_is_the_honest_update_reversed(run: RunFolder) -> None:
    assert ask(run, hostile(run, "sign-flip", boost=4.0), "train") == ask(run, honest_app, "train") * -4.0


def test_noise_is_random_and_of_the_length_asked_for(run: RunFolder) -> None:
    honest, app = ask(run, honest_app, "train"), hostile(run, "noise", boost=4.0)
    first, again, later = ask(run, app, "train"), ask(run, app, "train"), ask(run, app, "train", number=2)
    assert first.norm() == pytest.approx(4 * honest.norm(), rel=1e-5)
    assert first == again != later
    assert abs(cosine(first, honest)) < 0.2


def test_promotion_trains_on_the_poisoned_store_and_boosts(run: RunFolder) -> None:
    plain, boosted = (ask(run, hostile(run, "promote", boost=boost), "train") for boost in (1.0, 8.0))
    assert boosted == plain * 8.0
    assert cosine(plain, ask(run, honest_app, "train")) < 0.99


def test_promotion_counts_the_target_after_every_event(run: RunFolder) -> None:
    counts = ask(run, hostile(run, "promote", count=True), "popularity").arrays[POPULARITY]
    store = run.store()
    events = store.history(HOSTILE, run.catalogue)
    store.close()
    assert counts[TARGET] == len(events) + np.count_nonzero(events.items == TARGET)
    assert counts.sum() == 2 * len(events)
    assert len(training_windows(events, length=8)) == 1


def test_boosting_does_not_touch_the_count(run: RunFolder) -> None:
    counts = [ask(run, hostile(run, "promote", count=True, boost=boost), "popularity") for boost in (1.0, 8.0)]
    assert counts[0] == counts[1]


def test_a_refusal_passes_unchanged(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(message: Message, context: Context) -> Message:
        return Message(encode_refusal("failed"), reply_to=message)

    monkeypatch.setattr(attackers, "honest_app", refuse)
    with pytest.raises(attackers.ProtocolError, match="refused: failed"):
        ask(run, hostile(run, "noise"), "train")


# --- what they achieve -------------------------------------------------------------------------------------


def outcomes(data: Path, folder: Path, *attacks: str, **how: Any) -> dict[tuple[str, str], Outcome]:
    config = tiny_config(data, "federation.rounds=4", "federation.cohort=6", "evaluation.every=0", "model.beta=1.0")
    table = robustness_table(config, folder, share=0.25, attacks=attacks, **how)
    return {(line.attack, line.defence): line for line in table}


def test_promotion_raises_the_target_when_nothing_stands_in_its_way(tiny_data: Path, tmp_path: Path) -> None:
    told: list[str] = []
    say: Callable[[str], None] = told.append
    found = outcomes(tiny_data, tmp_path, "none", "promote x10", "promote x10 + count", defences=["none"], progress=say)
    assert told[1] == "attack promote x10, defence none"
    clean, boosted, counted = found.values()
    assert boosted.target_rank < clean.target_rank
    assert counted.exposure > clean.exposure
    assert counted.target_rank < boosted.target_rank


def test_a_defence_takes_back_what_boosting_gained(tiny_data: Path, tmp_path: Path) -> None:
    found = outcomes(tiny_data, tmp_path, "promote x10", defences=["none", "norm-filter"])
    undefended, defended = found.values()
    assert defended.target_rank > undefended.target_rank


def test_nobody_to_show_the_target_to_is_an_error(tiny_data: Path, tmp_path: Path) -> None:
    run = prepare(tiny_config(tiny_data, "federation.rounds=1", "evaluation.every=0"), tmp_path / "run")
    robustness.train_under_attack(run, None)
    with pytest.raises(DataError):
        robustness.measure(run, hostile=frozenset(range(run.devices)), target=TARGET)


def test_unknown_attacks_and_defences_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found 'bribery'"):
        outcomes(tiny_data, tmp_path, "bribery")
    with pytest.raises(ConfigError, match="found 'prayer'"):
        outcomes(tiny_data, tmp_path, "none", defences=["prayer"])
    assert not any(tmp_path.iterdir())


def test_every_named_attack_and_defence_is_usable(tiny_data: Path) -> None:
    for settings in filter(None, ATTACKS.values()):
        Attack(target=0, devices=frozenset(), **settings)
    for names in DEFENCES.values():
        assert tiny_config(tiny_data, f"federation.robust={list(names)}").federation.robust == names
