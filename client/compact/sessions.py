"""The one doorway to ONNX Runtime."""

from __future__ import annotations

from typing import Any

from shared.errors import AdapterError, DeploymentError


def open_session(content: bytes, *, name: str) -> Any:
    """An `onnxruntime.InferenceSession` of a graph, one thread on the CPU.

    DeploymentError when ONNX Runtime is not installed, AdapterError when it cannot read the graph; name: for messages.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise DeploymentError(
            f"found no onnxruntime ({error}); expected it for exported models. Install homerank[small]"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.disable_quant_qdq", "1"
    )  # stored integers become float32 once, at loading
    failures = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except (failures.Fail, failures.InvalidGraph, failures.InvalidProtobuf, failures.NotImplemented) as error:
        reason = str(error).partition("\n")[0][:200]
        raise AdapterError(f"{name}: found no graph that ONNX Runtime can run ({reason}); export it again") from None
