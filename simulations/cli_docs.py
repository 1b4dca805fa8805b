"""docs/cli.md, written from the three programs themselves: `python -m simulations.cli_docs`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator

import click
import typer.main
from typer.utils import get_params_from_function

_HEAD = """# Commands

Written by `python -m simulations.cli_docs > docs/cli.md`; do not edit by hand.

Results go to stdout and everything else to stderr; with `--json` a command prints exactly one JSON object. Exit code
0 is success, 2 a mistake the user can correct (one line on stderr), 130 Ctrl-C and 143 SIGTERM.
"""


def programs() -> dict[str, click.Command]:
    """The three programs by name."""
    from client.cli import app as client
    from server.cli import app as server
    from simulations.cli import app as simulate

    apps = {"homerank-simulate": simulate, "homerank-client": client, "homerank-server": server}
    return {name: typer.main.get_command(app) for name, app in apps.items()}


def walk(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[click.Context]:
    """A context for the command and for each command below it, parents first."""
    context = click.Context(command, info_name=name, parent=parent)
    yield context
    for child, below in getattr(command, "commands", {}).items():
        yield from walk(below, child, context)


def cli_markdown() -> str:
    """The whole page: a section for each program and each of its commands."""
    lines = [_HEAD]
    for name, program in programs().items():
        for context in walk(program, name):
            lines += ["", *_section(context)]
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _section(context: click.Context) -> list[str]:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    marks = "##" if context.parent is None else "###"
    lines = [f"{marks} {context.command_path}", "", *(command.help or "").splitlines()]
    if getattr(command, "commands", None):
        return lines
    lines += ["", "```", usage, "```"]
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    options = [param for param in command.params if isinstance(param, click.Option)]
    if arguments:
        rows = [f"| `{param.make_metavar(context)}` | {help_of(param, command)} |" for param in arguments]
        lines += ["", "| argument | meaning |", "|---|---|", *rows]
    if options:
        lines += ["", "| option | default | meaning |", "|---|---|---|"]
        lines += [f"| `{_form(param, context)}` | {_default(param)} | {help_of(param, command)} |" for param in options]
    return lines


def _form(option: click.Option, context: click.Context) -> str:
    """How the option is written, with the name of its value."""
    names = ", ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {option.make_metavar(context)}"


def _default(option: click.Option) -> str:
    if option.required:
        return "required"
    return "" if option.default is None or option.is_flag else f"`{option.default}`"


def help_of(param: click.Parameter, command: click.Command) -> str:
    """What a parameter's declaration says about it; empty when it says nothing.

    click 8.5 drops the help that Typer 0.20 gives an argument, so it is read from the function.
    """
    declared = get_params_from_function(inspect.unwrap(command.callback)) if command.callback else {}
    found = getattr(param, "help", None) or getattr(declared[str(param.name)].default, "help", None)
    return str(found or "").replace("|", "&#124;")


if __name__ == "__main__":
    sys.stdout.write(cli_markdown())
