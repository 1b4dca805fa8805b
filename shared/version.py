"""The version of this program."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed


def version() -> str:
    """As it is installed; `unknown` when run from files that are not."""
    try:
        return installed("homerank")
    except PackageNotFoundError:
        return "unknown"
