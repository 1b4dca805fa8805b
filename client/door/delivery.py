"""A delivered adapter takes the place of the last one, which is kept beside it.

::

    adapter/           what ranks
    adapter.new/       being written; nobody reads it
    adapter.previous/  what ranked before, for `roll_back`
"""

from __future__ import annotations

import shutil
from pathlib import Path

from shared.errors import AdapterError


def incoming(adapter: Path) -> Path:
    """Where a delivered adapter is written, empty."""
    folder = adapter.with_name(f"{adapter.name}.new")
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def previous(adapter: Path) -> Path:
    """Where the adapter before this one is kept."""
    return adapter.with_name(f"{adapter.name}.previous")


def settle(adapter: Path) -> None:
    """Put the folder that was written whole in place of the one that is there. AdapterError when that fails.

    Two renames. Between them there is no `adapter`; `recover` mends what a crash leaves there.
    """
    folder = adapter.with_name(f"{adapter.name}.new")
    try:
        if not folder.is_dir():
            raise AdapterError(f"{folder}: found no delivered adapter")
        if adapter.exists():
            shutil.rmtree(previous(adapter), ignore_errors=True)
            adapter.rename(previous(adapter))
        folder.rename(adapter)
    except OSError as error:
        recover(adapter)
        raise AdapterError(f"{adapter}: could not be replaced ({error.strerror or error}); the old one stays") from None


def roll_back(adapter: Path) -> bool:
    """Put the previous adapter back and drop the newest; False, and nothing left, when there was none before."""
    shutil.rmtree(adapter, ignore_errors=True)
    return recover(adapter)


def recover(adapter: Path) -> bool:
    """Put the previous adapter back where a crash left none; whether there is an adapter now."""
    shutil.rmtree(adapter.with_name(f"{adapter.name}.new"), ignore_errors=True)
    if not adapter.exists() and previous(adapter).exists():
        previous(adapter).rename(adapter)
    return adapter.exists()
