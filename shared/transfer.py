"""Adapters that move on: an earlier run's parameters as the start of another, on the same catalogue or a new one.

Continuing where others stopped needs parameters that mean the same in both runs. Those that read and predict item text
do, when item vectors lie in the same directions: those of the same catalogue, or of the backbone
(`model.directions`). What belongs to single items does not move: identity directions, popularity and the prior.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.adapter import AdapterState
from shared.artifacts import load_adapter
from shared.config import Config
from shared.errors import AdapterError
from shared.runtime import Runtime

#: Folder beside a run's configuration that holds the adapter it starts from.
FOLDER = "start"
FILES = ("adapter_model.safetensors", "adapter_config.json", "projections.safetensors", "privacy.json", "homerank.json")
#: Settings that say what parameters mean. The others may differ: windows, start weights, what devices do in training.
SAME = {
    "model": (
        *("blocks", "input_rank", "output_rank", "output_dim", "input_codes", "directions"),
        *("whitening", "output_scale", "token_scale"),
    ),
    "lora": ("rank", "alpha", "targets", "blocks"),
}


def keep_start(config: Config, folder: Path) -> None:
    """Copy the adapter that a run starts from into its folder, so that it can be continued without the earlier run.

    Nothing without `federation.start_from`. Raises AdapterError when there is no usable adapter.
    """
    if not config.federation.start_from:
        return
    earlier, kept = Path(config.federation.start_from).expanduser(), folder / FOLDER
    load_adapter(earlier)
    kept.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        try:
            shutil.copyfile(earlier / name, kept / name)
        except OSError as error:
            raise AdapterError(
                f"{earlier / name}: found nothing readable ({error.strerror}); expected the whole adapter folder"
            ) from None


def start_state(runtime: Runtime, config: Config, folder: Path) -> AdapterState:
    """Parameters that a run starts from: a fresh model's, or those of the adapter that `keep_start` copied.

    Raises AdapterError when that adapter cannot be continued here.
    """
    if not config.federation.start_from:
        return runtime.start
    earlier, _, manifest = load_adapter(folder / FOLDER)
    return carry_over(earlier, manifest, runtime)


def carry_over(earlier: AdapterState, manifest: Mapping[str, Any], runtime: Runtime) -> AdapterState:
    """The start of `runtime` with everything of an earlier adapter that means the same there.

    earlier, manifest: as `load_adapter` gives them.

    | parameter | same catalogue | another catalogue, directions of the backbone |
    |---|---|---|
    | LoRA, projections of text directions, weights, context | copied | copied |
    | projections of identity directions | copied if there are as many | left at the start |
    | popularity, prior | left out | left out |

    Parameters that one of the two models has not (a source of context, weights beside a prior) are left out or at
    their start. Raises AdapterError for another backbone, for other settings in `SAME`, and for another catalogue with
    directions of its own.
    """
    _require_same_meaning(manifest, runtime)
    model, text = runtime.config.model, runtime.backbone.hidden
    start = runtime.start.arrays
    arrays = dict(start)
    same = manifest["catalogue"] == runtime.catalogue.fingerprint
    for name in start.keys() & earlier.arrays.keys():
        mine, theirs = start[name], earlier.arrays[name]
        if _predicts(name, model.output_rank):
            arrays[name] = _with_text(mine, theirs, text=min(model.output_dim, text), whole=same)
        elif name == "input.code.weight":
            arrays[name] = _with_text(mine.T, theirs.T, text=min(model.input_codes, text), whole=same).T
        elif mine.shape == theirs.shape:
            arrays[name] = theirs
    return AdapterState(arrays)


def started_from(folder: Path) -> list[dict[str, Any]]:
    """What is known of the privacy of the adapter that a run starts from, and of those before it, oldest first.

    One object for each: run, ledger (its head, or None), delta, and layers: by unit its name in words and the epsilon
    of all runs that ledger knew. No layers: no privacy.
    AdapterError when privacy.json is missing or no such statement.
    """
    if not (folder / FOLDER).is_dir():
        return []
    _, _, manifest = load_adapter(folder / FOLDER)
    path = folder / FOLDER / "privacy.json"
    try:
        privacy = json.loads(path.read_text(encoding="utf-8"))
        layers = privacy.get("layers", {})
        facts = {
            "run": manifest["run"],
            "ledger": manifest["ledger"],
            "delta": privacy.get("delta"),
            "layers": {
                unit: {"unit": layer["unit"], "epsilon": layer["epsilon_all_runs"]} for unit, layer in layers.items()
            },
        }
        return [*privacy.get("started_from", []), facts]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"{path}: found no usable statement ({error}); expected the whole adapter folder") from None


def _predicts(name: str, output_rank: int) -> bool:
    """Whether it is the factor of the output projection whose rows are directions of items."""
    return name == ("output.1.weight" if output_rank else "output.0.weight")


def _with_text(
    mine: NDArray[np.float32], theirs: NDArray[np.float32], *, text: int, whole: bool
) -> NDArray[np.float32]:
    """All rows of an earlier matrix where they mean the same, else its first `text` rows on top of mine."""
    if whole and mine.shape == theirs.shape:
        return theirs
    return np.concatenate([theirs[:text], mine[text:]])


def _require_same_meaning(manifest: Mapping[str, Any], runtime: Runtime) -> None:
    try:
        backbone, catalogue, settings = manifest["backbone"], manifest["catalogue"], manifest["settings"]
        theirs = {f"{section}.{key}": settings[section][key] for section, keys in SAME.items() for key in keys}
    except (KeyError, TypeError) as error:
        raise AdapterError(f"the earlier adapter's homerank.json: found no {error}; expected a whole one") from None
    if backbone != runtime.backbone.digest:
        raise AdapterError(
            f"the earlier adapter: found a backbone with digest {str(backbone)[:12]}; expected"
            f" {runtime.backbone.digest[:12]}. Use the same model.backbone in both runs"
        )
    mine = runtime.config.to_dict()
    for name, found in theirs.items():
        section, key = name.split(".")
        if found != mine[section][key]:
            raise AdapterError(
                f"the earlier adapter: found {name} = {found!r}; expected {mine[section][key]!r}. Parameters only mean"
                f" the same with the same setting: set {name} as it was, or train the earlier adapter anew"
            )
    if catalogue != runtime.catalogue.fingerprint and theirs["model.directions"] == "catalogue":
        raise AdapterError(
            f"the earlier adapter: found directions of another catalogue ({str(catalogue)[:12]}); expected this one's"
            f" ({runtime.catalogue.fingerprint[:12]}). Train both with model.directions = 'backbone'"
        )
