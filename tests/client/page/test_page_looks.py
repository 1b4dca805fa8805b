"""The page for everybody: with the keyboard alone, on a narrow screen, in light and dark, without motion."""

from __future__ import annotations

from typing import Any

import pytest

from tests.client.page.browser import Visit, visit

pytestmark = pytest.mark.slow

VIEWS = ("feed", "interests", "history", "privacy", "settings")
PHONE = {"width": 360, "height": 740}
#: What has the focus: its id, what it does, its words.
FOCUS = "() => { const at = document.activeElement; return [at.id, at.dataset.act ?? '', at.innerText ?? ''] }"
#: Whether what has the focus shows a ring, on itself, its label or the form around it.
RING = """() => {
  const at = document.activeElement;
  const around = [at, at.nextElementSibling, at.closest('form')].filter(Boolean);
  const styles = around.map(one => getComputedStyle(one));
  return styles.some(style => style.outlineStyle === 'solid' && parseFloat(style.outlineWidth) >= 2);
}"""
#: Controls that cannot be pressed with a finger: smaller than 24 by 24 pixels (WCAG 2.2, 2.5.8).
SMALL = """() => [...document.querySelectorAll('button, input, select, nav a')].filter(one => {
  const box = one.getBoundingClientRect();
  return box.width && box.height && (box.width < 24 || box.height < 24) && one.type !== 'range' && !one.disabled;
}).map(one => `${one.tagName} ${one.id} ${one.innerText} ${one.getBoundingClientRect().height}`)"""


def tab_to(seen: Visit, *, act: str = "", id: str = "", words: str = "", limit: int = 80) -> None:
    """Press Tab until that has the focus; every stop on the way must show that it has it."""
    for _ in range(limit):
        seen.page.keyboard.press("Tab")
        found_id, found_act, found_words = seen.page.evaluate(FOCUS)
        assert seen.page.evaluate(RING), f"no ring around {found_id or found_words!r}"
        if (id and found_id == id) or (act and found_act == act) or (words and words in found_words):
            return
    raise AssertionError(f"Tab never reached {id or act or words}")


