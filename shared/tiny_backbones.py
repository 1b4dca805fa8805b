"""Tiny random models of each supported family, the same on every machine, and a tokenizer for them. For tests."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from shared.hashed_words import hashed_words

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TINY_FAMILIES = ("bert", "gpt2", "llama", "qwen2")


def tiny_model(family: str, *, blocks: int, causal: bool) -> PreTrainedModel:
    """A random two-block model, the same on every machine, for tests."""
    from transformers import AutoConfig, AutoModel

    sizes: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
    }
    if family != "bert":
        sizes |= {"bos_token_id": 1, "eos_token_id": 2}
    if family in ("llama", "qwen2"):
        sizes["num_key_value_heads"] = 2
    config = AutoConfig.for_model(family, **sizes)
    if family == "bert":
        config.is_decoder = causal
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(family.encode()))
        extra: dict[str, Any] = {"add_pooling_layer": False} if family == "bert" else {}
        model = AutoModel.from_config(config, **extra)
    _drop_blocks(model, family, blocks)
    return model


def _drop_blocks(model: Any, family: str, blocks: int) -> None:
    """Draw all blocks, then cut: a shorter trunk keeps the same weights."""
    if family == "bert":
        model.encoder.layer = model.encoder.layer[:blocks]
    elif family == "gpt2":
        model.h = model.h[:blocks]
    else:
        model.layers = model.layers[:blocks]
    model.config.num_hidden_layers = blocks


def hash_tokens(texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """`hashed_words` as the models take them."""
    ids, mask = hashed_words(texts)
    return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
