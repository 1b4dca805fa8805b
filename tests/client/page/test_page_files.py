"""The page's files by themselves: nothing from elsewhere, nothing that runs text, and every name leads somewhere."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from client.engine import Engine
from client.profile import Profile
from client.service.http import make_app
from client.service.pages import index, part
from client.service.person import Person
from tests.client.page.reading import FILES, SCRIPTS, STYLES, Markup, code_of, text_of

DRAWN = "http://www.w3.org/2000/svg"
PAGE = Markup(text_of("index.html"))
IDS = PAGE.values("id")
CODE = "\n".join(code_of(path) for path in SCRIPTS)
#: Ways by which text could become markup or code, or the page could keep or send what a person does.
RUNS_TEXT = (
    "innerHTML|outerHTML|insertAdjacentHTML|setHTML|createContextualFragment|DOMParser|parseFromString|srcdoc"
    "|document\\.write|\\beval\\b|\\bFunction\\s*\\(|javascript:|\\bimport\\s*\\("
)
KEEPS_OR_SENDS = (
    "localStorage|sessionStorage|indexedDB|document\\.cookie|sendBeacon|WebSocket|EventSource|XMLHttpRequest|pushState"
    "|serviceWorker|window\\.open|postMessage"
)


# --- nothing from elsewhere, nothing inline ----------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_another_place(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace(DRAWN, "")
    assert re.findall(r"https?:|\bwss?:|[\"'(=]\s*//\w|@import", text) == []


@pytest.mark.parametrize("path", STYLES, ids=lambda path: path.name)
def test_styles_load_nothing(path: Path) -> None:
    assert "url(" not in path.read_text(encoding="utf-8")


def test_the_page_has_no_inline_script_or_style() -> None:
    assert PAGE.inline == []
    names = {name for _, given in PAGE.elements for name in given}
    assert sorted(name for name in names if name == "style" or name.startswith("on")) == []
    assert {tag for tag, _ in PAGE.elements} & {"iframe", "object", "embed", "base", "style"} == set()


def test_every_file_that_the_page_loads_is_served_in_its_kind() -> None:
    loaded = {value for name in ("src", "href") for value in PAGE.values(name) if not value.startswith("#")}
    assert loaded == {"/page/app.js", "/page/favicon.svg", "/page/style.css", "/page/views.css"}
    assert index().body.decode() == text_of("index.html")
    kinds = {path.name: part(path.name).media_type for path in FILES}
    assert {name: kind.split(";")[0] for name, kind in kinds.items() if kind} == {
        path.name: {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}[
            path.suffix[1:]
        ]
        for path in FILES
    }


# --- the scripts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_turns_text_into_markup_or_code(path: Path) -> None:
    assert re.findall(RUNS_TEXT, code_of(path)) == []
    assert re.findall(r"setAttribute\(\s*[\"'](?:style|on)|\bon[a-z]+\s*=\s*(?:\(|function)", code_of(path)) == []
    assert re.findall(r"set(?:Timeout|Interval)\(\s*[\"'`]", code_of(path)) == []


@pytest.mark.parametrize("line", ["box.innerHTML = title;", "eval(text)", "new Function (text)", "import(name)"])
def test_such_a_line_would_be_found(line: str) -> None:
    assert re.findall(RUNS_TEXT, line)


def test_nothing_is_kept_in_the_browser_and_only_one_module_talks_to_the_service() -> None:
    assert re.findall(KEEPS_OR_SENDS, CODE) == []
    assert [path.name for path in SCRIPTS if re.search(r"\bfetch\(|/v1/", code_of(path))] == ["api.js"]


@pytest.mark.parametrize("path", [*SCRIPTS, *STYLES], ids=lambda path: path.name)
def test_a_file_reads_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_what_a_script_imports_is_exported_and_used(path: Path) -> None:
    code = code_of(path)
    for names, source in re.findall(r"import \{([^}]*)\} from \"\./([a-z]+\.js)\";", code):
        exported = re.findall(r"export (?:async )?(?:function|const|class) (\w+)", text_of(source))
        for name in re.findall(r"\w+", names):
            assert name in exported, f"{source} exports no {name}"
            assert len(re.findall(rf"\b{name}\b", code)) > 1, f"{name} is imported and not used"
    for source in re.findall(r"from \"\./([a-z]+\.js)\"", code):
        assert source in {script.name for script in SCRIPTS}


# --- names lead somewhere ----------------------------------------------------------------------------------


def test_ids_are_there_once_and_every_reference_leads_to_one() -> None:
    assert [name for name, count in Counter(IDS).items() if count > 1] == []
    wanted = [value for name in ("for", "list") for value in PAGE.values(name)]
    wanted += [name for attribute in ("labelledby", "describedby") for name in PAGE.values(f"aria-{attribute}")]
    wanted += [value[1:] for tag, given in PAGE.elements if tag == "use" for value in [given["href"]]]
    wanted += re.findall(r"byId\(\"([\w-]+)\"\)", CODE)
    wanted += [f"i-{name}" for name in re.findall(r"icon(?:\(|: )\"([\w-]+)\"", CODE)]
    assert len(wanted) > 100
    assert sorted(set(wanted) - set(IDS)) == []


def test_every_id_serves_something() -> None:
    referred = {value for name in ("for", "list", "aria-labelledby", "aria-describedby") for value in PAGE.values(name)}
    unused = [name for name in IDS if name not in referred and f'"{name}"' not in CODE and not name.startswith("i-")]
    views = set(PAGE.values("data-view")) | {"welcome"}
    made = {f"view-{name}" for name in views} | {f"{name}-heading" for name in views}
    assert sorted(set(unused) - made) == []


def test_every_page_of_the_menu_has_a_view_with_a_heading() -> None:
    views = PAGE.values("data-view")
    assert views == ["feed", "interests", "history", "privacy", "settings"]
    assert {f"{kind}-{name}" for name in views for kind in ("view",)} <= set(IDS)
    assert {f"{name}-heading" for name in views} <= set(IDS)
    assert set(re.findall(r"(\w+): open\w+", code_of(SCRIPTS[[p.name for p in SCRIPTS].index("app.js")]))) == set(views)


def test_every_call_exists_in_the_api(tmp_path: Path) -> None:
    def never(*_: object) -> Engine:
        raise AssertionError("no engine is needed to describe the API")

    person = Person(Profile.open(tmp_path), engine=never)
    known = make_app(person, token="t").openapi()["paths"]
    person.close()
    code = code_of(SCRIPTS[[path.name for path in SCRIPTS].index("api.js")])
    calls = [("GET", path) for path in re.findall(r"get\(\s*[\"'`](/v1/[a-z/-]+)", code)]
    calls += re.findall(r"(?:ask|send)\(\s*\"([A-Z]+)\",\s*[\"'`](/v1/[a-z/-]+)", code)
    calls += [("POST", path) for path in re.findall(r"[?:] \"(/v1/[a-z/-]+)\"", code)]
    assert len(set(calls)) == code.count("/v1/")
    for method, path in calls:
        assert method.lower() in known.get(path, {}), f"{method} {path}"


def test_controls_have_names() -> None:
    labelled = set(PAGE.values("for"))
    for tag, given in PAGE.elements:
        if tag in ("input", "select"):
            assert given.get("id") in labelled, given
        if tag in ("dialog", "section", "nav", "aside"):
            assert given.keys() & {"aria-label", "aria-labelledby"}, given
    assert PAGE.elements[0] == ("html", {"lang": "en"})
