"""The ranker for small devices: int8 numbers, numpy and ONNX Runtime, and no torch.

`export` writes a model folder from the full model and needs torch; `engine` ranks with one and does not. Two kinds are
in a folder, and they share everything but where the adapter's state comes from: `int8` runs the merged, quantised
trunk, `student` a linear map distilled from it.
"""
