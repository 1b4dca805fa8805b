"""Values as HTML that cannot break out of its place: all that comes from data or settings passes here."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any


def stylesheet() -> str:
    """The style that pages with `shared.plots` share: light and dark, screen, phone and paper."""
    return (files("shared") / "page.css").read_text(encoding="utf-8")


def text(value: object) -> str:
    """Any value as text that cannot become markup, in an element or in a quoted attribute."""
    return escape(str(value))


def title(value: object) -> str:
    """A title, kept apart from the writing direction of the text around it."""
    return f"<bdi>{text(value)}</bdi>"


def note(sentence: str) -> str:
    """A quiet sentence, such as what is missing from a section."""
    return f'<p class="soft">{text(sentence)}</p>'


def banner(headline: str, sentence: str) -> str:
    """A warning nobody overlooks."""
    return f'<div class="banner"><b>{text(headline)}</b>{text(sentence)}</div>'


def pairs(values: Mapping[str, Any], about: Mapping[str, str] | None = None) -> str:
    """Names and values side by side, empty for no values. about: name -> what the pointer shows over it."""
    rows = ""
    for name, value in values.items():
        hint = f' title="{text(about[name])}"' if about and name in about else ""
        rows += f"<dt{hint}>{text(name.replace('_', ' '))}</dt><dd>{text(_plain(value))}</dd>"
    return f"<dl>{rows}</dl>" if rows else ""


def captioned(caption: str, plot: str) -> str:
    """A plot of `shared.plots` with what it shows above it."""
    return f"<figure><figcaption>{text(caption)}</figcaption>{plot}</figure>"


def legend(colours: Mapping[str, str]) -> str:
    """What the colours mean. colours: name -> variable of the style sheet."""
    marks = [
        f'<span><i style="background:var({variable})"></i>{text(name)}</span>' for name, variable in colours.items()
    ]
    return f'<div class="legend">{"".join(marks)}</div>'


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> [duration(s) for s in (0.42, 42, 200, 7500)]
    ['0.4 s', '42 s', '3 min 20 s', '2 h 5 min']
    """
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
