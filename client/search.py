"""Search in words: by meaning and by letters, added to the person's own scores.

    score_i = personal_i + spread * (MEANING * z_i + LETTERS * l_i^2)

z: cosine of the query's vector with item i's, standardised over the catalogue. l: `client.lexical`, 0 to 1; squared, so
that the full title counts and one word of many hardly does. A sum, not reciprocal rank fusion (Cormack et al., SIGIR
2009): ranks would treat a perfect title match like any other first place, need three sorts of the catalogue, and could
not be one exact part, `query`, of an explained score.

A backbone gives every text some vector. Texts without meaning lie near each other, so a query counts by its meaning
only if it is less like the mean of random letter strings than nearly all of those strings are themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from client.lexical import LexicalIndex
from client.scale import Floats, spread, standardise
from shared.catalogue import Catalogue, clean_text
from shared.errors import CatalogueError, DataError

#: Longest query in characters.
MAX_QUERY = 300
#: Query vectors that are kept.
CACHED = 256
#: Weights in spreads of the person's scores.
MEANING = 1.5
LETTERS = 12.0
#: Strings of random letters that show where texts without meaning lie, and the percentile of theirs that is the limit.
NOISE_STRINGS = 64
NOISE_PERCENTILE = 5

#: Texts to raw vectors, float32 (n, d), such as `partial(shared.backbone.encode_texts, backbone)`.
Encode = Callable[[Sequence[str]], NDArray[np.float32]]


@dataclass(frozen=True)
class QuerySpace:
    """How a raw vector becomes comparable with `ItemVectors.plain`: less the mean, turned, unit length.

    mean: float64 (d,). turn: float64 (d, d), None without whitening.
    """

    mean: Floats
    turn: Floats | None = None

    @classmethod
    def of(cls, raw: NDArray[np.float32], *, plain: NDArray[np.float32], content_whitening: float = 0.0) -> QuerySpace:
        """The space in which a catalogue's raw vectors (N, d) are its plain ones, by the steps of `make_views`.

        Principal directions have no sign of their own and may come out turned elsewhere, so they are turned onto the
        plain vectors that there are (orthogonal Procrustes, Schoenemann 1966). CatalogueError where that fails: the
        plain vectors are of another catalogue or whitening.
        """
        space = cls._unturned(raw, content_whitening)
        if space.turn is not None:
            left, _, right = np.linalg.svd(space.place(raw).T.astype(np.float64) @ plain)
            space = cls(space.mean, space.turn @ left @ right)
        if raw.shape != plain.shape or np.abs(space.place(raw) - plain).max() > 1e-2:
            raise CatalogueError(
                f"found plain vectors that do not come from the raw ones by content_whitening = {content_whitening};"
                " expected the views of the same catalogue and settings"
            )
        return space

    @classmethod
    def _unturned(cls, raw: NDArray[np.float32], content_whitening: float) -> QuerySpace:
        mean = raw.mean(axis=0, dtype=np.float64)
        if not content_whitening:
            return cls(mean)
        centred = raw.astype(np.float64) - mean
        variance, directions = np.linalg.eigh(centred.T @ centred / len(raw))
        variance, directions = variance[::-1], directions[:, ::-1]
        floor = max(float(variance[0]) * 1e-6, 1e-12)
        return cls(mean, directions * np.maximum(variance, floor) ** (-content_whitening / 2))

    def place(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Unit rows, float32 (n, d), for raw ones."""
        rows = raw.astype(np.float64) - self.mean
        rows = rows if self.turn is None else rows @ self.turn
        return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)


@dataclass(frozen=True)
class Match:
    """How well items match a text, in spreads, float64 (N,); zeros where it was not understood.

    by_meaning, by_letters: which of the two spoke. corrected, unknown: see `LexicalMatch`.
    """

    scores: Floats
    by_meaning: bool
    by_letters: bool
    corrected: dict[str, str]
    unknown: tuple[str, ...]

    @property
    def understood(self) -> bool:
        """Whether the text said anything; otherwise the feed is shown."""
        return self.by_meaning or self.by_letters


@dataclass(frozen=True)
class Found:
    """A search. text: the query as it was read. part: the `query` part of the scores, float32 (N,), to be added.

    feed: True where the query is empty or not understood, so that the part is 0 and the feed is what is shown.
    """

    text: str
    part: NDArray[np.float32]
    feed: bool
    match: Match | None = None


class Searcher:
    """Search over one catalogue. plain: float32 (N, d). Nothing of a query outlives `forget` or the process."""

    def __init__(self, catalogue: Catalogue, *, plain: NDArray[np.float32], space: QuerySpace, encode: Encode) -> None:
        if len(plain) != len(catalogue):
            raise CatalogueError(f"found vectors of {len(plain)} items; the catalogue holds {len(catalogue)}")
        self.plain = plain
        self._space, self._encode = space, encode
        self._lexical = LexicalIndex(catalogue)
        self._cached: Callable[[str], NDArray[np.float32]] = lru_cache(CACHED)(self._vector)

    def search(self, query: str, *, scores: NDArray[np.floating]) -> Found:
        """What a query adds to a person's scores (N,). DataError for a query that is too long."""
        text = read_text(query, limit=MAX_QUERY)
        match = self.match(text) if text else None
        if match is None or not match.understood:
            return Found(text, np.zeros(len(self.plain), dtype=np.float32), True, match)
        return Found(text, (spread(scores) * match.scores).astype(np.float32), False, match)

    def match(self, text: str) -> Match:
        """How well items match a text that `read_text` gave."""
        words = self._lexical.match(text)
        vector, (noise, limit) = self.vector(text), self._noise
        meant = float(vector @ noise) < limit
        parts = LETTERS * words.scores**2
        if meant:
            parts += MEANING * standardise(self.plain @ vector)
        return Match(parts, meant, words.known, words.corrected, words.unknown)

    def vector(self, text: str) -> NDArray[np.float32]:
        """The query's vector among the plain ones, float32 (d,), unit length; kept for the next time."""
        return self._cached(text.casefold())

    def forget(self) -> None:
        """Drop the vectors of all queries."""
        self._cached = lru_cache(CACHED)(self._vector)

    def _vector(self, text: str) -> NDArray[np.float32]:
        return self._space.place(self._encode([text]))[0]

    @cached_property
    def _noise(self) -> tuple[NDArray[np.float32], float]:
        """Mean direction of random letter strings, (d,), and the cosine with it from which a text is one of them."""
        generator = np.random.default_rng(NOISE_STRINGS)
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
        texts = ["".join(generator.choice(letters, size)) for size in generator.integers(4, 11, NOISE_STRINGS)]
        rows = self._space.place(self._encode(texts))
        mean = rows.mean(axis=0)
        mean /= max(float(np.linalg.norm(mean)), 1e-12)
        return mean, float(np.percentile(rows @ mean, NOISE_PERCENTILE))


def read_text(text: str, *, limit: int) -> str:
    """A person's words as one clean line; empty if nothing is left. DataError for more than `limit` characters.

    Markup and instructions are words like any other: nothing here acts on them, and a page escapes what it shows.
    """
    if len(text) > limit:
        raise DataError(f"found {len(text):,} characters of text; expected at most {limit}; say it in fewer words")
    return clean_text(text, limit=limit)
