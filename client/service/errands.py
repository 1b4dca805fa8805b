"""What commands bring to the service and take from it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from client.service.caller import Caller
from client.service.parcels import packed
from shared.errors import ConfigError, DataError

#: What `import --what run` takes from a simulation's run folder: what, and where it lies.
RUN_PARTS = (("catalogue", "items.jsonl"), ("adapter", "adapter"))
WHAT = ("history", "catalogue", "adapter", "run")


def parsed_changes(changes: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE as settings, values as JSON. ConfigError for anything else."""
    found: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not equals or not name or not isinstance(value, bool | int | float):
            raise ConfigError(f"found {change[:60]!r}; expected NAME=VALUE, such as participate=false or diversity=0.3")
        found[name.strip()] = value
    return found


def import_folder(service: Caller, folder: Path, *, what: str, user: str | None) -> list[dict[str, Any]]:
    """Send a folder to the service; what it imported. DataError for an unknown `what` or a folder that is not there."""
    folder = folder.expanduser()
    if what not in WHAT:
        raise ConfigError(f"--what: found {what[:60]!r}; expected one of {', '.join(WHAT)}")
    if not folder.exists():
        raise DataError(f"{folder}: found nothing there; expected a data, run or adapter folder")
    parts = [(what, folder)]
    if what == "run":
        parts = [(part, folder / name) for part, name in RUN_PARTS]
        if missing := [path for _, path in parts if not path.exists()]:
            raise DataError(f"{missing[0]}: found nothing there; expected the folder of a finished run")
    return [_sent(service, path, what=part, user=user) for part, path in parts]


def write_new(target: Path, content: Callable[[], bytes]) -> int:
    """Write a new private file, whole or not at all; its bytes. DataError when something is there, or it cannot be."""
    target = target.expanduser()
    if target.exists() or target.suffix != ".zip":
        found = "something there already" if target.exists() else f"the name {target.name!r}"
        raise DataError(f"{target}: found {found}; expected a new file that ends in .zip")
    body = content()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".export-", dir=target.parent) as scratch:
            partial = Path(scratch) / "export.zip"
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(body)
            partial.rename(target)
    except OSError as error:
        raise DataError(f"{target}: could not be written ({error.strerror}); nothing was exported") from None
    return len(body)


def _sent(service: Caller, path: Path, *, what: str, user: str | None) -> dict[str, Any]:
    params = {"what": what, **({"user": user} if user else {})}
    found: dict[str, Any] = service.call("POST", "/v1/import", content=packed(path), params=params)
    return found
