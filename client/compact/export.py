"""From the full model to a model folder. Needs torch and onnx; what it writes needs neither."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from client.compact.distil import HISTORIES, Student, distil, item_tokens, states_alone
from client.compact.folder import FolderWriter, ModelFolder
from client.compact.graphs import encoder_graph, product_graph, trunk_graph
from client.compact.integers import Rows
from client.compact.readers import STUDENT, STUDENT_ARRAYS, TOKENS, TRUNK
from client.compact.tables import TABLES
from client.compact.texts import ENCODER, TOKENIZER
from client.search import QuerySpace
from shared.backbone import MAX_TEXT_TOKENS
from shared.errors import ConfigError
from shared.items import ItemTable
from shared.model import Scorer
from shared.runtime import Runtime, public_settings
from shared.vectors import raw_vectors

Kind = Literal["int8", "student"]
KINDS: tuple[Kind, ...] = ("int8", "student")


def export_model(
    runtime: Runtime,
    folder: Path,
    *,
    kinds: Collection[Kind] = KINDS,
    adapter: Mapping[str, object] | None = None,
    histories: int = HISTORIES,
) -> ModelFolder:
    """Write what is installed in a runtime as a model folder, and open it.

    kinds: what the folder can be opened as. adapter: which run and round this is, as `Engine.adapter` tells it.
    histories: drawn to distil the student from. Files of the same names in the folder are replaced.
    """
    if not kinds or not set(kinds) <= set(KINDS):
        raise ConfigError(f"found kinds {sorted(kinds)}; expected int8, student or both")
    scorer, table = runtime.scorer, runtime.table
    writer = FolderWriter(folder)
    manifest: dict[str, Any] = {
        "kinds": sorted(kinds),
        "catalogue": runtime.catalogue.fingerprint,
        "backbone": runtime.backbone.digest,
        "hidden": runtime.backbone.hidden,
        "directions": int(table.codes.shape[1]),
        "adapter": dict(adapter or {}),
        "settings": public_settings(runtime.config),
        "weights": {
            stage: {name: scorer.weight(name, stage=stage) for name in ("gamma", "beta")}
            for stage in ("start", "prior", "adapter")
        },
        "products": _products(writer, scorer, table),
    }
    writer.write_arrays(TABLES, _tables(runtime))
    writer.write(ENCODER, encoder_graph(runtime.backbone))
    if (tokenizer := runtime.backbone.tokenizer_file()) is not None:
        writer.write(TOKENIZER, _cut_tokenizer(tokenizer))
    if "int8" in kinds:
        manifest["trunk"] = {"sources": list(scorer.input.sources)}
        writer.write(TRUNK, trunk_graph(scorer))
        writer.write_arrays(TOKENS, _tokens(scorer, table))
    if "student" in kinds:
        student = distil(scorer, table, seed=runtime.config.seed, histories=histories)
        manifest["student"] = student.layout.to_dict() | {"explained": round(student.explained, 4)}
        _write_student(writer, student)
    return writer.finish(manifest)


def _cut_tokenizer(text: str) -> bytes:
    """As `Backbone.tokenise` has it for one text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    tokenizer.enable_truncation(MAX_TEXT_TOKENS)
    tokenizer.no_padding()
    return tokenizer.to_str().encode()


def _tables(runtime: Runtime) -> dict[str, NDArray[Any]]:
    table, scorer = runtime.table, runtime.scorer
    plain, whitening = table.plain.numpy(), runtime.config.model.content_whitening
    space = QuerySpace.of(raw_vectors(runtime.backbone, runtime.catalogue), plain=plain, content_whitening=whitening)
    usual = states_alone(scorer, table).mean(axis=0)
    up, output = _last_projection(scorer, table)
    arrays = {
        **Rows.of(plain).named("plain"),
        **Rows.of(table.codes.numpy()).named("codes"),
        "usual.state": usual,
        "usual.part": usual @ up @ output.T,
        "popularity": table.rows[:, -1].numpy().copy(),
        "space.mean": space.mean.astype(np.float32),
    }
    if space.turn is not None:
        arrays["space.turn"] = space.turn.astype(np.float32)
    if (prior := scorer.prior_of("prior")) is not None:
        arrays |= Rows.of(prior[1].numpy()).named("prior")
    return arrays


@torch.inference_mode()
def _tokens(scorer: Scorer, table: ItemTable) -> dict[str, NDArray[Any]]:
    """The trunk's input of each item with all projections done, and the tables of context."""
    arrays = dict(Rows.of(item_tokens(scorer, table)).named("items"))
    for name in scorer.input.sources:
        arrays[f"context.{name}"] = scorer.input.get_submodule(name).get_parameter("weight").detach().numpy().copy()
    if scorer.input.attributes is not None:
        weight = scorer.input.attributes.get_parameter("weight").detach()
        arrays["context.attributes"] = weight.T.numpy().copy()
    return arrays


def _last_projection(scorer: Scorer, table: ItemTable) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """From the adapter's state to what is predicted, (a, k), and the items' vectors of it, (N, k)."""
    up = scorer.output[-1].get_parameter("weight").detach().numpy()  # (k, a)
    return up.T, table.rows[:, table.plain.shape[1] : -1].numpy()


def _products(writer: FolderWriter, scorer: Scorer, table: ItemTable) -> dict[str, list[str]]:
    names = {"adapter": _product(writer, "adapter", *_last_projection(scorer, table))}
    if (prior := scorer.prior_of("prior")) is not None:
        layout, matrix = prior
        names["prior"] = _product(writer, "prior", matrix.numpy(), table.codes[:, : layout.output].numpy())
    return names


def _product(writer: FolderWriter, name: str, matrix: NDArray[np.float32], vectors: NDArray[np.float32]) -> list[str]:
    """x M V^T: in one step where that leaves fewer numbers to read, else in two. M (a, b), V (N, b)."""
    (a, b), count = matrix.shape, len(vectors)
    steps = {f"{name}.onnx": matrix @ vectors.T}
    if a * count > b * (a + count):
        steps = {f"{name}-first.onnx": matrix, f"{name}.onnx": vectors.T}
    for file, factor in steps.items():
        writer.write(file, product_graph(factor))
    return list(steps)


def _write_student(writer: FolderWriter, student: Student) -> None:
    writer.write(STUDENT, product_graph(student.matrix))
    writer.write_arrays(STUDENT_ARRAYS, {"start": student.start, **student.rows.named("items")})
