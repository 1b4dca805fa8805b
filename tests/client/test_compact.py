"""The exported ranker: as the full one but for int8, exact against its own recomputation, and free of torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.compact.distil import draw_histories, drawn_features
from client.compact.engine import CompactEngine
from client.compact.export import KINDS, Kind, export_model
from client.compact.features import StudentLayout, student_features
from client.compact.folder import MANIFEST, ModelFolder
from client.compact.integers import Rows
from client.compact.sessions import open_session
from client.compact.tables import prior_scores
from client.evidence import event_shares
from client.full import FullEngine
from client.search import Searcher
from client.store import History
from shared import prior as full_prior
from shared.artifacts import save_catalogue
from shared.catalogue import Catalogue
from shared.errors import AdapterError, ConfigError, DataError
from shared.runtime import Runtime
from shared.schema import Event, EventKind, Item
from shared.sections import Prior
from tests.client.small_device import LENGTH
from tests.client.test_session import ALL, ITEMS, SHELF, SKIPS_COUNT, event, history, pasts, ready, total
from tests.tiny_models import TINY_FAMILIES

pytestmark = pytest.mark.usefixtures("own_cache")

ROOT = Path(__file__).resolve().parents[2]
DRAWN = 128
Exported = Callable[..., tuple[Runtime, Path]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A runtime and its model folder, made once for each kind of model."""
    made: dict[str, tuple[Runtime, Path]] = {}

    def get(*, prior: Mapping[str, Any] | None = None, **model: Any) -> tuple[Runtime, Path]:
        key = json.dumps([prior, model], sort_keys=True)
        runtime = ready(prior=prior, **model)
        if key not in made:
            folder = tmp_path_factory.mktemp("model")
            export_model(runtime, folder, adapter={"run": "r", "round": 3}, histories=DRAWN)
            made[key] = (runtime, folder)
        return runtime, made[key][1]

    return get


# --- beside the full model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TINY_FAMILIES)
@pytest.mark.parametrize("prior", [None, SKIPS_COUNT], ids=["no prior", "prior"])
@settings(deadline=None, max_examples=4)
@given(events=pasts(), known=st.integers(0, 2 * LENGTH))
def test_int8_scores_like_the_full_model(
    family: str, prior: Mapping[str, Any] | None, events: list[Event], known: int, exported: Exported
) -> None:
    runtime, folder = exported(prior=prior, backbone=f"tiny-{family}", **ALL)
    small = CompactEngine.open(folder, SHELF, history(events[:known]), kind="int8")
    full = FullEngine(runtime, history(events[:known]))
    for one in events[known:]:
        small.add(one)
        full.add(one)
    for stage in ("start", "prior", "adapter"):
        expected, found = full.now.scores(stage=stage), small.now.scores(stage=stage)
        assert found.keys() == expected.keys()
        for name, part in found.items():
            assert part.dtype == np.float32
            assert part.shape == (ITEMS,)
            spread = max(float(expected[name].std()), 1.0)
            np.testing.assert_allclose(part, expected[name], rtol=0, atol=0.1 * spread, err_msg=name)


@pytest.mark.parametrize("sharpness", [0.0, 12.0])
def test_content_and_popularity_hardly_change(sharpness: float, exported: Exported) -> None:
    runtime, folder = exported(sharpness=sharpness, content_whitening=0.5)
    events = [event(n) for n in (3, 9, 4)]
    full = FullEngine(runtime, history(events)).now.scores(stage="start")
    small = CompactEngine.open(folder, SHELF, history(events)).now.scores(stage="start")
    np.testing.assert_array_equal(small["popularity"], full["popularity"])
    np.testing.assert_allclose(small["content"], full["content"], atol=0.05 * float(full["content"].std()))


def test_a_student_finds_most_of_what_the_full_model_would_show(exported: Exported) -> None:
    runtime, folder = exported(prior=SKIPS_COUNT, backbone="tiny-bert", **ALL)
    explained = ModelFolder.open(folder).manifest["student"]["explained"]
    assert 0.9 < explained < 1
    small = CompactEngine.open(folder, SHELF, history([]), kind="student")
    full = FullEngine(runtime, history([]))
    drawn = draw_histories(runtime.scorer, runtime.table, np.random.default_rng(77), count=40)
    shared, chance = [], []
    for items in drawn.items:
        past = history([event(int(item)) for item in items])
        small.replace(past)
        full.replace(past)
        mine, theirs = (set(np.argsort(-one.now.scores()["adapter"])[:10]) for one in (small, full))
        shared.append(len(mine & theirs) / 10)
        chance.append(10 / ITEMS)
    assert np.mean(shared) > 2 * np.mean(chance)


