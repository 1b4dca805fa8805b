"""systemd, where it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from client.install.accounts import call
from client.install.layout import TMPFILES, Layout


class Systemd:
    """What is asked of systemd. Where it does not run, or for another root than this machine's, nothing is."""

    def __init__(self, layout: Layout, *, run: Callable[[Sequence[str]], None] = call) -> None:
        self._run = run
        #: Whether systemd is what started this machine, as sd_booted(3) finds out.
        self.runs = layout.is_this_machine and Path("/run/systemd/system").is_dir()

    def start(self, units: Sequence[str]) -> None:
        """Make the socket's folder, then start the units, now and after every boot."""
        if self.runs:
            self._run(["systemd-tmpfiles", "--create", str(TMPFILES)])
            self._run(["systemctl", "daemon-reload"])
            self._run(["systemctl", "enable", *units])
            self._run(["systemctl", "restart", *units])

    def stop(self, units: Sequence[str]) -> None:
        """Stop the units, now and for good."""
        if self.runs and units:
            self._run(["systemctl", "disable", "--now", *units])

    def reload(self) -> None:
        """Forget units whose files are gone."""
        if self.runs:
            self._run(["systemctl", "daemon-reload"])
