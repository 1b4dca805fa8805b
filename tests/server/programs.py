"""homerank's programs as processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import psutil

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def program(*arguments: str, expect: int) -> Iterator[dict[str, str]]:
    """Run a homerank program with --json; yields its object, interrupts it, checks that nothing is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        yield json.loads(line) if line else {}
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGINT if expect == 130 else signal.SIGTERM)
        started = monotonic()
        process.communicate(timeout=60)
        _, alive = psutil.wait_procs(family, timeout=1)
    assert alive == []
    assert process.returncode == expect
    assert monotonic() - started < 20