def test_the_student_is_made_of_nobodys_events(exported: Exported) -> None:
    runtime, _ = exported(prior=SKIPS_COUNT, backbone="tiny-bert", **ALL)
    one, again = (draw_histories(runtime.scorer, runtime.table, np.random.default_rng(5), count=3) for _ in range(2))
    np.testing.assert_array_equal(one.items, again.items)  # the scorer and a seed are all it depends on
    assert all(len(set(items)) == len(items) for items in one.items.tolist())


def test_drawn_states_are_those_of_the_full_model(exported: Exported) -> None:
    runtime, _ = exported(prior=SKIPS_COUNT, backbone="tiny-gpt2", context=["kind"])
    drawn = draw_histories(runtime.scorer, runtime.table, np.random.default_rng(1), count=3)
    up = runtime.scorer.output[-1].weight.detach().numpy()
    output = runtime.table.rows[:, runtime.table.plain.shape[1] : -1].numpy()
    for items, kinds, states in zip(drawn.items, drawn.kinds, drawn.states, strict=True):
        events = [event(int(item), EventKind(int(kind))) for item, kind in zip(items, kinds, strict=True)]
        for size in range(1, LENGTH + 1):
            expected = FullEngine(runtime, history(events[:size])).now.scores()["adapter"]
            np.testing.assert_allclose(states[size - 1] @ up.T @ output.T, expected, atol=1e-3)


# --- exact against its own recomputation --------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=8)
@given(events=pasts(), known=st.integers(0, 3 * LENGTH), every=st.integers(1, 4))
def test_after_any_events_it_scores_like_its_own_reading_of_the_whole(
    kind: Kind, events: list[Event], known: int, every: int, exported: Exported
) -> None:
    _, folder = exported(prior=SKIPS_COUNT, backbone="tiny-bert", **ALL)
    live = CompactEngine.open(folder, SHELF, history(events[:known]), kind=kind)
    fresh = CompactEngine.open(folder, SHELF, history([]), kind=kind)
    for number, one in enumerate(events[known:], start=known + 1):
        live.add(one)
        if number % every == 0 or number == len(events):
            fresh.replace(history(events[:number]))
            expected, found = fresh.now.scores(), live.now.scores()
            for name, part in found.items():
                np.testing.assert_allclose(part, expected[name], atol=5e-3, err_msg=name)
            np.testing.assert_array_equal(live.now.past.seen, fresh.now.past.seen)


def test_a_state_in_hand_never_changes(exported: Exported) -> None:
    _, folder = exported(prior=SKIPS_COUNT, backbone="tiny-bert", **ALL)
    engine = CompactEngine.open(folder, SHELF, history([event(1)]))
    before = engine.now
    scores = total(before.scores())
    engine.add(event(2))
    np.testing.assert_array_equal(total(before.scores()), scores)
    assert not np.array_equal(total(engine.now.scores()), scores)
    with pytest.raises(DataError, match="item number 48"):
        engine.add(event(ITEMS))


def test_some_items_and_another_history(exported: Exported) -> None:
    _, folder = exported(prior=SKIPS_COUNT, backbone="tiny-bert", **ALL)
    engine = CompactEngine.open(folder, SHELF, history([event(1)]))
    state, some = engine.now, np.array([7, 2, 2])
    for name, part in state.scores().items():
        np.testing.assert_array_equal(state.scores(items=some)[name], part[some])
    other = engine.imagined(history([event(4), event(5)]))
    assert engine.now is state
    engine.replace(history([event(4), event(5)]))
    np.testing.assert_array_equal(total(other.scores()), total(engine.now.scores()))
    assert (state.candidates(), engine.own_weights(history([]))) == (None, None)
    with pytest.raises(AdapterError, match="export-model"):
        engine.install(folder)


def test_features_are_means_by_hand() -> None:
    layout = StudentLayout((1.0,), token=1, alone=1, sources=("kind",))
    rows = Rows.of(np.array([[1.0, 0.5], [0.5, 1.0], [-1.0, 0.0]], dtype=np.float32))
    past = history([event(0), event(1, EventKind.SKIP), event(2)], about={})
    found = student_features(past, rows, layout)
    weights = np.array([0.25, 0.5, 1.0]) / 1.75
    kinds = np.zeros(len(EventKind))
    kinds[EventKind.CLICK], kinds[EventKind.SKIP] = weights[0] + weights[2], weights[1]
    liked = [weights[0] * 1.0 - weights[2], weights[0] * 0.5]
    np.testing.assert_allclose(found, [1, *liked, weights[1] * 0.5, *kinds], atol=0.01)
    assert layout.size == len(found)


