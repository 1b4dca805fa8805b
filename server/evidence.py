"""What is known of the server's ledger outside of it: heads in checkpoints, in adapters, and in its witness.

A checkpoint and an adapter each name the row of the ledger that they rest on. A ledger that lacks such a row has
forgotten a release, whatever its own chain says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from shared.errors import PrivacyError
from shared.privacy.chain import Chain, Head, Witness

#: What `shared.artifacts.save_adapter` writes; where `shared.transfer` keeps an adapter that may be of another ledger.
MANIFEST, START = "homerank.json", "start"

_SERVER = 0


def heads_in(folder: Path) -> list[Head]:
    """Heads that checkpoints and adapters under `folder` name, wherever they lie. Unreadable files name none."""
    return [head for path in sorted(folder.rglob("*")) for head in _heads_of(path)]


def newest_known(folder: Path) -> list[Head]:
    """The newest heads that the ledger and the witness in a folder know; [] when neither can be read."""
    found: list[Head] = []
    ledger, witness = folder / "ledger.sqlite", folder / "ledger.witness"
    if ledger.exists():
        try:
            with closing(Chain(ledger)) as chain:
                found.append(chain.head(_SERVER))
        except PrivacyError:
            pass  # the witness, the checkpoints and the adapters still speak
    if witness.exists():
        try:
            with closing(Witness(witness, durable=True)) as seen:
                found.append(seen.head(_SERVER))
        except PrivacyError:
            pass
    return found


def _heads_of(path: Path) -> Iterator[Head]:
    facts: Any = None
    if path.name == "checkpoint.safetensors":
        facts = _checkpoint_facts(path).get("head")
    elif path.name == MANIFEST and START not in path.parent.parts:
        facts = _json_facts(path).get("ledger")
    if isinstance(facts, dict):
        try:
            yield Head(**facts)
        except (TypeError, PrivacyError):
            return


def _checkpoint_facts(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as handle:
            return dict(json.loads((handle.metadata() or {}).get("state", "{}")))
    except (OSError, SafetensorError, ValueError, TypeError):
        return {}


def _json_facts(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
