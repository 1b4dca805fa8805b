"""Words of titles and tags, found in spite of a typo.

Each query word stands for itself where the catalogue has it, else for the catalogue's words within one edit (four to
seven letters) or two (eight and more) that begin with the same letter. Candidates share letter pairs with it (an
inverted index over the vocabulary), so that no query is compared with every title.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.scale import Floats
from shared.catalogue import Catalogue

#: Words of a query that are looked at.
MAX_WORDS = 32
#: Vocabulary words whose distance to an unknown word is computed.
CANDIDATES = 40
#: How much of a full match an item keeps that matches few of its own title's words.
PARTIAL_TITLE = 0.75
_WORD = re.compile(r"[^\W_]+")
_YEAR = re.compile(r"1[89]\d\d|20\d\d")


def split_words(text: str) -> list[str]:
    """Words in lower case without accents and apostrophes, in order.

    >>> split_words("Amélie's Children’s Film (2001)")
    ['amelies', 'childrens', 'film', '2001']
    """
    plain = unicodedata.normalize("NFKD", text.casefold().replace("'", "").replace("’", ""))
    return _WORD.findall("".join(letter for letter in plain if not unicodedata.combining(letter)))


def stem(word: str) -> str:
    """A word without a plural's s, after the S-stemmer of Harman (JASIS 1991); `-y` and `-ies` become one.

    >>> [stem(word) for word in ("movies", "movie", "comedies", "comedy", "princess")]
    ['movie', 'movie', 'comedie', 'comedie', 'princess']
    """
    if len(word) > 3 and word[-1] == "s" and word[-2] not in "sui":
        return word[:-1]
    return f"{word[:-1]}ie" if len(word) > 3 and word[-1] == "y" and word[-2] not in "aeiou" else word


def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions, replacements and swaps of neighbours (optimal string alignment; Damerau 1964).

    >>> edit_distance("haet", "heat"), edit_distance("matrx", "matrix")
    (1, 1)
    """
    before: list[int] = []
    row = list(range(len(second) + 1))
    for i, letter in enumerate(first, start=1):
        older, before, row = before, row, [i]
        for j, other in enumerate(second, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == second[j - 2] and first[i - 2] == other:
                cost = min(cost, older[j - 2] + 1)
            row.append(cost)
    return row[-1]


@dataclass(frozen=True)
class LexicalMatch:
    """What a query's words found.

    scores: float64 (N,), 1 where an item has all words of the query, as tags or as its whole title; 0 for none.
    corrected: word -> the nearest word of the catalogue it was taken for. unknown: words that nothing is near to.
    known: whether any word was found.
    """

    scores: Floats
    corrected: dict[str, str]
    unknown: tuple[str, ...]
    known: bool


class LexicalIndex:
    """Inverted index of a catalogue's title and tag words."""

    def __init__(self, catalogue: Catalogue) -> None:
        rows: list[dict[str, None]] = []
        self._shown: dict[str, str] = {}  # a stem as the catalogue first writes it
        titles = np.empty(len(catalogue))
        for place, item in enumerate(catalogue.items):
            title = split_words(item.title)
            titles[place] = len({word for word in title if not _YEAR.fullmatch(word)})
            stems = {stem(word): word for word in reversed((*title, *split_words(" ".join(item.tags))))}
            rows.append(dict.fromkeys(stems))
            for key, word in stems.items():
                self._shown.setdefault(key, word)
        self._title_words = np.maximum(titles, 1)
        self._words = sorted(self._shown)
        self._place = {word: place for place, word in enumerate(self._words)}
        self._items = _Postings(len(self._words), [[self._place[word] for word in row] for row in rows])
        tags = [{stem(word) for word in split_words(" ".join(item.tags))} for item in catalogue.items]
        self._tagged = _Postings(len(self._words), [[self._place[word] for word in sorted(row)] for row in tags])
        self._weight = np.log1p(len(rows) / np.maximum(self._items.sizes, 1))
        pairs = [dict.fromkeys(_pairs(word)) for word in self._words]
        self._pair_place = {pair: place for place, pair in enumerate(sorted({pair for row in pairs for pair in row}))}
        self._near = _Postings(len(self._pair_place), [[self._pair_place[pair] for pair in row] for row in pairs])
        self._pair_counts = np.array([len(row) for row in pairs], dtype=np.float64)

    def match(self, query: str) -> LexicalMatch:
        """Score all items. An item's score is the part of the query's words it has, rarer words counting more."""
        found = np.zeros(len(self._title_words))
        matched, by_tag = np.zeros(len(found)), np.zeros(len(found))
        corrected, unknown, total = {}, [], 0.0
        usual = float(np.median(self._weight)) if len(self._weight) else 1.0
        for word in list(dict.fromkeys(split_words(query)))[:MAX_WORDS]:
            meanings = self.meanings(stem(word))
            if not meanings:
                unknown.append(word)
                total += usual
                continue
            nearest = meanings[0][0]
            if self._words[nearest] != stem(word):
                corrected[word] = self._shown[self._words[nearest]]
            weight = float(self._weight[nearest])
            total += weight
            share, tagged = np.zeros(len(found)), np.zeros(len(found))
            for meaning, nearness in meanings:
                for postings, values in ((self._items, share), (self._tagged, tagged)):
                    rows = postings.of(meaning)
                    values[rows] = np.maximum(values[rows], nearness)
            found += weight * share
            matched += share
            by_tag += tagged
        if not matched.any():
            return LexicalMatch(found, {}, tuple(unknown), known=False)
        own = np.where(by_tag >= matched, 1.0, np.minimum(matched / self._title_words, 1.0))
        scores = found / total * (PARTIAL_TITLE + (1 - PARTIAL_TITLE) * own)
        return LexicalMatch(scores, corrected, tuple(unknown), known=True)

    def meanings(self, word: str) -> list[tuple[int, float]]:
        """Vocabulary places that a stem may stand for and how near each is, 1 for the stem itself, nearest first."""
        if (exact := self._place.get(word)) is not None:
            return [(exact, 1.0)]
        allowed = 0 if len(word) < 4 else 1 if len(word) < 8 else 2
        pairs = [self._pair_place[pair] for pair in dict.fromkeys(_pairs(word)) if pair in self._pair_place]
        if not allowed or not pairs or len(word) > 40:
            return []
        common = np.bincount(np.concatenate([self._near.of(p) for p in pairs]), minlength=len(self._words))
        alike = 2 * common / (self._pair_counts + len(set(_pairs(word))))  # Dice coefficient
        nearest = np.argsort(-alike, kind="stable")[:CANDIDATES].tolist()
        distances = [
            (edit_distance(word, self._words[place]), place)
            for place in nearest
            if self._words[place][0] == word[0] and abs(len(self._words[place]) - len(word)) <= allowed
        ]
        return [(place, 1 - distance / len(word)) for distance, place in sorted(distances) if distance <= allowed]


class _Postings:
    """For each of `count` keys the rows that hold it; a row's keys are given without repeats."""

    def __init__(self, count: int, rows: Sequence[Iterable[int]]) -> None:
        sizes = [len(list(row)) for row in rows]
        keys = np.array([key for row in rows for key in row], dtype=np.int64)
        owner = np.repeat(np.arange(len(rows)), sizes)
        self._rows: NDArray[np.int64] = owner[np.argsort(keys, kind="stable")]
        self.sizes = np.bincount(keys, minlength=count)
        self._start = np.concatenate([[0], np.cumsum(self.sizes)])

    def of(self, key: int) -> NDArray[np.int64]:
        return self._rows[self._start[key] : self._start[key + 1]]


def _pairs(word: str) -> list[str]:
    framed = f"^{word}$"
    return [framed[place : place + 2] for place in range(len(framed) - 1)]