def test_everything_can_be_done_with_the_keyboard_alone(browser: Any, link: str) -> None:
    with visit(browser, link) as seen:
        page = seen.page
        page.wait_for_selector("#welcome-tags input")
        # first screen: choose with the space bar, start with enter
        tab_to(seen, id="welcome-0")
        page.keyboard.press("Space")
        tab_to(seen, id="welcome-start")
        assert "(1 chosen)" in page.locator("#welcome-start").inner_text()
        page.keyboard.press("Enter")
        seen.settled()

        # the first stop skips the menu; the feed can be changed without leaving the place
        page.reload()
        seen.settled()
        page.keyboard.press("Tab")
        assert seen.focus() == "skip-link"
        page.keyboard.press("Enter")
        assert seen.focus() == "main"
        tab_to(seen, act="like")
        liked = seen.titles()[0]
        page.keyboard.press("Enter")
        page.wait_for_function("title => document.querySelector('#cards .title').innerText !== title", arg=liked)
        assert page.evaluate(FOCUS) == ["", "click", seen.titles()[0]]  # the title now in that place
        assert "feed has changed" in page.locator("body > [data-live]").inner_text()

        # why: opens on its heading, keeps Tab inside, closes with Escape, and gives the focus back
        tab_to(seen, act="why")
        page.keyboard.press("Enter")
        page.wait_for_selector("#panel .parts")
        assert seen.focus() == "panel-heading"
        tab_to(seen, words="Without this")
        page.keyboard.press("Enter")
        page.wait_for_selector("#panel .without")
        for _ in range(60):
            page.keyboard.press("Tab")
            assert page.evaluate("() => document.querySelector('#panel').contains(document.activeElement) "
                                 "|| document.activeElement === document.body")  # fmt: skip
        page.keyboard.press("Escape")
        assert page.evaluate(FOCUS)[1] == "why"

        # interests: one group of choices a tag, moved through with the arrows
        page.goto(f"{seen.origin}/#interests")
        page.wait_for_selector("#interest-rows > li")
        assert seen.focus() == "interests-heading"
        while page.evaluate("() => document.activeElement.type") != "radio":
            page.keyboard.press("Tab")
        tag = page.evaluate("() => document.activeElement.closest('li').dataset.tag")
        chosen = page.evaluate("() => document.activeElement.value")
        page.keyboard.press("ArrowLeft")
        row = f'#interest-rows > [data-tag="{tag}"]'
        page.wait_for_function(
            "([row, was]) => document.querySelector(row + ' input:checked')?.value !== was", arg=[row, chosen]
        )

        # forget: the dialog opens in its field, Escape keeps everything
        page.goto(f"{seen.origin}/#privacy")
        page.wait_for_selector("#privacy-layers .layer")
        tab_to(seen, id="forget-open")
        page.keyboard.press("Enter")
        assert seen.focus() == "forget-words"
        page.keyboard.press("Escape")
        assert seen.focus() == "forget-open"
        page.goto(f"{seen.origin}/#history")
        page.wait_for_selector("#history-rows > li")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_on_a_phone(browser: Any, link: str, scheme: str) -> None:
    with visit(browser, link, viewport=PHONE, color_scheme=scheme, has_touch=True) as seen:
        page = seen.page
        page.wait_for_selector("#welcome-tags input")
        check_width(seen, "welcome")
        page.click("#welcome-skip")
        seen.settled()
        seen.act("like")
        page.fill("#steer", "like this, newer but much less " + "antidisestablishmentarianism" * 3)
        page.keyboard.press("Enter")
        page.wait_for_selector("#understood li")
        for view in VIEWS:
            seen.open(view)
            check_width(seen, view)
            assert page.evaluate(SMALL) == []
        seen.open("feed")
        seen.settled()
        page.click("#cards > li:nth-child(1) [data-act=why]")
        page.wait_for_selector("#panel .evidence [data-seq]")
        page.click("#panel .evidence [data-seq]")
        page.wait_for_selector("#panel .without")
        check_width(seen, "why")
        assert (
            page.evaluate(
                "() => { const b = document.querySelector('#panel-body'); return b.scrollWidth - b.clientWidth }"
            )
            <= 0
        )
        page.keyboard.press("Escape")
        seen.open("privacy")
        page.click("#forget-open")
        check_width(seen, "forget")


def check_width(seen: Visit, place: str) -> None:
    wide = seen.page.evaluate("() => document.documentElement.scrollWidth")
    assert wide <= PHONE["width"], f"{place} is {wide} pixels wide"
    out = seen.page.evaluate(
        "width => [...document.querySelectorAll('body *')].filter(one => one.getBoundingClientRect().right > width + 1"
        " && !one.closest('.unseen, .sprite, [aria-hidden], .table-wrap')).map(one => one.outerHTML.slice(0, 90))",
        PHONE["width"],
    )
    assert out == [], place


def test_dark_and_light_follow_the_device(browser: Any, link: str) -> None:
    shades = {}
    for scheme in ("light", "dark"):
        with visit(browser, link, color_scheme=scheme) as seen:
            seen.page.wait_for_selector("#welcome-tags input")
            colour = seen.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
            red, green, blue = (int(part) for part in colour[4:-1].split(","))
            shades[scheme] = (red + green + blue) / 3
            ink = seen.page.evaluate("() => getComputedStyle(document.body).color")
            shades[f"{scheme} ink"] = int(ink[4:-1].split(",")[0])
    assert shades["light"] > 230 > 60 > shades["light ink"]
    assert shades["dark"] < 40 < 200 < shades["dark ink"]


@pytest.mark.parametrize(("wish", "moves"), [("reduce", False), ("no-preference", True)])
def test_cards_move_only_for_whom_motion_is_no_trouble(browser: Any, link: str, wish: str, moves: bool) -> None:
    with visit(browser, link, reduced_motion=wish) as seen:
        seen.page.click("#welcome-skip")
        seen.settled()
        seen.page.evaluate(
            "() => { window.moved = 0; const animate = Element.prototype.animate;"
            " Element.prototype.animate = function (...given) {"
            " window.moved += 1; return animate.apply(this, given) } }"
        )
        seen.act("like")
        assert (seen.page.evaluate("() => window.moved") > 0) is moves
