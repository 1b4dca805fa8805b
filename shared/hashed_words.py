"""Words as numbers without a vocabulary: what stands in for a tokenizer in the tiny random models."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def hashed_words(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Words hashed into 1 … 511, at most 32 a text, and the attention mask; int64 (B, T) each. 0 is padding."""
    rows = [[1 + zlib.crc32(word.lower().encode()) % 511 for word in text.split()][:32] or [1] for text in texts]
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, words in enumerate(rows):
        ids[row, : len(words)] = words
        mask[row, : len(words)] = 1
    return ids, mask
