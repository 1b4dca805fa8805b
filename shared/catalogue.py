"""The public side of the data: which items exist and what their text says.

A catalogue is public, so nothing computed from it alone costs privacy. Text from a catalogue is
untrusted: control and bidirectional characters are removed and its length is capped.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from shared.errors import CatalogueError
from shared.schema import Item

MAX_TITLE_CHARS = 200
MAX_TEXT_CHARS = 2_000


def clean_text(text: str, *, limit: int = MAX_TEXT_CHARS) -> str:
    """Normalise untrusted catalogue text: NFKC, no control, format or private-use characters, one line, capped.

    >>> clean_text("Evil\\u202e title\\x00\\n here")
    'Evil title here'
    """
    if text.isascii() and text.isprintable():  # the common case, and a hundred times faster
        return " ".join(text.split())[:limit].rstrip()
    normal = unicodedata.normalize("NFKC", text[: 4 * limit])
    spaced = (" " if ch.isspace() else ch for ch in normal)
    kept = "".join(ch for ch in spaced if unicodedata.category(ch) not in ("Cc", "Cf", "Co", "Cs", "Cn"))
    return " ".join(kept.split())[:limit].rstrip()


@dataclass(frozen=True)
class Catalogue:
    """All items in a fixed order; the position of an item is its index everywhere else.

    Raises CatalogueError for an empty catalogue, duplicate ids or an item without any text.
    """

    items: tuple[Item, ...]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.items:
            raise CatalogueError("found an empty catalogue; expected at least one item")
        index: dict[str, int] = {}
        for position, item in enumerate(self.items):
            if item.id in index:
                raise CatalogueError(f"found item id {item.id!r} twice; expected each id once")
            if not item.text:
                raise CatalogueError(f"item {item.id!r} has no usable text; give it a title or a text")
            index[item.id] = position
        object.__setattr__(self, "_index", index)

    @classmethod
    def from_rows(cls, rows: Iterable[Item]) -> Catalogue:
        """Clean untrusted items and keep their order."""
        return cls(
            tuple(
                Item(
                    id=row.id,
                    title=clean_text(row.title or row.text, limit=MAX_TITLE_CHARS),
                    text=clean_text(row.text or row.title),
                    tags=tuple(clean_text(tag, limit=60) for tag in row.tags),
                    domain=clean_text(row.domain, limit=60),
                    creator=clean_text(row.creator, limit=60),
                )
                for row in rows
            )
        )

    def __len__(self) -> int:
        return len(self.items)

    def index(self, item_id: str) -> int:
        """Position of an item id; CatalogueError when there is none."""
        try:
            return self._index[item_id]
        except KeyError:
            raise CatalogueError(f"unknown item id {item_id!r}; the catalogue holds {len(self)} items") from None

    def __contains__(self, item_id: str) -> bool:
        return item_id in self._index

    def subset(self, keep: Sequence[int]) -> Catalogue:
        """The catalogue of the given positions, in that order."""
        return Catalogue(tuple(self.items[position] for position in keep))

    @property
    def texts(self) -> list[str]:
        """What the backbone reads, in catalogue order."""
        return [item.text for item in self.items]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over ids and texts in order: two sides with the same fingerprint mean the same item vectors."""
        digest = hashlib.sha256()
        for item in self.items:
            for part in (item.id, item.text):
                raw = part.encode()
                digest.update(len(raw).to_bytes(4, "big"))
                digest.update(raw)
        return digest.hexdigest()
