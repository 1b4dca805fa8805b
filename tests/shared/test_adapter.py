"""Updates are values with algebra; nothing broadcasts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared.adapter import AdapterState
from shared.errors import AdapterError

SHAPES = {"b": (2, 3), "a": (4,), "c": (1, 1, 2), "scalar": (), "none": (0, 5)}
entries = st.floats(-1e3, 1e3, width=32)


def state(**arrays: object) -> AdapterState:
    return AdapterState({name: np.array(array, dtype=np.float32) for name, array in arrays.items()})


def states() -> st.SearchStrategy[AdapterState]:
    return st.fixed_dictionaries(
        {name: hnp.arrays(np.float32, shape, elements=entries) for name, shape in SHAPES.items()}
    ).map(AdapterState)


def close(left: AdapterState, right: AdapterState, *, tolerance: float = 1e-2) -> bool:
    return np.allclose(left.pack(), right.pack(), rtol=1e-5, atol=tolerance)


@settings(max_examples=40)
@given(states(), states(), states())
def test_addition_is_a_commutative_group(a: AdapterState, b: AdapterState, c: AdapterState) -> None:
    assert close((a + b) + c, a + (b + c))
    assert a + b == b + a
    assert a + a.zeros() == a
    assert (a - a).norm() == 0.0
    assert close((a + b) - b, a)


@settings(max_examples=40)
@given(states(), states(), st.floats(-100, 100))
def test_scaling_is_linear_and_the_norm_homogeneous(a: AdapterState, b: AdapterState, factor: float) -> None:
    assert close((a + b) * factor, a * factor + b * factor, tolerance=0.1)
    assert (a * factor).norm() == pytest.approx(abs(factor) * a.norm(), rel=1e-5, abs=1e-30)
    assert a * 1.0 == a
    assert (a * 0.0).norm() == 0.0


@settings(max_examples=40)
@given(states(), states())
def test_the_norm_is_that_of_the_packed_vector_and_obeys_the_triangle(a: AdapterState, b: AdapterState) -> None:
    assert a.norm() == pytest.approx(float(np.linalg.norm(a.pack().astype(np.float64))))
    assert (a + b).norm() <= (a.norm() + b.norm()) * (1 + 1e-5) + 1e-6


@settings(max_examples=40)
@given(states())
def test_pack_and_unpack_are_inverse(a: AdapterState) -> None:
    packed = a.pack()
    assert packed.dtype == np.float32
    assert packed.shape == (a.size,) == (6 + 4 + 2 + 1,)
    assert AdapterState.unpack(packed, a.shapes) == a
    assert AdapterState.unpack(packed, dict(reversed(a.shapes.items()))) == a  # the order is that of the names


def test_hand_computed_values() -> None:
    a = state(w=[[3.0, 0.0]], v=[4.0])
    assert list(a) == ["v", "w"]
    assert a.pack().tolist() == [4.0, 3.0, 0.0]
    assert a.norm() == 5.0
    assert (a + a * 2).pack().tolist() == [12.0, 9.0, 0.0]


def test_the_norm_of_many_small_entries_is_accumulated_in_float64() -> None:
    assert state(w=np.full(1_000_000, 1e-3)).norm() == pytest.approx(1.0, rel=1e-7)
    assert math.isfinite(state(w=np.full(100, 3e38)).norm())


@pytest.mark.parametrize(
    "other",
    [
        state(w=[1.0]),  # would broadcast over (2,)
        state(w=1.0),
        state(w=[[1.0, 2.0]]),
        state(w=[1.0, 2.0, 3.0]),
        state(v=[1.0, 2.0]),
        state(w=[1.0, 2.0], v=[1.0]),
        state(),
    ],
)
def test_other_names_or_shapes_are_refused(other: AdapterState) -> None:
    mine = state(w=[1.0, 2.0])
    for operation in (lambda: mine + other, lambda: mine - other, lambda: other + mine):
        with pytest.raises(AdapterError, match="found shape"):
            operation()
    assert mine != other


def test_select_and_replace() -> None:
    whole = state(a=[1.0], b=[2.0, 3.0], c=[4.0])
    assert list(whole.select(["c", "a"])) == ["a", "c"]
    assert whole.replace(state(b=[5.0, 6.0])) == state(a=[1.0], b=[5.0, 6.0], c=[4.0])
    assert whole.select([]) == state()
    with pytest.raises(AdapterError, match="no parameter 'd'"):
        whole.select(["d"])
    with pytest.raises(AdapterError, match="no parameter 'd'"):
        whole.replace(state(d=[1.0]))
    with pytest.raises(AdapterError, match="found shape"):
        whole.replace(state(b=[5.0]))


@pytest.mark.parametrize("size", [0, 2, 4])
def test_a_packed_array_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(AdapterError, match=r"expected \(3,\)"):
        AdapterState.unpack(np.zeros(size, dtype=np.float32), {"a": (3,)})
    with pytest.raises(AdapterError, match=r"expected \(3,\)"):
        AdapterState.unpack(np.zeros((1, 3), dtype=np.float32), {"a": (3,)})


def test_an_empty_state_packs_to_nothing() -> None:
    assert state().pack().shape == (0,)
    assert AdapterState.unpack(np.zeros(0, dtype=np.float32), {}) == state()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_finite_means_every_entry(bad: float) -> None:
    assert state(a=[1.0], b=[0.0]).is_finite()
    assert not state(a=[1.0], b=[0.0, bad]).is_finite()


@settings(max_examples=60)
@given(states(), st.floats(1e-3, 1e5))
def test_clipping_scales_to_the_bound_and_leaves_what_is_within(a: AdapterState, bound: float) -> None:
    clipped = a.clipped(bound)
    assert clipped.norm() <= bound * (1 + 1e-6)
    if a.norm() <= bound:
        assert clipped == a
    else:
        assert clipped.norm() == pytest.approx(bound, rel=1e-5)
        assert close(clipped * (a.norm() / bound), a, tolerance=1e-2)


@settings(max_examples=60)
@given(states(), states(), st.floats(1e-2, 1e4))
def test_clipping_never_moves_two_states_apart(a: AdapterState, b: AdapterState, bound: float) -> None:
    """So an event that moves an update by at most C moves the clipped update by at most C."""
    assert (a.clipped(bound) - b.clipped(bound)).norm() <= (a - b).norm() + 1e-5 * bound


def test_clipping_by_hand() -> None:
    assert state(w=[3.0, 4.0]).clipped(2.5).pack().tolist() == [1.5, 2.0]
    assert state(w=[3.0, 4.0]).clipped(5.0) == state(w=[3.0, 4.0])
    assert state(w=[3.0, 4.0]).clipped(math.inf) == state(w=[3.0, 4.0])
    assert state(w=[0.0]).clipped(1e-9) == state(w=[0.0])


def test_length_is_the_size_of_a_state_of_these_shapes() -> None:
    assert AdapterState.length(SHAPES) == 6 + 4 + 2 + 1
    assert AdapterState.length({}) == 0
