"""Item vectors: encoded once from public text, whitened, cached on disk by content.

Everything here is computed from the catalogue and the frozen backbone, both public, so it costs no privacy.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.backbone import MAX_TEXT_TOKENS, Backbone, encode_texts
from shared.catalogue import Catalogue
from shared.errors import BackboneError, ConfigError
from shared.schema import Item

#: Change when the computation changes: an old cache is then not used.
CACHE_VERSION = 1
#: Words whose vectors stand for language as such: enough for the covariance of any supported width to settle.
REFERENCE_WORDS = 4096
#: Identity directions are part of the model, not of a run's randomness.
IDENTITY_SEED = 20_261


@dataclass(frozen=True)
class ItemVectors:
    """Four views of the same item vectors, all float32.

    plain: (N, d) centred, whitened by `content_whitening`, unit length; cosine similarity works without training.
    token: (N, d) whitened, root-mean-square 1 per entry; what the history trunk reads.
    output: (N, k + r) whitened by `whitening`, cut to the k leading directions, root-mean-square length
    `output_scale`; then the r identity directions; what the output projection predicts.
    codes: (N, d + r) with orthonormal columns: the catalogue's directions of the text, leading one first, then r
    identity directions, which tell items apart whatever their text; what the prior reads and predicts.
    """

    plain: NDArray[np.float32]
    token: NDArray[np.float32]
    output: NDArray[np.float32]
    codes: NDArray[np.float32]


@dataclass(frozen=True)
class Directions:
    """Principal directions of a set of vectors, float64, leading one first.

    variance: (d,). directions: (d, d), one a column. An eigenvector's sign is any library's choice, so the entry of
    largest magnitude is made positive: two machines then mean the same codes.
    """

    variance: NDArray[np.float64]
    directions: NDArray[np.float64]

    @classmethod
    def of(cls, raw: NDArray[np.float32]) -> Directions:
        """Of vectors (N, d) about their mean."""
        centred = _centred(raw)
        variance, directions = np.linalg.eigh(centred.T @ centred / len(raw))
        variance, directions = variance[::-1], directions[:, ::-1]
        largest = np.abs(directions).argmax(axis=0)
        return cls(variance, directions * np.sign(directions[largest, np.arange(len(variance))]))

    @property
    def floor(self) -> float:
        """Variance below which a direction holds nothing but rounding."""
        return max(float(self.variance[0]) * 1e-6, 1e-12)

    def whitened(self, centred: NDArray[np.float64], exponent: float) -> NDArray[np.float64]:
        """Rows (N, d) in these directions, each scaled by variance ** (-exponent / 2)."""
        return (centred @ self.directions) * np.maximum(self.variance, self.floor) ** (-exponent / 2)


def cache_folder() -> Path:
    """$HOMERANK_CACHE, else $XDG_CACHE_HOME/homerank, else ~/.cache/homerank."""
    if chosen := os.environ.get("HOMERANK_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "homerank"


def raw_vectors(backbone: Backbone, catalogue: Catalogue, *, cache: Path | None = None) -> NDArray[np.float32]:
    """The backbone's vectors of the catalogue, float32 (N, d), cached by backbone and texts.

    A cache file that is damaged or of another shape is computed again and replaced.
    """
    folder = cache or cache_folder()
    settings = f"{CACHE_VERSION}:{MAX_TEXT_TOKENS}:{backbone.digest}:{catalogue.fingerprint}"
    path = folder / "vectors" / f"{hashlib.sha256(settings.encode()).hexdigest()[:32]}.npy"
    expected = (len(catalogue), backbone.hidden)
    cached = _read_cached(path, expected)
    if cached is not None:
        return cached
    vectors = encode_texts(backbone, catalogue.texts)
    if not np.isfinite(vectors).all():
        raise BackboneError(f"backbone {backbone.name!r} gave vectors that are not finite; its weights are unusable")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    with partial.open("wb") as handle:
        np.save(handle, vectors, allow_pickle=False)
    partial.replace(path)
    return vectors


def _read_cached(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    try:
        with path.open("rb") as handle:  # numpy.load would also open zip files
            found = np.lib.format.read_array(handle, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError):
        return None
    usable = found.shape == shape and found.dtype == np.float32 and bool(np.isfinite(found).all())
    return found if usable else None


def reference_directions(backbone: Backbone, *, cache: Path | None = None) -> Directions:
    """Directions of the backbone's own vocabulary: public, and the same whatever the catalogue.

    Parameters that read and predict item vectors in these directions mean the same in every catalogue. Raises
    BackboneError when the vocabulary has too few words to tell the directions.
    """
    words = backbone.words(REFERENCE_WORDS)
    if len(words) <= backbone.hidden:
        raise BackboneError(
            f"backbone {backbone.name!r}: found {len(words)} whole words in its vocabulary; expected more than"
            f" {backbone.hidden}. Use model.directions = 'catalogue'"
        )
    items = tuple(Item(id=word, title=word, text=word) for word in words)
    return Directions.of(raw_vectors(backbone, Catalogue(items), cache=cache))


def make_views(
    raw: NDArray[np.float32],
    *,
    whitening: float,
    output_dim: int,
    output_scale: float,
    identity: int = 0,
    content_whitening: float = 0.0,
    reference: Directions | None = None,
) -> ItemVectors:
    """Build the views from raw vectors (N, d).

    whitening, content_whitening: exponents alpha in [0, 1] for output and plain; each principal direction is scaled by
    variance ** (-alpha / 2), so 0 leaves the spectrum as it is and 1 makes it flat. output_dim: k, cut to d where it is
    larger. identity: r, cut to `identity_room`. reference: directions and variances of token and output, the
    catalogue's own unless given; mean and overall length are the catalogue's in any case, and the other views too.
    """
    for name, alpha in (("whitening", whitening), ("content_whitening", content_whitening)):
        if not 0.0 <= alpha <= 1.0:
            raise ConfigError(f"found model.{name} = {alpha}; expected 0 to 1")
    count, width = raw.shape  # (N, d)
    output_dim = min(output_dim, width)
    centred, mine = _centred(raw), Directions.of(raw)
    basis = reference or mine
    token = basis.whitened(centred, 1.0)
    output = basis.whitened(centred, whitening)[:, :output_dim]
    output *= output_scale / (_rms(output) * np.sqrt(output_dim))
    white = mine.whitened(centred, 1.0) / np.sqrt(count)
    text = np.where(mine.variance > mine.floor, white, 0.0)  # (N, d) orthonormal columns, or zero ones
    own = identity_directions(text, identity)
    alike = mine.whitened(centred, content_whitening) if content_whitening else centred
    return ItemVectors(
        plain=_unit(alike),
        token=(token / _rms(token)).astype(np.float32),
        output=np.concatenate([output, output_scale * own], axis=1).astype(np.float32),
        codes=np.concatenate([text, own], axis=1).astype(np.float32),
    )


def identity_directions(text: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Random directions, orthonormal and orthogonal to those of the text; float64 (N, r), see `identity_room`.

    text: (N, d) orthonormal columns. The same for everyone who has the same catalogue, and nobody's behaviour is in
    them. They are a random projection of the items' identities (Johnson & Lindenstrauss 1984), so that a fixed number
    of parameters, whatever the catalogue's size, can learn what an item's text does not say.
    """
    items, width = text.shape
    room = identity_room(count, items=items, width=width)
    drawn = np.random.default_rng(IDENTITY_SEED).standard_normal((items, room))
    return np.linalg.qr(drawn - text @ (text.T @ drawn))[0]


def identity_room(wanted: int, *, items: int, width: int) -> int:
    """How many identity directions a catalogue of N items has room for beside d directions of its text."""
    return max(0, min(wanted, items - 1 - width))


def _centred(raw: NDArray[np.float32]) -> NDArray[np.float64]:
    return raw.astype(np.float64) - raw.mean(axis=0, dtype=np.float64)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.maximum(norms, 1e-12)).astype(np.float32)


def _rms(values: NDArray[np.float64]) -> float:
    return max(float(np.sqrt(np.mean(values**2))), 1e-12)
