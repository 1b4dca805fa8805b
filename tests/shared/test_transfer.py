"""What of an earlier adapter goes on into another run, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.ranker import score_catalogue
from client.store import History
from shared.adapter import AdapterState
from shared.artifacts import POPULARITY, save_adapter
from shared.catalogue import Catalogue
from shared.config import Config, merge
from shared.errors import AdapterError
from shared.prior import PRIOR
from shared.runtime import Runtime, public_settings
from shared.schema import Item
from shared.transfer import FILES, FOLDER, carry_over, keep_start, start_state, started_from

pytestmark = pytest.mark.usefixtures("own_cache")

HIDDEN = 32


def shelf(name: str, items: int) -> Catalogue:
    return Catalogue(
        tuple(
            Item(id=f"{name}-{n}", title=f"{name} {n}", text=f"a {name} of kind {n % 7} and colour {n % 5} number {n}")
            for n in range(items)
        )
    )


FILMS, TOOLS = shelf("film", 60), shelf("tool", 50)


def config(**model: Any) -> Config:
    settings = {"backbone": "tiny-bert", "history": 6, "output_dim": 20, "identity": 8, "input_codes": 36}
    return merge(Config(), {"model": {**settings, "directions": "backbone", **model}})


def moved(runtime: Runtime, *, seed: int = 4) -> AdapterState:
    """Every parameter off its start, so that nothing is equal by chance."""
    generator = np.random.default_rng(seed)
    return AdapterState(
        {n: a + generator.normal(0, 0.2, a.shape).astype(np.float32) for n, a in runtime.start.arrays.items()}
    )


def manifest(runtime: Runtime, **changes: Any) -> dict[str, Any]:
    return {
        "run": "earlier",
        "ledger": None,
        "backbone": runtime.backbone.digest,
        "catalogue": runtime.catalogue.fingerprint,
        "settings": public_settings(runtime.config),
        **changes,
    }


def carried(films: Runtime, there: Runtime) -> tuple[AdapterState, AdapterState]:
    """A film adapter with all that comes with one, and what of it another runtime starts from."""
    state = moved(films)
    whole = {**state.arrays, POPULARITY: np.zeros(len(FILMS), np.float32), PRIOR: np.ones((3, 2), np.float32)}
    return state, carry_over(AdapterState(whole), manifest(films), there)


def test_on_the_same_catalogue_everything_goes_on_but_popularity_and_prior() -> None:
    films = Runtime(config(), FILMS)
    state, found = carried(films, Runtime(config(), FILMS))
    assert found == state


def test_on_another_catalogue_text_goes_on_and_identity_starts_anew() -> None:
    films, tools = Runtime(config(), FILMS), Runtime(config(), TOOLS)
    state, found = carried(films, tools)
    before, start, after = state.arrays, tools.start.arrays, found.arrays
    assert found.shapes == tools.start.shapes
    for name in after:
        if name not in ("output.0.weight", "input.code.weight"):
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert after["output.0.weight"].shape == (28, HIDDEN)
    np.testing.assert_array_equal(after["output.0.weight"][:20], before["output.0.weight"][:20])
    np.testing.assert_array_equal(after["output.0.weight"][20:], start["output.0.weight"][20:])
    assert after["input.code.weight"].shape == (HIDDEN, 36)
    np.testing.assert_array_equal(after["input.code.weight"][:, :HIDDEN], before["input.code.weight"][:, :HIDDEN])
    np.testing.assert_array_equal(after["input.code.weight"][:, HIDDEN:], start["input.code.weight"][:, HIDDEN:])


def test_a_low_rank_output_goes_on_with_its_basis() -> None:
    films, tools = (Runtime(config(output_rank=3, input_codes=0), items) for items in (FILMS, TOOLS))
    state, found = carried(films, tools)
    for name in ("output.0.weight", "output.0.bias"):
        np.testing.assert_array_equal(found.arrays[name], state.arrays[name])
    np.testing.assert_array_equal(found.arrays["output.1.weight"][:20], state.arrays["output.1.weight"][:20])
    assert not found.arrays["output.1.weight"][20:].any()  # the start of identity


@pytest.mark.parametrize("items", [FILMS, TOOLS], ids=["same", "other"])
def test_identity_of_another_size_never_goes_on(items: Catalogue) -> None:
    films, other = Runtime(config(), FILMS), Runtime(config(identity=5), items)
    state, found = carried(films, other)
    assert found.arrays["output.0.weight"].shape == (25, HIDDEN)
    np.testing.assert_array_equal(found.arrays["output.0.weight"][:20], state.arrays["output.0.weight"][:20])
    assert not found.arrays["output.0.weight"][20:].any()


def test_what_only_one_of_the_two_has_is_left_out_or_at_its_start() -> None:
    films = Runtime(merge(config(context=["kind", "gap"]), {"prior": {"half_lives": []}}), FILMS)
    settings = {"prior": {"half_lives": [2.0], "widths": [9], "output": 5}, "model": {"context": ["gap", "hour"]}}
    with_prior = Runtime(merge(config(), settings), TOOLS)
    state, found = carried(films, with_prior)
    assert "gamma.weight" in state.arrays
    assert "gamma.weight" not in found.arrays  # beside a prior it is a setting
    np.testing.assert_array_equal(found.arrays["input.gap.weight"], state.arrays["input.gap.weight"])
    assert not found.arrays["input.hour.weight"].any()
    assert "input.kind.weight" not in found.arrays


def test_the_same_shelf_in_another_order_is_ranked_as_before() -> None:
    """Another catalogue as far as fingerprints go; nothing that was learned of its texts may change its meaning."""
    plain = config(identity=0, input_codes=HIDDEN)
    order = np.random.default_rng(1).permutation(len(FILMS))
    turned = Catalogue(tuple(Item(f"new-{n}", FILMS.items[n].title, FILMS.items[n].text) for n in order.tolist()))
    here, there = Runtime(plain, FILMS), Runtime(plain, turned)
    state = moved(here)
    flat = np.zeros(len(FILMS), dtype=np.float32)
    scores = []
    for runtime, places in ((here, np.arange(len(FILMS))), (there, np.argsort(order))):
        arrays = carry_over(state, manifest(here), runtime).arrays
        runtime.install(AdapterState({**arrays, POPULARITY: flat}))
        past, times = places[[3, 14, 15]], np.arange(3.0)
        nothing = np.zeros(3, dtype=int)
        history = History(past, times, nothing + 1, nothing, np.full(3, np.nan))
        scores.append(score_catalogue(runtime, [history])[0][places])
    assert np.ptp(scores[0]) > 1
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-3, atol=1e-3)


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"blocks": 1}}, r"found model.blocks = 2; expected 1"),
        ({"model": {"output_dim": 19}}, r"found model.output_dim = 20; expected 19.*set model.output_dim as it was"),
        ({"model": {"whitening": 0.3}}, r"found model.whitening = 0.5; expected 0.3"),
        ({"model": {"directions": "catalogue"}}, r"found model.directions = 'backbone'; expected 'catalogue'"),
        ({"lora": {"targets": ["k"]}}, r"found lora.targets = \['q', 'v'\]; expected \['k'\]"),
        ({"model": {"backbone": "tiny-gpt2"}}, r"found a backbone with digest \w{12}; expected \w{12}. Use the same"),
    ],
)
def test_parameters_of_another_meaning_are_refused(change: dict[str, Any], message: str) -> None:
    films = Runtime(config(), FILMS)
    with pytest.raises(AdapterError, match=message):
        carry_over(films.start, manifest(films), Runtime(merge(config(), change), FILMS))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 3},
        {"model": {"history": 9, "gamma": 3.0, "content_half_life": 1.0, "sharpness": 2.0, "content_whitening": 0.5}},
        {"lora": {"dropout": 0.1}},
    ],
)
def test_settings_that_mean_the_same_may_differ(change: dict[str, Any]) -> None:
    films = Runtime(config(), FILMS)
    state, found = carried(films, Runtime(merge(config(), change), FILMS))
    assert found == state


def test_directions_of_a_catalogue_hold_for_that_catalogue_alone() -> None:
    own = config(directions="catalogue")
    films = Runtime(own, FILMS)
    state, found = carried(films, Runtime(own, FILMS))
    assert found == state
    with pytest.raises(AdapterError, match=r"directions of another catalogue.*with model.directions = 'backbone'"):
        carry_over(state, manifest(films), Runtime(own, TOOLS))


@pytest.mark.parametrize("missing", ["backbone", "catalogue", "settings"])
def test_a_manifest_with_less_is_refused(missing: str) -> None:
    films = Runtime(config(), FILMS)
    facts = manifest(films)
    facts.pop(missing)
    with pytest.raises(AdapterError, match=rf"homerank.json: found no '{missing}'; expected a whole one"):
        carry_over(films.start, facts, films)


# --- the folder that a run keeps ---------------------------------------------------------------------------


PRIVATE = {
    "mode": "event",
    "delta": 1e-5,
    "layers": {"event": {"unit": "one window", "epsilon": 2.0, "epsilon_all_runs": 3.0}},
}


def saved(folder: Path, runtime: Runtime, privacy: dict[str, Any]) -> AdapterState:
    state = moved(runtime)
    save_adapter(
        folder,
        state,
        popularity=np.zeros(len(runtime.catalogue), dtype=np.float32),
        peft_config=runtime.peft_config(),
        manifest=manifest(runtime),
        privacy=privacy,
    )
    return state


def test_a_run_keeps_the_adapter_that_it_starts_from(tmp_path: Path) -> None:
    films, run = Runtime(config(), FILMS), tmp_path / "run"
    state = saved(tmp_path / "adapter", films, PRIVATE)
    settings = merge(config(), {"federation": {"start_from": str(tmp_path / "adapter")}})
    keep_start(settings, run)
    assert sorted(path.name for path in (run / FOLDER).iterdir()) == sorted(FILES)
    for file in (tmp_path / "adapter").iterdir():
        file.unlink()
    assert start_state(films, settings, run) == state
    keep_start(config(), tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()
    assert start_state(films, config(), tmp_path / "fresh") == films.start


@pytest.mark.parametrize("missing", ["homerank.json", "privacy.json", "adapter_config.json"])
def test_half_an_adapter_is_not_begun_from(tmp_path: Path, missing: str) -> None:
    saved(tmp_path / "adapter", Runtime(config(), FILMS), PRIVATE)
    (tmp_path / "adapter" / missing).unlink()
    settings = merge(config(), {"federation": {"start_from": str(tmp_path / "adapter")}})
    with pytest.raises(AdapterError, match=rf"{missing}.*expected (the whole|an) adapter folder"):
        keep_start(settings, tmp_path / "run")


def test_what_earlier_adapters_cost_is_known_all_the_way_back(tmp_path: Path) -> None:
    films, run = Runtime(config(), FILMS), tmp_path / "run"
    assert started_from(run) == []
    oldest = {"run": "oldest", "ledger": None, "delta": None, "layers": {}}
    saved(run / FOLDER, films, {**PRIVATE, "started_from": [oldest]})
    layers = {"event": {"unit": "one window", "epsilon": 3.0}}
    assert started_from(run) == [oldest, {"run": "earlier", "ledger": None, "delta": 1e-5, "layers": layers}]
    path = run / FOLDER / "privacy.json"
    for content in ("[]", "{", json.dumps({**PRIVATE, "layers": {"event": {}}})):
        path.write_text(content)
        with pytest.raises(AdapterError, match=r"privacy\.json: found no usable statement"):
            started_from(run)
