"""One plain sentence about why an item is shown, put together from fixed pieces, titles and numbers that are true."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shared.catalogue import clean_text

#: Longest title in a sentence.
TITLE = 80


@dataclass(frozen=True)
class Facts:
    """What may be said; what is empty is not said.

    carriers: parts that lift the item above others, the strongest first. because: titles of the events behind content
    and prior, the strongest first. usual_after: title of the event after which the prior expects the item. alike: title
    of the event whose description is nearest. popular: (rank by popularity from 1, catalogue size). query: what was
    searched for. boosted: tags of the item that the person asked more of. steering: what was asked for in words.
    """

    carriers: Sequence[str] = ()
    because: Sequence[str] = ()
    usual_after: str = ""
    alike: str = ""
    popular: tuple[int, int] | None = None
    query: str = ""
    boosted: Sequence[str] = ()
    steering: str = ""


def quoted(text: str) -> str:
    """Text of a catalogue or a person inside quotes: one line without control or direction characters, cut to size.

    >>> quoted("Heat\\u202e (1995)")
    '"Heat (1995)"'
    """
    clean = clean_text(text).replace('"', "'")
    return f'"{clean if len(clean) <= TITLE else clean[: TITLE - 1].rstrip() + "…"}"'


def tell(facts: Facts) -> str:
    """The sentence. It names a reason only where it carries the score; without any it says so.

    >>> tell(Facts(carriers=["popularity"], popular=(3, 3416)))
    'Popular with everyone: number 3 of 3,416.'
    """
    clauses: list[str] = []
    for part in facts.carriers:
        clause = _clause(part, facts)
        if clause and clause not in clauses:
            clauses.append(clause)
    if facts.because and {"content", "prior"} & set(facts.carriers):
        clauses.insert(0, f"because you turned to {' and '.join(quoted(title) for title in facts.because)}")
    if not clauses:
        return "No single reason stands out: it ranks here by small differences."
    whole = "; ".join(clauses)
    return f"{whole[0].upper()}{whole[1:]}."


def _clause(part: str, facts: Facts) -> str:
    if part == "prior" and facts.usual_after:
        return f"people who turned to {quoted(facts.usual_after)} often go on to this"
    if part == "content" and facts.alike:
        return f"its description is close to that of {quoted(facts.alike)}"
    if part in ("popularity", "prior") and facts.popular:
        rank, count = facts.popular
        return f"popular with everyone: number {rank:,} of {count:,}"
    if part == "query" and facts.query:
        return f"it matches your search for {quoted(facts.query)}"
    if part == "interests" and facts.boosted:
        return f"you asked for more of {' and '.join(quoted(tag) for tag in facts.boosted)}"
    if part == "steering" and facts.steering:
        return f"it fits what you asked for: {facts.steering}"
    fixed = {
        "adapter": "the trained model expects it after what you did lately",
        "tail": "you asked for what is less well known",
    }
    return fixed.get(part, "")
