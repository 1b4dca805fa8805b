"""A model folder: one manifest, safetensors and ONNX files, each with its digest. No pickle.

manifest.json         schema, kinds, fingerprints, settings, weights, names of the products, size and SHA-256 of files
tables.safetensors    both kinds: item vectors and codes, popularity, the prior's matrix, the space of queries
prior*.onnx           from f(u) to q of all items;  adapter*.onnx  from the adapter's state to its part
encoder.onnx          from words to raw vectors;  tokenizer.json
trunk.onnx, tokens.safetensors        kind int8
student.onnx, student.safetensors     kind student
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.artifacts import write_atomic, write_json
from shared.errors import AdapterError, RunError

MODEL_SCHEMA = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ModelFolder:
    """An opened model folder. manifest: what manifest.json holds. A file is checked whenever it is read."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> ModelFolder:
        """Read the manifest. AdapterError when there is none, or one of another schema."""
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise AdapterError(
                f"{path}: found no usable {MANIFEST} ({error}); expected a folder written by `export-model`"
            ) from None
        found = manifest.get("schema") if isinstance(manifest, dict) else None
        if found != MODEL_SCHEMA:
            raise AdapterError(
                f"{path}: found model schema {found!r}; this version reads {MODEL_SCHEMA}. Export the model again"
            )
        return cls(path, manifest)

    def read(self, name: str) -> bytes:
        """A file's content. AdapterError when it is not the one that was exported."""
        expected = self.manifest["files"].get(name, {}).get("sha256")
        try:
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise AdapterError(f"{self.path / name}: could not be read ({error}); export the model again") from None
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise AdapterError(
                f"{self.path / name}: found SHA-256 {found[:12]}; the manifest says {str(expected)[:12]}."
                " Export the model again"
            )
        return content

    def arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays of a safetensors file. AdapterError when it is damaged or holds numbers that are not finite."""
        try:
            arrays = load(self.read(name))
        except (SafetensorError, TypeError, KeyError) as error:
            raise AdapterError(f"{self.path / name}: found no usable safetensors file ({error})") from None
        for key, array in arrays.items():
            if not np.isfinite(array).all():
                raise AdapterError(f"{self.path / name}: {key} holds NaN or infinity")
        return arrays

    @property
    def size(self) -> int:
        """Bytes of all files that the manifest names."""
        return sum(int(file["bytes"]) for file in self.manifest["files"].values())


class FolderWriter:
    """Writes a model folder file by file; the manifest comes last and makes it one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[str, dict[str, object]] = {}
        try:
            (path / MANIFEST).unlink(missing_ok=True)
        except OSError as error:
            raise RunError(f"{path}: could not be written ({error.strerror}); choose another folder") from None

    def write(self, name: str, content: bytes) -> None:
        """Write one file atomically."""
        write_atomic(self._path / name, content)
        self._files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def write_arrays(self, name: str, arrays: dict[str, NDArray[Any]]) -> None:
        """Write one safetensors file."""
        self.write(name, save({key: np.ascontiguousarray(array) for key, array in arrays.items()}))

    def finish(self, manifest: dict[str, object]) -> ModelFolder:
        """Write the manifest and open the folder."""
        write_json(self._path / MANIFEST, {"schema": MODEL_SCHEMA, **manifest, "files": self._files})
        return ModelFolder.open(self._path)
