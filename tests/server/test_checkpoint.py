"""A checkpoint is whole or absent, and fits its experiment or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from server import checkpoint
from server.checkpoint import ServerState, whole_rows
from server.optimiser import ServerOptimiser
from shared import artifacts
from shared.adapter import AdapterState
from shared.artifacts import load_arrays, save_arrays
from shared.errors import RunError
from shared.privacy.chain import Head

SHAPES = {"q.lora_A.weight": (2, 3), "q.lora_B.weight": (3, 2), "gamma.weight": (1,)}


def adapter(seed: int, shapes: dict[str, tuple[int, ...]] = SHAPES) -> AdapterState:
    generator = np.random.default_rng(seed)
    return AdapterState({name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


def fresh(shapes: dict[str, tuple[int, ...]] = SHAPES) -> ServerState:
    return ServerState(run="r-0", adapter=adapter(0, shapes), optimiser=ServerOptimiser("adam", 0.1, 0.9))


def advanced() -> ServerState:
    """A state in which everything is set."""
    state = fresh()
    state.adapter = state.optimiser.apply(state.adapter, adapter(1))
    state.adapter = state.optimiser.apply(state.adapter, adapter(2).select(["gamma.weight"]))
    state.round, state.popularity = 7, np.arange(4, dtype=np.float32)
    state.averaged, state.averaged_rounds = adapter(3), 2
    state.outcome = {"shipped": "start", "gain": None, "reason": "so that"}
    state.population, state.clip, state.head = 40, 0.1 + 0.2, Head(3, "ab" * 32)
    state.noises = [np.random.default_rng(number).normal(size=3) for number in range(12)]
    state.row = {"phase": "train", "round": 7, "refused": {"late": 1}}
    state.asked = {"7": 2, str(2**64 - 1): 1}
    state.priors, state.members = "cd" * 32, "ef" * 32
    return state


def test_everything_comes_back(tmp_path: Path) -> None:
    state = advanced()
    state.save(tmp_path / "c.safetensors")
    loaded = ServerState.load(tmp_path / "c.safetensors", fresh=fresh())
    assert loaded.run == "r-0"
    assert loaded.adapter == state.adapter
    assert loaded.averaged == state.averaged
    assert np.array_equal(loaded.popularity, state.popularity)
    assert (loaded.round, loaded.averaged_rounds, loaded.outcome) == (7, 2, state.outcome)
    assert (loaded.population, loaded.clip, loaded.head, loaded.row) == (40, 0.1 + 0.2, state.head, state.row)
    assert loaded.asked == state.asked
    assert (loaded.priors, loaded.members) == (state.priors, state.members)
    assert [noise.tolist() for noise in loaded.noises] == [
        noise.tolist() for noise in state.noises
    ]  # every bit, in order
    assert all(noise.dtype == np.float64 for noise in loaded.noises)
    assert loaded.optimiser.steps == {"gamma.weight": 2, "q.lora_A.weight": 1, "q.lora_B.weight": 1}
    update = adapter(5)
    assert loaded.optimiser.apply(loaded.adapter, update) == state.optimiser.apply(state.adapter, update)


def test_a_state_before_the_first_round_comes_back(tmp_path: Path) -> None:
    fresh().save(tmp_path / "c.safetensors")
    loaded = ServerState.load(tmp_path / "c.safetensors", fresh=fresh())
    assert (loaded.popularity, loaded.averaged, loaded.round, loaded.outcome) == (None, None, 0, {})
    assert loaded.adapter == adapter(0)
    assert (loaded.population, loaded.clip, loaded.head, loaded.noises, loaded.row) == (0, 1.0, None, [], {})


def test_the_rows_of_a_run_end_with_that_of_the_checkpoint(tmp_path: Path) -> None:
    """A crash between checkpoint and row left it out, in whole or in part, or came after it."""
    state, path = advanced(), tmp_path / "metrics.jsonl"
    before, row = json.dumps({"phase": "train", "round": 6}) + "\n", json.dumps(state.row) + "\n"
    for left in ("", row[:10], row):
        path.write_text(before + left)
        state.restore_row(tmp_path)
        assert path.read_text() == before + row
    path.unlink()
    state.restore_row(tmp_path)
    assert whole_rows(path) == [state.row]


def test_a_row_that_others_followed_is_not_written_again(tmp_path: Path) -> None:
    """Deliveries are recorded after the last checkpoint."""
    state, path = advanced(), tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (state.row, {"phase": "install", "asked": 6})))
    before = path.read_text()
    state.restore_row(tmp_path)
    assert path.read_text() == before


@pytest.mark.parametrize(("cap", "left"), [(0, []), (1, [5]), (2, [5, 2**64 - 1]), (3, [7, 5, 2**64 - 1])])
def test_devices_that_were_asked_as_often_as_the_cap_are_left_out_also_after_a_restart(
    cap: int, left: list[int], tmp_path: Path
) -> None:
    advanced().save(tmp_path / "c.safetensors")
    for state in (advanced(), ServerState.load(tmp_path / "c.safetensors", fresh=fresh())):
        assert state.within_cap([7, 5, 2**64 - 1], cap=cap) == left


def test_a_checkpoint_of_another_schema_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    monkeypatch.setattr(checkpoint, "CHECKPOINT_SCHEMA", 99)
    advanced().save(path)
    monkeypatch.undo()
    with pytest.raises(RunError, match="it is of schema 99, this version reads"):
        ServerState.load(path, fresh=fresh())


def test_a_crash_while_writing_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    advanced().save(path)
    before = path.read_bytes()

    def crash(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", crash)
    with pytest.raises(RunError, match="no space left on device"):
        fresh().save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"not safetensors at all",
        lambda data: data[:-1],
        lambda data: data[: len(data) // 2],
        lambda data: data[:8] + b"x" + data[9:],
        lambda data: data[:-4] + np.float32(np.nan).tobytes(),
    ],
)
def test_a_damaged_checkpoint_is_one_clear_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "c.safetensors"
    advanced().save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=r"no usable checkpoint .* start a new run"):
        ServerState.load(path, fresh=fresh())


@pytest.mark.parametrize(
    "shapes",
    [
        {**SHAPES, "q.lora_A.weight": (3, 2)},
        {**SHAPES, "more.weight": (1,)},
        {"gamma.weight": (1,)},
    ],
)
def test_another_experiments_checkpoint_is_refused(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    advanced().save(tmp_path / "c.safetensors")
    with pytest.raises(RunError, match="other names or shapes"):
        ServerState.load(tmp_path / "c.safetensors", fresh=fresh(shapes))


@pytest.mark.parametrize("name", ["optimiser/first/gamma.weight", "averaged/gamma.weight", "optimiser/second/unknown"])
def test_moments_or_averages_of_another_shape_are_refused(tmp_path: Path, name: str) -> None:
    """A moment of another shape would broadcast without a word."""
    path = tmp_path / "c.safetensors"
    advanced().save(path)
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as handle:
        metadata = handle.metadata()
    save_arrays(path, {**load_arrays(path), name: np.zeros((4, 1), dtype=np.float32)}, metadata=metadata)
    with pytest.raises(RunError, match="other names or shapes"):
        ServerState.load(path, fresh=fresh())


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_arrays(path, dict(adapter(0).arrays), metadata={"format": "pt"})
    with pytest.raises(RunError, match="no usable checkpoint"):
        ServerState.load(path, fresh=fresh())


def test_who_takes_part_is_taken_down_once_and_asked_for_again_where_it_matters(tmp_path: Path) -> None:
    state = fresh()
    assert state.admit([3, 5, 9], same=True)
    state.save(tmp_path / "c.safetensors")
    loaded = ServerState.load(tmp_path / "c.safetensors", fresh=fresh())
    assert not loaded.admit([3, 5, 9], same=True)
    assert not loaded.admit([3, 5, 7], same=False)
    with pytest.raises(RunError, match="correlated noise needs the same ones"):
        loaded.admit([3, 5, 7], same=True)
    assert (loaded.population, loaded.members) == (3, state.members)


def test_past_noise_is_for_the_owner_of_the_server_alone(tmp_path: Path) -> None:
    advanced().save(tmp_path / "c.safetensors")
    assert (tmp_path / "c.safetensors").stat().st_mode & 0o077 == 0
