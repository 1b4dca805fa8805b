"""Where an adapter comes from, and whether what it says of its privacy is what a ledger says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from server.ledger import ServerLedger
from server.shipping import begun_from
from shared.errors import AdapterError, DeploymentError
from shared.privacy.chain import Head
from shared.privacy.statement import privacy_facts

Origin = Literal["deployment", "simulation"]

#: Two versions of a library may round an epsilon differently.
_ROUNDING = 1e-6


def origin_of(run: Path) -> Origin:
    """Whether real devices took part: a simulation keeps its virtual devices' events in the run folder."""
    return "simulation" if (run / "devices.sqlite").exists() else "deployment"


def require_ledger(run: Path, ledger: Path, manifest: Mapping[str, Any]) -> None:
    """Refuse an adapter whose privacy.json does not follow from the ledger, up to the head that the adapter rests on.

    run: the run folder. ledger: the file that the run was charged to. manifest: the adapter's homerank.json.

    | found | result |
    |---|---|
    | the figures and words that the ledger gives for the run | fine, with privacy and without |
    | other ones: edited, of another run, or of a run that this ledger does not know | DeploymentError |
    | a head that is not in the ledger: another one, or an old one put back | PrivacyError |
    | no ledger | DeploymentError |
    """
    if not ledger.exists():
        raise DeploymentError(f"{ledger}: found no ledger; expected the one that the run was charged to")
    adapter, books = run / "adapter", ServerLedger(ledger, witness=ledger.with_suffix(".witness"))
    try:
        entries, head = books.entries(), manifest.get("ledger")
        if head is not None:
            found = Head(**head)
            books.require(found)
            entries = entries[: found.seq]
        expected = privacy_facts(entries, run=str(manifest.get("run")), started_from=begun_from(run, books))
    except TypeError as error:
        raise AdapterError(f"{adapter}: found an unusable head of a ledger ({error}); ship it again") from None
    finally:
        books.close()
    if not _same(read_privacy(adapter), json.loads(json.dumps(expected, default=str))):
        raise DeploymentError(
            f"{adapter / 'privacy.json'}: found other figures than {ledger} gives for run {manifest.get('run')!r};"
            " expected the same. Continue the run, which ships its adapter again, or publish where it was charged"
        )


def read_privacy(adapter: Path) -> dict[str, Any]:
    """The privacy.json of an adapter folder. AdapterError when it is missing or damaged."""
    try:
        found = json.loads((adapter / "privacy.json").read_text(encoding="utf-8"))
        return dict(found)
    except (OSError, ValueError, TypeError) as error:
        raise AdapterError(f"{adapter}: found no usable privacy.json ({error}); ship the adapter again") from None


def _same(first: Any, second: Any) -> bool:
    """Equal JSON, but for the rounding of figures."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second) <= _ROUNDING * max(abs(first), abs(second))
    return type(first) is type(second) and bool(first == second)
