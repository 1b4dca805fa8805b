"""Everything a user can call is written down, and everything written down can be called."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from simulations.cli_docs import cli_markdown, help_of, programs, walk

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("shared", "client", "server", "simulations")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
CONTEXTS = {context.command_path: context for name, app in programs().items() for context in walk(app, name)}


# --- the page of commands ----------------------------------------------------------------------------------


def test_the_page_of_commands_is_up_to_date() -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == cli_markdown(), "run `make docs`"


@pytest.mark.parametrize("path", sorted(CONTEXTS))
def test_every_command_option_and_argument_is_explained(path: str) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert f" {path}\n" in page
    context = CONTEXTS[path]
    assert context.command.help
    for param in context.command.params:
        assert help_of(param, context.command), f"{path}: {param.name} has no help"
        for name in param.opts if isinstance(param, click.Option) else [param.make_metavar(context)]:
            assert name in page


def test_no_command_is_a_stub() -> None:
    assert sorted(path for path, context in CONTEXTS.items() if not getattr(context.command, "commands", None)) == [
        "homerank-client benchmark",
        "homerank-client doctor",
        "homerank-client export",
        "homerank-client export-model",
        "homerank-client forget",
        "homerank-client import",
        "homerank-client install",
        "homerank-client interest",
        "homerank-client join",
        "homerank-client leave",
        "homerank-client node",
        "homerank-client page",
        "homerank-client privacy",
        "homerank-client recommend",
        "homerank-client record",
        "homerank-client search",
        "homerank-client serve",
        "homerank-client settings",
        "homerank-client similar",
        "homerank-client units",
        "homerank-client why",
        "homerank-server register",
        "homerank-server run",
        "homerank-server start",
        "homerank-simulate audit",
        "homerank-simulate benchmark quality",
        "homerank-simulate benchmark robustness",
        "homerank-simulate data check",
        "homerank-simulate plan",
        "homerank-simulate recommend",
        "homerank-simulate run",
    ]


# --- commands in the text ----------------------------------------------------------------------------------


def written_commands() -> Iterator[tuple[str, str]]:
    """Page and command for each line of a `sh` block that calls one of our programs."""
    for page in PAGES:
        for block in re.findall(r"^```(?:sh|bash|console)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                call = re.search(r"(?:^|/|\s)(homerank-(?:simulate|client|server)\b.*)", line.split(" #")[0])
                if call and not line.lstrip().startswith("#"):
                    yield page.name, call[1].rstrip(" &")


def understood(line: str) -> None:
    """Walk down to the command and let click parse its options; values are not looked at."""
    name, *rest = shlex.split(line)
    command = programs()[name]
    context = click.Context(command, info_name=name)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        word, *rest = rest
        found = command.get_command(context, word)
        assert found is not None, f"{line}: no command {word!r}"
        command, context = found, click.Context(found, info_name=word, parent=context)
    values, surplus, _ = command.make_parser(context).parse_args([part for part in rest if part != "--help"])
    assert not surplus, f"{line}: {surplus} is too much"
    if "--help" not in rest and not isinstance(command, click.Group):
        for param in command.params:
            given = isinstance(values.get(str(param.name)), (str, list))  # click has a mark for "not given"
            assert given or not param.required, f"{line}: {param.name} is missing"


@pytest.mark.parametrize(("page", "line"), sorted(set(written_commands())))
def test_commands_in_the_text_exist(page: str, line: str) -> None:
    understood(line)


def test_the_readme_shows_the_main_commands() -> None:
    shown = {line for page, line in written_commands() if page == "README.md"}
    for command in ("homerank-simulate run", "homerank-simulate recommend"):
        assert any(line.startswith(command) for line in shown), f"README.md never shows `{command}`"


@pytest.mark.parametrize(
    "line",
    ["homerank-simulate ru", "homerank-simulate run --round 3", "homerank-server start a b", "homerank-server start"],
)
def test_a_wrong_command_in_the_text_would_be_found(line: str) -> None:
    with pytest.raises((AssertionError, click.UsageError)):
        understood(line)


def test_make_targets_in_the_text_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(encoding="utf-8"), re.M):
            assert target in targets, f"{page.name}: make {target}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


# --- docstrings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_public_has_a_docstring(package: str) -> None:
    missing = []
    for path in sorted((ROOT / package).rglob("*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        for node in (module, *public(module.body)):
            if ast.get_docstring(node) is None:
                missing.append(f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'the module')}")
    assert missing == []


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(body: list[ast.stmt]) -> Iterator[Definition]:
    """Public functions, classes and their methods; overridden methods are documented where they come from."""
    for node in body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef) and not node.bases:
                yield from public(node.body)