def test_features_of_drawn_histories_are_those_of_a_device(exported: Exported) -> None:
    runtime, folder = exported(backbone="tiny-bert", context=["kind"])
    model = ModelFolder.open(folder)
    layout = StudentLayout.read(model.manifest["student"])
    rows = Rows.read(model.arrays("student.safetensors"), "items")
    drawn = draw_histories(runtime.scorer, runtime.table, np.random.default_rng(2), count=8)
    found = drawn_features(drawn, rows.decoded(), layout)  # (B, T, G)
    assert found.shape == (8, LENGTH, layout.size)
    assert set(drawn.kinds.ravel().tolist()) & {int(EventKind.SKIP), int(EventKind.IMPRESSION)}
    for row in range(8):
        kinds = [EventKind(int(kind)) for kind in drawn.kinds[row]]
        events = [event(int(item), kind) for item, kind in zip(drawn.items[row], kinds, strict=True)]
        for size in range(1, LENGTH + 1):
            expected = student_features(history(events[:size]), rows, layout)
            np.testing.assert_allclose(found[row, size - 1], expected, atol=1e-5)


# --- numbers in eight bits ----------------------------------------------------------------------------------


def test_prior_scores_are_those_of_torch() -> None:
    import torch

    generator = np.random.default_rng(0)
    q = generator.normal(0, 0.01, 50).astype(np.float32)
    share = generator.dirichlet(np.ones(50)).astype(np.float32)
    for chosen in (Prior(), Prior(fusion=0.0), Prior(kappa=0.4, floor=0.1)):
        expected = full_prior.prior_scores(torch.from_numpy(q), torch.from_numpy(share), settings=chosen, fused=True)
        np.testing.assert_allclose(prior_scores(q, share, settings=chosen), expected.numpy(), rtol=1e-4, atol=1e-4)


def test_rows_keep_zero_rows_and_the_largest_entry() -> None:
    rows = Rows.of(np.array([[0.0, 0.0], [2.54, -1.0], [1e-6, 1e-8]], dtype=np.float32))
    np.testing.assert_allclose(rows.decoded(), [[0, 0], [2.54, -1.0], [1e-6, 0]], rtol=1e-6, atol=0.01)
    np.testing.assert_array_equal(rows[np.array([1, 0])], rows.decoded()[[1, 0]])
    np.testing.assert_array_equal(rows[1], rows.decoded()[1])


# --- the folder ---------------------------------------------------------------------------------------------


def test_it_says_where_it_came_from_and_what_it_holds(exported: Exported) -> None:
    runtime, folder = exported(prior=SKIPS_COUNT, backbone="tiny-bert", **ALL)
    engine = CompactEngine.open(folder, SHELF, history([]), kind="int8")
    assert engine.adapter == {"run": "r", "round": 3}
    assert engine.kind == "int8"
    assert engine.length == LENGTH
    assert CompactEngine.open(folder, SHELF, history([])).kind == "student"
    assert {path.suffix for path in folder.iterdir()} == {".json", ".onnx", ".safetensors"}
    model = ModelFolder.open(folder)
    assert model.size == sum(path.stat().st_size for path in folder.iterdir() if path.name != MANIFEST)
    np.testing.assert_allclose(engine.popularity, runtime.table.rows[:, -1].numpy())


def test_a_changed_file_is_refused(exported: Exported, tmp_path: Path) -> None:
    runtime, _ = exported(backbone="tiny-bert")
    export_model(runtime, tmp_path, kinds=["int8"], histories=8)
    with pytest.raises(AdapterError, match="expected student"):
        CompactEngine.open(tmp_path, SHELF, history([]), kind="student")
    other = Catalogue((*SHELF.items[:-1], Item(id="new", title="New", text="new")))
    with pytest.raises(AdapterError, match="another catalogue"):
        CompactEngine.open(tmp_path, other, history([]))
    path = tmp_path / "trunk.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(AdapterError, match=r"trunk\.onnx: found SHA-256"):
        CompactEngine.open(tmp_path, SHELF, history([]))
    (tmp_path / MANIFEST).write_text('{"schema": 99}')
    with pytest.raises(AdapterError, match="schema 99"):
        ModelFolder.open(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(AdapterError, match="export-model"):
        ModelFolder.open(tmp_path)
    with pytest.raises(ConfigError, match="int8, student or both"):
        export_model(runtime, tmp_path, kinds=[])


def test_a_graph_that_is_none_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"trunk\.onnx: found no graph"):
        open_session(b"no graph", name="trunk.onnx")


