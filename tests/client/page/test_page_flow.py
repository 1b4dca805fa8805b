"""The page against the real service in headless Chromium: what a person does, and what comes of it."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from shared.catalogue import Catalogue
from tests.client.page.browser import Visit, call, served, visit

pytestmark = pytest.mark.slow


def skip_welcome(seen: Visit) -> None:
    seen.page.click("#welcome-skip")
    seen.settled()


def test_record_changes_the_ranking_why_says_so_mute_removes_and_forget_ends_it(
    browser: Any, link: str, tmp_path: Path
) -> None:
    with visit(browser, link) as seen:
        page = seen.page
        assert "token" not in page.url
        skip_welcome(seen)
        start = seen.titles()
        assert len(start) == 10

        # record: the opened item goes, and the next ranking leans to what is like it
        opened = start[2]
        seen.act("click", place=3)
        assert opened not in seen.titles()
        assert seen.titles() != [title for title in start if title != opened]
        assert page.locator("#cards .news.fresh").count() > 0  # what is new says so
        seen.act("like", place=1)

        # why: a sentence, parts that add up, the event behind it, and the feed without that event
        page.click("#cards > li:nth-child(1) [data-act=why]")
        page.wait_for_selector("#panel .parts li")
        shown = [float(text.replace("−", "-")) for text in page.locator("#panel .parts .figure").all_inner_texts()]
        total = float(page.locator("#panel .total .figure").inner_text().replace("−", "-"))
        assert sum(shown) == pytest.approx(total, abs=0.005 * (len(shown) + 1))
        behind = page.locator("#panel .evidence > li")
        assert opened in behind.all_inner_texts()[0] + behind.all_inner_texts()[1]
        page.click("#panel .evidence > li:nth-child(1) [data-seq]")
        page.wait_for_selector("#panel .without li")
        assert "you would have seen" in page.locator("#panel .without p").first.inner_text()

        # mute: everything with the first item's tag goes at once
        tag = page.locator("#panel .tag-name").first.inner_text()
        page.get_by_role("button", name=f"Mute: {tag}").click()
        page.wait_for_function(
            "tag => ![...document.querySelectorAll('#cards .tag')].some(one => one.textContent === tag)", arg=tag
        )
        page.keyboard.press("Escape")
        assert page.locator("#panel[open]").count() == 0
        assert seen.focus("data-act") in ("why", "click")  # of the card that took the place of the one that went
        seen.open("interests")
        assert page.locator(f'#interest-rows > [data-tag="{tag}"] input:checked').get_attribute("value") == "0"

        # forget: typed in full, proven, and as on the first day afterwards
        seen.open("privacy")
        page.click("#forget-open")
        page.keyboard.type("forget everythin")
        assert page.locator("#forget-go").is_disabled()
        page.keyboard.type("g")
        page.click("#forget-go")
        page.wait_for_selector("#forgotten:not([hidden])")
        rows = page.locator("#forgotten-proof tbody tr").all_inner_texts()
        assert rows[0].split() == ["Events", "2", "0"]
        assert all(row.split()[-1] == "0" for row in rows)
        assert "None was found" in page.locator("#forgotten-proof").inner_text()
        assert "ledger" in page.locator("#forgotten-proof").inner_text()
        page.click("#forgotten-done")
        seen.open("feed", shows="welcome")
        skip_welcome(seen)
        assert seen.titles() == start


def test_search_corrects_and_steering_says_how_it_was_understood(browser: Any, link: str) -> None:
    with visit(browser, link) as seen:
        page = seen.page
        skip_welcome(seen)
        feed = seen.titles()
        word = next(word for title in feed for word in title.split() if len(word) > 6 and word.isalpha())
        typo = word[:3] + word[4] + word[3] + word[5:]
        page.fill("#search", typo)
        page.keyboard.press("Enter")
        page.wait_for_selector("#understood li")
        assert f"{typo.lower()} was read as {word.lower()}." in page.locator("#understood").inner_text()
        assert word in seen.titles()[0]
        page.fill("#search", "")
        page.wait_for_selector("#understood", state="hidden")
        assert seen.titles() == feed

        # "this" needs an item; the page says so, and how to choose one
        page.fill("#steer", "like this, but newer")
        page.keyboard.press("Enter")
        page.wait_for_selector("#understood li")
        assert "Understood: newer." in page.locator("#understood").inner_text()
        assert "Left out like this: " in page.locator("#understood").inner_text()
        assert "More like this" in page.locator("#understood").inner_text()
        this = seen.titles()[1]
        page.click("#cards > li:nth-child(2) [data-act=this]")
        page.wait_for_function("() => document.querySelector('#understood').innerText.includes('more like this')")
        assert "Left out" not in page.locator("#understood").inner_text()
        assert this not in seen.titles()
        assert seen.focus() == "steer"
        for _ in range(2):
            page.locator("#asked button").first.click()
        page.wait_for_selector("#asked", state="hidden")
        seen.settled()
        assert seen.titles() == feed


def test_the_first_screen_turns_choices_into_the_first_feed(browser: Any, link: str, shelf: Catalogue) -> None:
    with visit(browser, link) as seen:
        page = seen.page
        page.wait_for_selector("#welcome-tags input")
        page.fill("#welcome-find", "heist")
        page.get_by_role("checkbox", name="heist").check()
        page.fill("#welcome-find", "")
        assert page.get_by_role("checkbox", name="heist").is_checked()
        page.click("#welcome-start")
        seen.settled()
        heists = {item.title for item in shelf.items if "heist" in item.tags}
        assert set(seen.titles()[: min(3, len(heists))]) <= heists
        page.reload()
        seen.settled()  # what was chosen is known: no first screen again


def test_not_interested_hides_until_it_is_taken_back(browser: Any, link: str) -> None:
    with visit(browser, link) as seen:
        page = seen.page
        skip_welcome(seen)
        gone = seen.titles()[0]
        seen.act("not-interested")
        assert gone not in seen.titles()
        page.get_by_role("button", name="Undo").click()
        page.wait_for_function("title => document.querySelector('#cards .title').innerText === title", arg=gone)
        seen.act("not-interested")
        seen.open("history")
        assert page.locator("#refused-rows > li").all_inner_texts()[0].startswith(gone)
        assert page.locator("#history-empty").is_visible()  # hiding is no event
        page.get_by_role("button", name="Show again").click()
        page.wait_for_selector("#refused-empty:not([hidden])")
        seen.open("feed")
        seen.settled()
        assert gone in seen.titles()


def test_settings_are_kept_and_tell_in_the_feed_what_they_moved(browser: Any, link: str) -> None:
    with visit(browser, link) as seen:
        page = seen.page
        skip_welcome(seen)
        seen.act("click")
        seen.open("settings")
        page.locator("#setting-diversity").fill("1")
        page.locator("#setting-per_tag_cap").fill("1")
        page.locator("#setting-per_tag_cap").press("Tab")
        page.wait_for_load_state("networkidle")
        page.reload()
        page.wait_for_selector("#setting-diversity")
        assert page.locator("#setting-diversity").input_value() == "1"
        assert page.locator("#setting-per_tag_cap").input_value() == "1"
        seen.open("feed")
        seen.settled()
        moved = page.locator("#cards > li", has=page.locator(".news", has_text="from")).first
        moved.locator("[data-act=why]").click()
        page.wait_for_selector("#panel .moves li")
        assert page.locator("#panel .moves li").first.inner_text().split(":")[0] in ("Diversity", "Limit per tag")
        tags = [set(one.split("\n")) for one in page.locator("#cards .tags").all_inner_texts()]
        assert sum(map(len, tags)) == len(set().union(*tags))  # no tag twice


def test_pausing_is_kept_and_the_meter_says_what_was_spent(browser: Any, link: str) -> None:
    with visit(browser, link) as seen:
        page = seen.page
        seen.open("privacy")
        meter = page.get_by_role("meter")
        assert [meter.get_attribute(f"aria-value{name}") for name in ("min", "now", "max")] == ["0", "0", "8"]
        assert "Nothing has left this device" in page.locator("#sent-hint").inner_text()
        page.locator("#participate").uncheck()
        page.get_by_text("Paused: nothing is sent").wait_for()
        page.reload()
        page.wait_for_selector("#privacy-layers .layer")
        assert not page.locator("#participate").is_checked()


def test_what_left_the_device_is_told_on_every_page(browser: Any, link: str) -> None:
    """The answer is made up, since a round takes a server; tests/client/service/test_door.py makes real ones."""
    digest = "ab" * 32
    row = {"time": 1.7e9, "run": "spring", "round": 0, "phase": "popularity", "bytes": 2500, "digest": digest}
    told = call(link, "GET", "/v1/privacy")
    told["layers"][0]["spent"] = 7.25
    told |= {"bytes_sent": 2500, "sent": [{**row, "refusal": "", "epsilon": {"event": 7.25}}]}
    refusal = {**row, "digest": "cd" * 32, "refusal": "budget", "epsilon": {}}
    with visit(browser, link) as seen:
        page = seen.page
        skip_welcome(seen)
        assert page.locator("#pill").inner_text().startswith("Nothing sent")
        page.route("**/v1/privacy?*", lambda route: route.fulfill(json=told))
        seen.act("click")
        page.wait_for_function("() => document.querySelector('#pill').innerText.startsWith('ε 7.25 of 8')")
        assert "2.5 kB of numbers sent, and no event" in page.locator("#glance").inner_text()
        told["sent"].append(refusal)
        seen.open("privacy")
        assert page.get_by_role("meter").get_attribute("aria-valuetext") == "7.25 of 8"
        assert page.locator(".layer .nearly").count() == 1
        rows = page.locator("#sent-rows tr").all_inner_texts()
        assert [part in rows[0] for part in ("spring", "how often items occur", "2.5 kB", "7.25 (event)", digest)] == [
            True
        ] * 5
        assert "refused: budget" in rows[1]
        told["ledger"], told["layers"] = "found a broken chain", []
        page.reload()
        page.get_by_text("found a broken chain").wait_for()


def test_import_through_the_page_and_export_again(
    browser: Any, shelf: Catalogue, vectors_cache: Path, tmp_path: Path
) -> None:
    items = [item.id for item in shelf.items[:6]]
    packed = tmp_path / "mine.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        rows = [(item.id, item.title, item.text, "|".join(item.tags), item.domain) for item in shelf.items]
        archive.writestr("items.csv", table(("item", "title", "text", "tags", "domain"), rows))
        archive.writestr("events.csv", table(("user", "item", "kind"), [("ana", item, "like") for item in items]))
    home = tmp_path / "home"
    home.mkdir()
    with served(home) as address, visit(browser, address, accept_downloads=True) as seen:
        page = seen.page
        page.wait_for_selector("#bare:not([hidden])")  # nothing to rank yet, and where to get it
        seen.open("privacy")
        page.set_input_files("#import-file", str(packed))
        page.get_by_role("button", name="Import").click()
        page.locator(".toast", has_text="Imported 6 events.").wait_for()
        page.click("nav [data-view=feed]")
        page.wait_for_selector("#loading:not([hidden])")  # the model is read
        page.wait_for_selector("#view-feed:not([hidden])", timeout=120_000)
        seen.settled()
        assert not set(seen.titles()) & {item.title for item in shelf.items[:6]}
        seen.open("privacy")
        with page.expect_download() as download:
            page.click("#export")
        with zipfile.ZipFile(download.value.path()) as archive:
            [events] = [name for name in archive.namelist() if name.endswith("events.jsonl")]
            assert len(archive.read(events).splitlines()) == 6
        bad = tmp_path / "bad.zip"
        bad.write_bytes(b"no zip")
        page.set_input_files("#import-file", str(bad))
        page.get_by_role("button", name="Import").click()
        page.locator(".toast.bad").wait_for()
        seen.complaints.clear()  # the browser notes an answer of 400


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([head, *rows])
    return text.getvalue()


def test_a_page_without_its_key_or_its_service_says_what_to_do(browser: Any, link: str) -> None:
    with visit(browser, link) as seen:
        skip_welcome(seen)
        seen.page.context.clear_cookies()
        seen.page.click("#cards > li:nth-child(1) [data-act=like]")
        seen.page.locator(".toast", has_text="key is no longer valid").wait_for()
        seen.page.context.set_offline(True)
        seen.page.click("#cards > li:nth-child(1) [data-act=like]")
        seen.page.locator(".toast", has_text="The service does not answer").wait_for()
        seen.complaints.clear()
