"""Steering in words: "more like this but newer, less dark, for children".

A small closed set of relations is understood; everything else is a phrase whose meaning is looked up as a search is:

| words | what they do |
|---|---|
| more, for, with, about, like, or none | towards the phrase, weight 1 |
| less, fewer | away from it, weight 1 |
| not, no, without, nothing, except | away from it, weight 2 |
| like this, similar to this | towards the item at hand |
| newer, recent; older | by the year; with `than 1990`, or after / before / since 1990: on one side of it |
| much, far, lot, very; bit, slightly, little, somewhat | twice or half the weight |
| and, or | go on as before; but, a comma: start afresh |
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from client.scale import Floats, spread, standardise
from client.search import Searcher, read_text

#: Longest instruction in characters, and relations in it.
MAX_INSTRUCTION = 200
MAX_CLAUSES = 8
_TOKEN = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*|[,;.!?]")
_AFRESH = frozenset({"but", ",", ";", ".", "!", "?"})
_GO_ON = frozenset({"and", "or"})
_SIGNS = {"more": 1.0, "less": -1.0, "fewer": -1.0}
_SIGNS |= dict.fromkeys(("not", "no", "without", "nothing", "except"), -2.0)
_DEGREES = {
    "much": 2.0,
    "far": 2.0,
    "lot": 2.0,
    "very": 2.0,
    "bit": 0.5,
    "slightly": 0.5,
    "little": 0.5,
    "somewhat": 0.5,
}
_FILLERS = frozenset({"a", "an", "the", "too", "so", "please", "show", "me", "i", "want", "would", "like"})
_FILLERS |= {"something", "anything", "things", "it", "of", "is", "are", "be"}
_NOUNS = frozenset({"ones", "things", "items", "films", "movies", "books", "songs"})
_TOWARDS = frozenset({"for", "with", "about", "in", "like", "similar", "to"})
_THIS = frozenset({"this", "these", "that", "it"})
_YEARS = {"newer": 1.0, "recent": 1.0, "after": 1.0, "since": 1.0, "older": -1.0, "before": -1.0}
_STARTS = {*_SIGNS, *_YEARS} - {"since", "after", "before"}
_YEAR = re.compile(r"1[89]\d\d|20\d\d")

Kind = Literal["meaning", "item", "years"]


@dataclass(frozen=True)
class Phrase:
    """One thing understood. weight: signed; below 0 is away from it. year: the side of which year, if one was named."""

    kind: Kind
    text: str
    weight: float
    year: int | None = None


@dataclass(frozen=True)
class Steering:
    """An instruction as understood. part: the `steering` part of the scores, float32 (N,), to be added.

    ignored: (words, why) for what did not count.
    """

    part: NDArray[np.float32]
    phrases: tuple[Phrase, ...]
    ignored: tuple[tuple[str, str], ...]


def steer(
    instruction: str,
    *,
    scores: NDArray[np.floating],
    searcher: Searcher,
    years: Floats,
    item: int | None = None,
    strength: float = 1.0,
) -> Steering:
    """Understand an instruction and say what it adds to a person's scores (N,).

    years: (N,), NaN unknown. item: what "this" is. strength: spreads of the scores per standard deviation of a phrase's
    match. DataError for an instruction that is too long.
    """
    total, kept, ignored = np.zeros(len(scores)), [], []
    for phrase in understand(instruction):
        if isinstance(phrase, Phrase):
            values, reason = _match(phrase, searcher=searcher, years=years, item=item)
            if not reason:
                total += phrase.weight * values
                kept.append(phrase)
                continue
            ignored.append((phrase.text, reason))
        else:
            ignored.append((phrase, "no relation or phrase that is understood"))
    part = (strength * spread(scores) * total).astype(np.float32)
    return Steering(part, tuple(kept), tuple(ignored))


def describe(steering: Steering) -> str:
    """The understood phrases in plain words; "without" weighs as much as "much less", and is said so.

    >>> phrases = (Phrase("years", "newer", 1.0), Phrase("meaning", "dark", -2.0))
    >>> describe(Steering(np.zeros(1, np.float32), phrases, ignored=()))
    'newer; much less "dark"'
    """
    return "; ".join(_words(phrase) for phrase in steering.phrases)


def understand(instruction: str) -> list[Phrase | str]:
    """The phrases of an instruction, in order; plain text for what is neither. DataError if it is too long."""
    text = read_text(instruction, limit=MAX_INSTRUCTION)
    found: list[Phrase | str] = []
    inherited = 1.0
    for joined, tokens in _clauses(text):
        if len(found) == MAX_CLAUSES:
            found.append(" ".join(tokens))
            break
        phrase, inherited = _read(tokens, inherited if joined else 1.0)
        found.append(phrase)
    return found


def _clauses(text: str) -> Iterator[tuple[bool, list[str]]]:
    """Clauses as tokens, and whether each goes on as the one before."""
    tokens: list[str] = []
    joined = said = False
    for token, following in pairwise([*_TOKEN.findall(text), ""]):
        word = token.casefold()
        breaks = word in _AFRESH or word in _GO_ON
        dated = word in _YEARS and _YEAR.fullmatch(following) is not None
        graded = word in _DEGREES and following.casefold() in _STARTS
        if breaks or (said and (word in _STARTS or dated or graded)):
            if tokens:
                yield joined, tokens
                tokens, joined, said = [], False, False
            if breaks:
                joined = word in _GO_ON
                continue
        tokens.append(token)
        said = said or word not in {*_SIGNS, *_DEGREES, *_FILLERS}
    if tokens:
        yield joined, tokens


def _read(tokens: list[str], inherited: float) -> tuple[Phrase | str, float]:
    """One clause, and the sign and weight that an `and` after it goes on with."""
    sign, degree, signed = inherited, 1.0, False
    rest = list(tokens)
    while rest:
        word = rest[0].casefold()
        if word in _SIGNS:
            sign = _SIGNS[word] * (np.sign(sign) if signed else 1.0)
            signed = True
        elif word in _DEGREES:
            degree = _DEGREES[word]
        elif word not in _FILLERS or (word == "like" and len(rest) > 1 and rest[1].casefold() in _THIS):
            break
        rest.pop(0)
    return _phrase(rest, sign * degree) or " ".join(tokens), sign


def _phrase(rest: list[str], weight: float) -> Phrase | None:
    words = [word.casefold() for word in rest]
    if not words:
        return None
    if words[0] in ("like", "similar") and words[-1] in _THIS and len(words) <= 3:
        return Phrase("item", " ".join(rest), weight)
    if words[0] in _YEARS:
        named = next((int(word) for word in words[1:] if _YEAR.fullmatch(word)), None)
        if named is not None or set(words[1:]) <= _NOUNS:
            return Phrase("years", " ".join(rest), weight * _YEARS[words[0]], named)
    while rest and rest[0].casefold() in _TOWARDS:
        rest = rest[1:]
    return Phrase("meaning", " ".join(rest), weight) if rest else None


def _match(phrase: Phrase, *, searcher: Searcher, years: Floats, item: int | None) -> tuple[Floats, str]:
    """How well items match a phrase, standardised (N,), and why it cannot be said, empty if it can."""
    nothing = np.zeros(len(years))
    if phrase.kind == "item":
        if item is None:
            return nothing, "no item at hand that this could be"
        return standardise(searcher.plain @ searcher.plain[item]), ""
    if phrase.kind == "years":
        if not np.isfinite(years).any():
            return nothing, "no item of the catalogue says its year"
        side = years if phrase.year is None else np.where(np.isfinite(years), np.sign(years - phrase.year), np.nan)
        return standardise(side), ""
    match = searcher.match(phrase.text)
    return (standardise(match.scores), "") if match.understood else (nothing, "no item is near to it")


def _words(phrase: Phrase) -> str:
    degree = {0.5: "a bit ", 1.0: "", 2.0: "much "}.get(abs(phrase.weight), "very much ")
    if phrase.kind == "item":
        return f"{degree}{'less' if phrase.weight < 0 else 'more'} like this"
    if phrase.kind == "years":
        side = "newer" if phrase.weight > 0 else "older"
        return f"{degree}{side}" + (f" than {phrase.year}" if phrase.year is not None else "")
    return f"{degree}{'less' if phrase.weight < 0 else 'more'} " + f'"{phrase.text}"'