# --- search and explanations --------------------------------------------------------------------------------


def test_words_mean_the_same(exported: Exported) -> None:
    runtime, folder = exported(backbone="tiny-llama")
    full, small = FullEngine(runtime, history([])), CompactEngine.open(folder, SHELF, history([]))
    texts = ["thing3 of group2", "one"]
    places = [one.space.place(one.encode(texts)) for one in (full, small)]
    assert np.sum(places[0] * places[1], axis=1).min() > 0.98
    found = Searcher(SHELF, plain=small.plain, space=small.space, encode=small.encode).search(
        "Thing 7", scores=total(small.now.scores())
    )
    assert int(np.argmax(found.part)) == 7


def test_events_carry_the_parts_but_for_int8(exported: Exported) -> None:
    _, folder = exported(prior={**SKIPS_COUNT, "gamma": 2.0}, backbone="tiny-bert", **ALL)
    past = history([event(n) for n in (3, 9, 4)])
    state = CompactEngine.open(folder, SHELF, past).now
    parts, reading = state.scores(), state.reading()
    for item in (0, 7, 20):
        shares = event_shares(reading, past, item)
        assert shares.content.sum() == pytest.approx(float(parts["content"][item]), abs=1e-4)
        assert shares.floor + shares.prior.sum() == pytest.approx(float(parts["prior"][item]), abs=0.3)


_WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "peft", "opacus", "onnx", "scipy"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())

from pathlib import Path

import numpy as np

import client.events, client.exploration, client.interests, client.journal, client.portability, client.profile
import client.quarantine, client.selection, client.steering, client.tags, shared.privacy.ledger
from client.compact.engine import CompactEngine
from client.explain import explain
from client.search import Searcher
from client.slate import Shelf, SlateSettings, build_slate
from client.store import Store
from shared.artifacts import load_catalogue
from shared.schema import Event, EventKind

folder, kind = Path(sys.argv[1]), sys.argv[2]
catalogue = load_catalogue(folder.parent / "items.jsonl")
store = Store(":memory:")
store.replace([(0, 0, "i3", None, 1, 0, None), (0, 1, "i9", None, 2, 0, None)])
past = store.history(0, catalogue)
engine = CompactEngine.open(folder, catalogue, past, kind=kind)
engine.add(Event(4, float("nan"), EventKind.CLICK))
state = engine.now
parts = state.scores()
scores = np.sum(list(parts.values()), axis=0)
shelf = Shelf.of(catalogue, vectors=engine.plain, popularity=engine.popularity)
slate = build_slate(scores, k=5, shelf=shelf, settings=SlateSettings(mmr=0.5), allowed=~state.past.seen)
searcher = Searcher(catalogue, plain=engine.plain, space=engine.space, encode=engine.encode)
found = searcher.search("Thing 7", scores=scores)
why = explain(slate[0].item, parts=parts, reading=state.reading(), history=state.past.history(), catalogue=catalogue)
assert len(slate) == 5 and int(np.argmax(found.part)) == 7 and why.sentence
assert not {"torch", "transformers", "peft", "opacus"} & set(sys.modules)
sys.stdout.write(f"{slate[0].item} {float(scores.sum()):.3f}")
"""


@pytest.mark.parametrize("kind", KINDS)
def test_it_ranks_searches_and_explains_where_torch_cannot_be_imported(
    kind: Kind, exported: Exported, tmp_path: Path
) -> None:
    _, made = exported(prior=SKIPS_COUNT, backbone="tiny-bert", **ALL)
    folder = tmp_path / "model"
    folder.symlink_to(made)
    save_catalogue(SHELF, tmp_path / "items.jsonl")
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, str(folder), kind],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    past = [event(3), event(9, EventKind.LIKE), event(4)]
    scores = total(CompactEngine.open(folder, SHELF, history(past, about={}), kind=kind).now.scores())
    assert float(done.stdout.split()[1]) == pytest.approx(float(scores.sum()), abs=0.05)


def test_a_history_of_unknown_items_is_no_history(exported: Exported) -> None:
    _, folder = exported(backbone="tiny-bert")
    empty = History(*(np.zeros(0, dtype=kind) for kind in (np.int64, float, np.int64, np.int64, float)))
    parts = CompactEngine.open(folder, SHELF, empty).now.scores()
    assert not parts["adapter"].any()
    assert not parts["content"].any()
