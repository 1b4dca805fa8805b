"""What is written to disk and read back: catalogues, adapter folders, atomic files.

An adapter folder loads with stock `PeftModel.from_pretrained`; our own parameters sit beside peft's files. No pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from shared.adapter import AdapterState
from shared.catalogue import Catalogue
from shared.errors import AdapterError, CatalogueError, RunError
from shared.schema import Item

ADAPTER_SCHEMA = 2
MAX_ADAPTER_BYTES = 2 * 1024**3
POPULARITY = "popularity"


def write_atomic(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file so that a crash leaves the old or the new content, never a part.

    private: readable by its owner alone.
    RunError when it cannot be written; the old content is still there then.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as handle:
            if private:
                partial.chmod(0o600)
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
    except OSError as error:
        reason = error.strerror or error
        raise RunError(
            f"{path}: could not be written ({reason}); what was there is untouched. Make room and continue"
        ) from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write one JSON object, atomically, indented."""
    write_atomic(path, (json.dumps(values, indent=2, sort_keys=True, default=str) + "\n").encode())


def save_catalogue(catalogue: Catalogue, path: Path) -> None:
    """Write items.jsonl, one item a line."""
    rows = (
        {
            "item": it.id,
            "title": it.title,
            "text": it.text,
            "tags": list(it.tags),
            "domain": it.domain,
            "creator": it.creator,
        }
        for it in catalogue.items
    )
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def load_catalogue(path: Path) -> Catalogue:
    """Read what `save_catalogue` wrote; CatalogueError when it is missing or damaged."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return Catalogue.from_rows(
            Item(row["item"], row["title"], row["text"], tuple(row["tags"]), row["domain"], row.get("creator", ""))
            for row in rows
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CatalogueError(f"{path}: found no usable catalogue ({error}); make the run folder again") from None


def save_arrays(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    *,
    metadata: Mapping[str, str] | None = None,
    private: bool = False,
) -> None:
    """Write a safetensors file atomically. private: readable by its owner alone."""
    ready = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write_atomic(path, save(ready, metadata=dict(metadata or {})), private=private)


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read a safetensors file; AdapterError when it is missing, damaged, too large or holds non-finite numbers."""
    try:
        if path.stat().st_size > MAX_ADAPTER_BYTES:
            raise AdapterError(f"{path}: found {path.stat().st_size} bytes; at most {MAX_ADAPTER_BYTES}")
        arrays = load_file(str(path))
    except (OSError, SafetensorError, TypeError, KeyError) as error:  # the last two: a dtype numpy has not
        raise AdapterError(f"{path}: found no usable safetensors file ({error})") from None
    for name, array in arrays.items():
        if array.dtype.type.__module__ != "numpy":  # kinds that another package may have taught numpy
            raise AdapterError(f"{path}: found no usable safetensors file ({name} is of type {array.dtype})")
        if not np.isfinite(array).all():
            raise AdapterError(f"{path}: {name} holds NaN or infinity")
    return arrays


def save_adapter(
    folder: Path,
    state: AdapterState,
    *,
    popularity: NDArray[np.float32],
    peft_config: Mapping[str, Any],
    manifest: Mapping[str, Any],
    privacy: Mapping[str, Any],
) -> None:
    """Write an adapter folder.

    adapter_model.safetensors, adapter_config.json: peft's own format (the LoRA part).
    projections.safetensors: our other parameters and the released log popularity.
    homerank.json: fingerprints and model settings. privacy.json: what was spent, and in plain words.
    """
    lora = {name: array for name, array in state.arrays.items() if ".lora_" in name}
    rest = {name: array for name, array in state.arrays.items() if ".lora_" not in name}
    save_arrays(folder / "adapter_model.safetensors", lora, metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", peft_config)
    save_arrays(folder / "projections.safetensors", {**rest, POPULARITY: popularity})
    write_json(folder / "privacy.json", privacy)
    write_json(folder / "homerank.json", {"schema": ADAPTER_SCHEMA, **manifest})


def load_adapter(folder: Path) -> tuple[AdapterState, NDArray[np.float32], dict[str, Any]]:
    """Read an adapter folder: parameters, log popularity (N,), and homerank.json.

    Raises AdapterError when a file is missing or damaged or the folder is of another schema.
    """
    try:
        manifest = json.loads((folder / "homerank.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{folder}: found no usable homerank.json ({error}); expected an adapter folder") from None
    found = manifest.get("schema") if isinstance(manifest, dict) else None
    if found != ADAPTER_SCHEMA:
        raise AdapterError(
            f"{folder}: found adapter schema {found!r}; this version reads {ADAPTER_SCHEMA}. Train it again, or use"
            " the version that wrote it"
        )
    arrays = {
        **load_arrays(folder / "adapter_model.safetensors"),
        **load_arrays(folder / "projections.safetensors"),
    }
    if POPULARITY not in arrays:
        raise AdapterError(f"{folder}: projections.safetensors holds no popularity; the folder is incomplete")
    popularity = arrays.pop(POPULARITY)
    return AdapterState(arrays), popularity, manifest
