"""ONNX graphs of an exported model: merged trunk, text encoder, products. Needs torch and onnx."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.compact.integers import LEVELS, ZERO, Rows
from client.compact.readers import NEVER
from shared.backbone import Backbone
from shared.model import Scorer

OPSET, IR_VERSION = 17, 8
#: Sizes of the example that graphs are traced with: no two alike, so that none is taken for another.
PAST, NEW = 4, 3


class _Trunk(nn.Module):
    """Tokens (1, n, d), with keys and values of p events before, to states (1, n, a) and the keys and values of all.

    mask: (1, 1, n, p + n), added to attention; given, so that nothing in the graph depends on a length.
    """

    def __init__(self, trunk: nn.Module, output: nn.Module) -> None:
        super().__init__()
        self.trunk, self.output = trunk, output

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, *memory: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        from transformers import DynamicCache

        known = DynamicCache(list(zip(memory[::2], memory[1::2], strict=True)))
        found = self.trunk(
            inputs_embeds=tokens, attention_mask=mask, position_ids=positions, past_key_values=known, use_cache=True
        )
        kept = (tensor for layer in found.past_key_values.layers for tensor in (layer.keys, layer.values))
        return (self.output(found.last_hidden_state), *kept)


class _Encoder(nn.Module):
    """Token ids and attention mask, int64 (B, T), to mean-pooled last hidden states (B, d)."""

    def __init__(self, model: nn.Module, *, causal: bool) -> None:
        super().__init__()
        self.model, self.causal = model, causal

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        places = torch.arange(ids.shape[1])
        may = mask[:, None, None, :].bool().expand(-1, 1, ids.shape[1], -1)
        if self.causal:
            may = may & (places[None, :] <= places[:, None])
        added = torch.where(may, 0.0, NEVER)  # (B, 1, T, T)
        hidden = self.model(
            input_ids=ids, attention_mask=added, position_ids=places[None].expand_as(ids)
        ).last_hidden_state
        weight = mask[..., None].to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1)


def trunk_graph(scorer: Scorer) -> bytes:
    """The trunk with LoRA merged into it and all of the output projection but its last matrix; weights in int8.

    Activations stay float32: quantised ones would depend on which other tokens are read in the same call, and a
    history read event by event must come to the same state as one read at once.
    """
    trunk: Any = copy.deepcopy(scorer.trunk)
    trunk = trunk.merge_and_unload()
    trunk.set_attn_implementation("eager")
    model = _Trunk(trunk, copy.deepcopy(scorer.output[:-1])).eval()
    width = trunk.config.hidden_size
    with torch.no_grad():
        found = trunk(inputs_embeds=torch.zeros(1, PAST, width), use_cache=True).past_key_values
    memory = [tensor for layer in found.layers for tensor in (layer.keys, layer.values)]
    names = [f"{kind}{block}" for block in range(len(found.layers)) for kind in ("key", "value")]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, NEW, width, generator=generator)
    positions = torch.arange(PAST, PAST + NEW)[None]
    later = torch.arange(PAST + NEW)[None] > positions[0][:, None]
    mask = torch.where(later, NEVER, 0.0)[None, None]
    axes = {"tokens": {1: "n"}, "mask": {2: "n", 3: "t"}, "positions": {1: "n"}, "state": {1: "n"}}
    axes |= {f"past_{name}": {2: "p"} for name in names} | {f"new_{name}": {2: "t"} for name in names}
    whole = _traced(
        model,
        (tokens, mask, positions, *memory),
        inputs=["tokens", "mask", "positions", *(f"past_{name}" for name in names)],
        outputs=["state", *(f"new_{name}" for name in names)],
        axes=axes,
    )
    return _with_small_weights(whole)


def encoder_graph(backbone: Backbone) -> bytes:
    """The backbone as a text encoder; weights in int8, embeddings too, and activations as they come."""
    encoder: Any = backbone.text_encoder()
    encoder.set_attn_implementation("eager")
    tokens = backbone.tokenise(["three words here", "one"])
    whole = _traced(
        _Encoder(encoder, causal=backbone.family != "bert").eval(),
        (tokens["input_ids"], tokens["attention_mask"]),
        inputs=["ids", "mask"],
        outputs=["vectors"],
        axes={"ids": {0: "b", 1: "t"}, "mask": {0: "b", 1: "t"}, "vectors": {0: "b"}},
    )
    return _quantised(whole)


def product_graph(matrix: NDArray[np.floating]) -> bytes:
    """x W for a matrix W (K, N), each column in int8 with its scale; see `client.compact.integers`."""
    from onnx import TensorProto, helper, numpy_helper

    scale = np.abs(matrix).max(axis=0, initial=0.0) / LEVELS
    whole = np.rint(matrix / np.where(scale > 0, scale, 1)) + ZERO
    fixed = {
        "weights": whole.astype(np.uint8),
        "scale": scale.astype(np.float32),
        "zero": np.array(ZERO, dtype=np.uint8),
    }
    rows, columns = matrix.shape
    nodes = [
        helper.make_node("MatMulInteger", ["digits", "weights", "zero", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["units", "real"], ["joined"]),
        helper.make_node("Mul", ["joined", "scale"], ["product"]),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [
            helper.make_tensor_value_info("digits", TensorProto.UINT8, [2, rows]),
            helper.make_tensor_value_info("units", TensorProto.FLOAT, [1, 2]),
        ],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, [1, columns])],
        [numpy_helper.from_array(array, name) for name, array in fixed.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    return model.SerializeToString()


def _traced(
    model: nn.Module,
    example: tuple[torch.Tensor, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
) -> bytes:
    """A module as a graph in float32. axes: which sizes of inputs and outputs are free, and their names."""
    with tempfile.TemporaryDirectory() as folder, _known_warnings(), torch.no_grad():
        path = Path(folder) / "whole.onnx"
        torch.onnx.export(
            model,
            example,
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,  # the newer exporter needs one dependency more
        )
        return path.read_bytes()


def _quantised(content: bytes) -> bytes:
    """A graph whose products are of integers."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, _known_warnings():
        whole, small = Path(folder) / "whole.onnx", Path(folder) / "small.onnx"
        whole.write_bytes(content)
        # unsigned: on CPUs without VNNI, products of signed numbers overflow 16 bits
        quantize_dynamic(whole, small, per_channel=True, weight_type=QuantType.QUInt8)
        return small.read_bytes()


