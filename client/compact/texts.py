"""Words to raw vectors, with the backbone's text encoder in int8 and its own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from client.compact.folder import ModelFolder
from client.compact.sessions import open_session
from shared.errors import DeploymentError
from shared.hashed_words import hashed_words

ENCODER, TOKENIZER = "encoder.onnx", "tokenizer.json"


class TextEncoder:
    """Loads on construction; texts in a batch do not change each other's vectors but for rounding."""

    def __init__(self, folder: ModelFolder) -> None:
        self._width = int(folder.manifest["hidden"])
        self._session = open_session(folder.read(ENCODER), name=ENCODER)
        self._tokenizer = None
        if TOKENIZER in folder.manifest["files"]:  # the tiny random backbones have none
            try:
                from tokenizers import Tokenizer
            except ImportError as error:
                raise DeploymentError(
                    f"found no tokenizers ({error}); expected it for search. Install homerank[small]"
                ) from None
            self._tokenizer = Tokenizer.from_str(folder.read(TOKENIZER).decode())

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Raw vectors, float32 (n, d)."""
        out = np.empty((len(texts), self._width), dtype=np.float32)
        for row, text in enumerate(texts):  # one by one: activations of a batch would share one scale
            ids, mask = self._tokens(text)
            out[row] = self._session.run(None, {"ids": ids, "mask": mask})[0][0]
        return out

    def _tokens(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._tokenizer is None:
            return hashed_words([text])
        ids = np.array([self._tokenizer.encode(text).ids], dtype=np.int64)
        return ids, np.ones_like(ids)
