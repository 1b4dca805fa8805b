"""Contrast of the page's colours, light and dark (WCAG 2.2: 4.5 for text, 3 for what is not text)."""

from __future__ import annotations

import re

import pytest

from tests.client.page.reading import text_of

STYLE = text_of("style.css")
TEXT = [
    *((ink, ground) for ink in ("ink", "soft", "accent") for ground in ("ground", "sheet", "tint")),
    ("ink", "sunk"),
    ("soft", "sunk"),
    ("on-accent", "accent"),
    ("on-bad", "bad"),
    ("warn", "warn-tint"),
    ("bad", "bad-tint"),
    ("ground", "ink"),  # a message at the edge of the page
]
#: What only has to be told from what is around it: edges of controls, bars, the ring around what has the focus.
SHAPES = [
    *((edge, ground) for edge in ("edge", "accent", "warn") for ground in ("ground", "sheet")),
    *((name, "sheet") for name in re.findall(r"--(part-\w+):", STYLE)),
]


def colours(scheme: str) -> dict[str, str]:
    """Custom properties of a colour scheme that are plain hexadecimal colours."""
    light, dark = STYLE.split("@media (prefers-color-scheme: dark)")
    text = light if scheme == "light" else dark.split("\n}\n")[0]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", text))


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb.

    >>> round(luminance("#ffffff"), 4), luminance("#000000")
    (1.0, 0.0)
    """
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_what_the_standard_says() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # famously just not enough


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str) -> None:
    known = colours(scheme)
    weak = {pair: round(contrast(known[pair[0]], known[pair[1]]), 2) for pair in TEXT}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < 4.5} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_edges_bars_and_focus_can_be_seen(scheme: str) -> None:
    known = colours(scheme)
    weak = {pair: round(contrast(known[pair[0]], known[pair[1]]), 2) for pair in SHAPES}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < 3} == {}


def test_both_schemes_define_the_same_colours() -> None:
    assert colours("light").keys() == colours("dark").keys()
