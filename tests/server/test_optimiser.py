"""FedAvg and FedAdam, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from server.aggregation import trained_names
from server.optimiser import ServerOptimiser, schedule
from shared.adapter import AdapterState
from shared.errors import AdapterError
from shared.sections import Federation


def one(value: float, name: str = "w") -> AdapterState:
    return AdapterState({name: np.array([value], dtype=np.float32)})


def adam(rate: float = 0.1) -> ServerOptimiser:
    return ServerOptimiser.from_config(
        Federation(server_optimizer="adam", server_learning_rate=rate, server_momentum=0.9)
    )


def test_sgd_at_rate_1_is_fedavg() -> None:
    optimiser = ServerOptimiser.from_config(Federation(server_optimizer="sgd", server_learning_rate=1.0))
    start = AdapterState({"a": np.array([1.0, 2.0], dtype=np.float32), "b": np.array([5.0], dtype=np.float32)})
    update = AdapterState({"a": np.array([0.5, -1.0], dtype=np.float32)})
    moved = optimiser.apply(start, update)
    assert moved.arrays["a"].tolist() == [1.5, 1.0]
    assert moved.arrays["b"].tolist() == [5.0]
    assert start.arrays["a"].tolist() == [1.0, 2.0]
    assert optimiser.to_arrays() == {}


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_the_schedule_scales_the_step(kind: str) -> None:
    full, half = (ServerOptimiser(kind, 0.4, 0.9).apply(one(0), one(2), factor=factor) for factor in (1.0, 0.5))
    assert half.arrays["w"][0] == pytest.approx(full.arrays["w"][0] / 2)


def test_the_anchor_takes_the_whole_state_a_part_of_the_way_back() -> None:
    """From (3, 7) the update moves the first to 5; a tenth of the way back to (1, 2) is then -.4 and -.5."""
    optimiser = ServerOptimiser("sgd", 1.0, 0.0, anchor=0.1)
    state, start = (AdapterState({"a": np.float32([x]), "b": np.float32([y])}) for x, y in ((3, 7), (1, 2)))
    update = AdapterState({"a": np.float32([2])})
    moved = optimiser.apply(state, update, start=start)
    assert moved.pack().tolist() == pytest.approx([4.6, 6.5])
    late = optimiser.apply(state, update, factor=0.5, start=start)  # half the step, half the way back
    assert late.pack().tolist() == pytest.approx([3.85, 6.75])
    assert optimiser.apply(state, update).pack().tolist() == [5, 7]
    free = ServerOptimiser.from_config(Federation(server_optimizer="sgd", server_learning_rate=1.0))
    assert free.apply(state, update, start=start).pack().tolist() == [5, 7]
    assert ServerOptimiser.from_config(Federation(anchor=0.2)).anchor == 0.2


def test_the_schedule_falls_to_a_twentieth() -> None:
    assert [schedule(Federation(rounds=4), number) for number in (1, 2, 4)] == [1.0, 0.75, 0.25]
    assert schedule(Federation(rounds=100), 100) == 0.05
    assert schedule(Federation(rounds=100, learning_rate_decay=False), 100) == 1.0


def test_two_adam_steps_by_hand() -> None:
    """beta1 .9, beta2 .99. Updates 2 then -1:

    step 1: m = .2, v = .04; corrected 2 and 4; direction 2 / 2 = 1.
    step 2: m = .18 - .1 = .08, v = .0396 + .01 = .0496; corrected .08 / .19 and .0496 / .0199.
    """
    optimiser = adam()
    first = optimiser.apply(one(1.0), one(2.0))
    assert first.arrays["w"][0] == pytest.approx(1.1, abs=1e-6)
    second = optimiser.apply(first, one(-1.0))
    direction = (0.08 / 0.19) / np.sqrt(0.0496 / 0.0199)
    assert second.arrays["w"][0] == pytest.approx(1.1 + 0.1 * direction, abs=1e-6)
    assert optimiser.first["w"][0] == pytest.approx(0.08, abs=1e-6)
    assert optimiser.second["w"][0] == pytest.approx(0.0496, abs=1e-6)
    assert optimiser.steps == {"w": 2}


def test_a_zero_update_moves_nothing() -> None:
    assert adam().apply(one(3.0), one(0.0)) == one(3.0)


def test_steps_are_counted_for_each_parameter_so_that_alternation_corrects_bias_rightly() -> None:
    names = ["q.lora_A.weight", "q.lora_B.weight", "gamma.weight"]
    optimiser, state = adam(), AdapterState({name: np.zeros(1, dtype=np.float32) for name in names})
    for number in range(1, 5):
        trained = trained_names("alternate", round_number=number, names=names)
        update = AdapterState({name: np.ones(1, dtype=np.float32) for name in trained})
        state = optimiser.apply(state, update)
    assert optimiser.steps == {"q.lora_A.weight": 2, "q.lora_B.weight": 2, "gamma.weight": 4}
    # a constant update has direction 1 at every step, but only if each parameter's own steps are counted
    assert state.arrays["q.lora_A.weight"][0] == pytest.approx(0.2, abs=1e-6)
    assert state.arrays["gamma.weight"][0] == pytest.approx(0.4, abs=1e-6)


def test_an_update_that_does_not_fit_is_refused() -> None:
    wide = AdapterState({"w": np.zeros((3, 1), dtype=np.float32)})
    for kind in ("sgd", "adam"):
        with pytest.raises(AdapterError):
            ServerOptimiser(kind, 1.0, 0.9).apply(one(0.0), one(1.0, name="other"))
        with pytest.raises(AdapterError):
            ServerOptimiser(kind, 1.0, 0.9).apply(one(0.0), wide)


def test_a_restored_optimiser_goes_on_bit_for_bit() -> None:
    whole, state = adam(), one(0.0)
    for value in (1.0, -3.0):
        state = whole.apply(state, one(value))
    restored = adam()
    restored.restore(whole.to_arrays(), whole.steps)
    assert restored.apply(state, one(0.7)) == whole.apply(state, one(0.7))
    assert restored.steps == whole.steps == {"w": 3}