def _with_small_weights(content: bytes) -> bytes:
    """A graph whose matrices are stored in int8, with a scale for each column, and become float32 when it is loaded."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(content)
    graph = model.graph
    readers = {name: node for node in graph.node for name in node.input}
    made = []
    for weight in [one for one in graph.initializer if readers[one.name].op_type in ("MatMul", "Gemm")]:
        matrix, name = numpy_helper.to_array(weight), weight.name
        if matrix.ndim != 2:
            continue
        turned = any(word.name == "transB" and word.i for word in readers[name].attribute)
        rows = Rows.of(matrix if turned else matrix.T)
        values = rows.values if turned else np.ascontiguousarray(rows.values.T)
        graph.initializer.remove(weight)
        stored = {f"{name}.int8": values, f"{name}.scale": rows.scale}
        graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in stored.items())
        made.append(helper.make_node("DequantizeLinear", [*stored], [name], axis=0 if turned else 1))
    nodes = [*made, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model.SerializeToString()


@contextmanager
def _known_warnings() -> Iterator[None]:
    """Hide what exporters say about lengths that become constants: masks and positions are given, and it is tested."""
    from torch.jit._trace import TracerWarning

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=TracerWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", message=".*dynamic ax", category=UserWarning)
            yield
    finally:
        root.setLevel(level)
