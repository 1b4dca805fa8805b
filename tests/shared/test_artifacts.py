"""Files that are whole or absent, and adapters that load anywhere or are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file as save_torch

from client.ranker import score_catalogue
from client.store import History
from shared import artifacts
from shared.adapter import AdapterState
from shared.artifacts import (
    POPULARITY,
    load_adapter,
    load_arrays,
    load_catalogue,
    save_adapter,
    save_arrays,
    save_catalogue,
    write_atomic,
    write_json,
)
from shared.backbone import open_backbone
from shared.catalogue import Catalogue
from shared.config import Config, merge
from shared.errors import AdapterError, CatalogueError, RunError
from shared.runtime import Runtime, public_settings, runtime_for
from shared.schema import Item

ITEMS = 20
SHELF = Catalogue(
    tuple(
        Item(id=f"i{n}", title=f'Thing "{n}"', text=f"a thing, né {n % 3}", tags=("x", "y"), domain="shop")
        for n in range(ITEMS)
    )
)
POPULAR = np.linspace(-1, 1, ITEMS, dtype=np.float32)


pytestmark = pytest.mark.usefixtures("own_cache")


def config(backbone: str = "tiny-bert") -> Config:
    model = {"backbone": backbone, "history": 6, "output_dim": 16, "input_rank": 3}
    return merge(Config(), {"model": model, "prior": {"half_lives": []}})


def moved(runtime: Runtime) -> AdapterState:
    """Every parameter off its start, so that nothing is zero by design."""
    generator = np.random.default_rng(4)
    return AdapterState(
        {n: a + generator.normal(0, 0.2, a.shape).astype(np.float32) for n, a in runtime.start.arrays.items()}
    )


def saved(folder: Path, runtime: Runtime, state: AdapterState) -> Path:
    save_adapter(
        folder,
        state,
        popularity=POPULAR,
        peft_config=runtime.peft_config(),
        manifest={"run": "r", "settings": public_settings(runtime.config)},
        privacy={"mode": "none"},
    )
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    runtime = runtime_for(config(), SHELF)
    return saved(tmp_path / "adapter", runtime, moved(runtime))


# --- files -------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "made" / "here" / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"

    def crash(_: int) -> None:
        raise OSError("power")

    monkeypatch.setattr(artifacts.os, "fsync", crash)
    with pytest.raises(RunError, match=r"power.*untouched"):
        write_atomic(path, b"newest")
    assert path.read_bytes() == b"new"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_json_is_sorted_and_readable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": Path("/x")})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": "/x",\n  "b": 1\n}\n'


def test_a_catalogue_comes_back_with_its_fingerprint(tmp_path: Path) -> None:
    save_catalogue(SHELF, tmp_path / "items.jsonl")
    loaded = load_catalogue(tmp_path / "items.jsonl")
    assert loaded.items == SHELF.items
    assert loaded.fingerprint == SHELF.fingerprint


@pytest.mark.parametrize("content", [None, "{", '{"item": "a"}\n', "[1]\n", "\xff"])
def test_a_damaged_catalogue_is_one_clear_error(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "items.jsonl").write_text(content, encoding="latin-1")
    with pytest.raises(CatalogueError, match=r"items\.jsonl: found no usable catalogue"):
        load_catalogue(tmp_path / "items.jsonl")


def test_arrays_come_back_whatever_their_layout(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    save_arrays(tmp_path / "a.safetensors", {"t": array.T, "s": array[:, ::2]})
    loaded = load_arrays(tmp_path / "a.safetensors")
    assert np.array_equal(loaded["t"], array.T)
    assert np.array_equal(loaded["s"], array[:, ::2])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_arrays_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    save_file({"a": np.array([0.0, value], dtype=np.float32)}, str(tmp_path / "a.safetensors"))
    with pytest.raises(AdapterError, match="a holds NaN or infinity"):
        load_arrays(tmp_path / "a.safetensors")


def test_arrays_of_a_kind_numpy_has_not_are_refused(tmp_path: Path) -> None:
    save_torch({"a": torch.zeros(2, dtype=torch.bfloat16)}, str(tmp_path / "a.safetensors"))
    with pytest.raises(AdapterError, match="no usable safetensors file"):
        load_arrays(tmp_path / "a.safetensors")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_arrays(tmp_path / "a.safetensors", {"a": np.zeros(100, dtype=np.float32)})
    monkeypatch.setattr(artifacts, "MAX_ADAPTER_BYTES", 300)
    with pytest.raises(AdapterError, match="at most 300"):
        load_arrays(tmp_path / "a.safetensors")


# --- adapters ----------------------------------------------------------------------------------------------


def test_an_adapter_folder_comes_back_and_scores_the_same(tmp_path: Path) -> None:
    runtime = runtime_for(config(), SHELF)
    state = moved(runtime)
    runtime.install(AdapterState({**state.arrays, POPULARITY: POPULAR}))
    times, unknown = np.array([1.0, 2.0, 3.0]), np.full(3, np.nan)
    history = History(np.array([1, 2, 3]), times, np.ones(3, dtype=int), np.zeros(3, dtype=int), unknown)
    before = score_catalogue(runtime, [history])
    folder = saved(tmp_path / "adapter", runtime, state)
    runtime.install(AdapterState({**runtime.start.arrays, POPULARITY: np.zeros(ITEMS, dtype=np.float32)}))
    assert np.abs(score_catalogue(runtime, [history]) - before).max() > 0.1
    loaded, popularity, manifest = load_adapter(folder)
    assert loaded == state
    assert manifest == {"schema": 2, "run": "r", "settings": public_settings(config())}
    runtime.install(AdapterState({**loaded.arrays, POPULARITY: popularity}))
    assert np.array_equal(score_catalogue(runtime, [history]), before)


def test_the_folder_holds_pefts_files_ours_and_no_pickle(adapter: Path) -> None:
    assert sorted(path.name for path in adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "homerank.json",
        "privacy.json",
        "projections.safetensors",
    ]
    assert all(".lora_" in name for name in load_arrays(adapter / "adapter_model.safetensors"))
    ours = load_arrays(adapter / "projections.safetensors")
    assert POPULARITY in ours
    assert not any(".lora_" in name for name in ours)


def edit_json(change: dict[str, Any]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / "homerank.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return edit


def put_nan(folder: Path) -> None:
    arrays = load_arrays(folder / "projections.safetensors")
    save_arrays(folder / "projections.safetensors", {**arrays, "gamma.weight": np.array([np.nan], dtype=np.float32)})


def drop_popularity(folder: Path) -> None:
    arrays = load_arrays(folder / "projections.safetensors")
    arrays.pop(POPULARITY)
    save_arrays(folder / "projections.safetensors", arrays)


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-3])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no homerank.json": (lambda folder: (folder / "homerank.json").unlink(), "no usable homerank.json"),
    "half a homerank.json": (cut("homerank.json"), "no usable homerank.json"),
    "a list": (lambda folder: (folder / "homerank.json").write_text("[]"), "found adapter schema None"),
    "an older schema": (edit_json({"schema": 1}), "found adapter schema 1; this version reads 2. Train it again"),
    "a newer schema": (edit_json({"schema": 3}), "found adapter schema 3; this version reads 2. .*that wrote it"),
    "no LoRA weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no usable safetensors"),
    "cut LoRA weights": (cut("adapter_model.safetensors"), "no usable safetensors"),
    "cut projections": (cut("projections.safetensors"), "no usable safetensors"),
    "a pickle": (
        lambda folder: (folder / "projections.safetensors").write_bytes(b"\x80\x04N."),
        "no usable safetensors",
    ),
    "NaN": (put_nan, "gamma.weight holds NaN"),
    "no popularity": (drop_popularity, "holds no popularity"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_adapter_is_one_clear_error(name: str, adapter: Path) -> None:
    damage, message = DAMAGE[name]
    damage(adapter)
    with pytest.raises(AdapterError, match=message):
        load_adapter(adapter)


def test_a_folder_that_is_no_adapter_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="expected an adapter folder"):
        load_adapter(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # between peft and transformers
def test_stock_peft_loads_the_lora_part_over_the_published_backbone(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModel

    runtime = runtime_for(config("minilm"), SHELF)
    state = moved(runtime)
    folder = saved(tmp_path / "adapter", runtime, state)
    path = open_backbone("minilm").path
    assert path is not None
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(str(path)), str(folder))
    loaded = {
        name.replace(".default.", "."): parameter.detach().numpy()
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }
    ours = {name: array for name, array in state.arrays.items() if ".lora_" in name}
    assert set(loaded) == set(ours) == set(load_torch(str(folder / "adapter_model.safetensors")))
    assert len(ours) == 4  # A and B on query and value of one block
    assert all(np.array_equal(loaded[name], ours[name]) for name in ours)
    assert "0" not in {name.split(".layer.")[1][0] for name in ours}  # the upper of two blocks
