"""The container files say nothing a linter minds, run as nobody special, and start commands that exist.

No image is built here: that takes an engine, which a test machine has not.
"""

from __future__ import annotations

import json
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.test_documentation import understood

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "deploy").glob("*.Containerfile"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """Name and arguments of each instruction, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.M).replace("\\\n", " ")
    return [(name, rest.strip()) for name, rest in re.findall(r"^([A-Z]+) +(.*)$", text, re.M)]


def last(path: Path, name: str) -> str:
    return [rest for found, rest in instructions(path) if found == name][-1]


def test_there_is_one_for_each_side() -> None:
    assert [path.name for path in FILES] == ["client.Containerfile", "server.Containerfile"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_linter_has_nothing_to_say(path: Path) -> None:
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not linter.exists():
        pytest.skip(f"found no {linter}; install the development extra")
    done = subprocess.run([linter, "--failure-threshold", "style", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_linter_would_find_something(tmp_path: Path) -> None:
    linter = Path(sysconfig.get_path("scripts")) / "hadolint"
    if not linter.exists():
        pytest.skip(f"found no {linter}; install the development extra")
    bad = tmp_path / "Containerfile"
    bad.write_text("FROM python\nRUN cd /tmp && sudo pip install x\n")
    assert subprocess.run([linter, bad], capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_runs_as_a_user_without_rights_and_holds_no_secret(path: Path) -> None:
    steps = instructions(path)
    assert last(path, "USER") == "10001:10001"
    assert not any(name == "ADD" for name, _ in steps)
    assert not re.search(r"token|secret|password|private|\.key|\.pem", path.read_text(encoding="utf-8"), re.I)
    bases = {rest.split(" AS ")[0] for name, rest in steps if name == "FROM"}
    assert bases == {"docker.io/library/python:3.11-slim-bookworm"}
    assert "HEALTHCHECK" in {name for name, _ in steps}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_is_copied_is_named_and_there(path: Path) -> None:
    for name, rest in instructions(path):
        if name == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert source not in (".", "./")
                assert (ROOT / source).exists()
                assert f"!{source}\n" in (ROOT / ".containerignore").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_exists(path: Path) -> None:
    understood(" ".join([*json.loads(last(path, "ENTRYPOINT")), *json.loads(last(path, "CMD"))]))
