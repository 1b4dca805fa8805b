"""What systemd itself says about the units; nothing is installed for that."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from shutil import which

import pytest

from client.cli import app
from client.install.layout import DEVICE_UNIT, NODE_UNIT
from client.install.units import Choices, written_files
from shared.terminal import run_cli

ANALYSE = which("systemd-analyze")
#: systemd's own scale: 0 is safe, 10 exposed; a unit without any of this is at 9.6.
MOST_EXPOSED = {DEVICE_UNIT: 1.5, NODE_UNIT: 1.7}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if ANALYSE is None:
        pytest.skip("found no systemd-analyze; install Debian's systemd")
    for path, text in written_files(Choices(python=Path(sys.executable))).items():
        (tmp_path / path.name).write_text(text)
    return tmp_path


def analyse(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(ANALYSE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("name", [DEVICE_UNIT, NODE_UNIT])
def test_systemd_understands_every_line(name: str, folder: Path) -> None:
    done = analyse("verify", "--man=no", folder / name)
    about_ours = [line for line in done.stderr.splitlines() if "homerank" in line]
    assert (done.returncode, about_ours) == (0, [])


def test_a_line_that_systemd_does_not_know_would_be_found(folder: Path) -> None:
    unit = folder / DEVICE_UNIT
    unit.write_text(unit.read_text().replace("NoNewPrivileges", "NoNewPrivilegs"))
    assert "NoNewPrivilegs" in analyse("verify", "--man=no", unit).stderr


@pytest.mark.parametrize("name", [DEVICE_UNIT, NODE_UNIT])
def test_systemd_finds_little_exposed(name: str, folder: Path) -> None:
    done = analyse("security", "--offline=yes", "--no-pager", folder / name)
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze rates no files: {done.stderr.strip()}")
    assert float(found[1]) <= MOST_EXPOSED[name], done.stdout


def test_the_command_shows_what_install_would_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            run_cli(app, "homerank-client", ["units", *arguments])
        assert end.value.code in (0, None)
        return capsys.readouterr().out

    shown = json.loads(run("--json", "--epsilon", "4"))["files"]
    assert {Path(name).name for name in shown} == {DEVICE_UNIT, NODE_UNIT, "homerank.conf"}
    assert "--epsilon 4\n" in shown[f"/etc/systemd/system/{DEVICE_UNIT}"]
    written = run("--out", str(tmp_path / "out"), "--epsilon", "4").split()
    assert {Path(name).read_text() for name in written} == set(shown.values())
    assert all(text in run("--epsilon", "4") for text in shown.values())
