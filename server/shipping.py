"""How a run ends: its name, its verdict, and the adapter folder that it ships."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server.checkpoint import ServerState
from server.ledger import ServerLedger
from shared.adapter import AdapterState
from shared.artifacts import save_adapter
from shared.catalogue import Catalogue
from shared.config import Config
from shared.errors import PrivacyError, RunError
from shared.model import Stage
from shared.privacy.chain import Head
from shared.runtime import Runtime, public_settings
from shared.transfer import started_from

#: A stage must beat the start by this many standard deviations of the privacy noise in the comparison.
CONFIDENCE = 1.645
_KEPT = {"prior": "the prior is better, training on top of it is not", "adapter": "the trained adapter is better"}


def run_name(config: Config, catalogue: Catalogue, folder: Path, *, deployment: bool) -> str:
    """Name of an experiment in messages and ledgers.

    A simulation's depends on data and seed alone, so that the same settings give the same noise in any folder; a
    deployment's on its folder, since the ledgers of server and devices outlive a run.
    """
    part = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12] if deployment else str(config.seed)
    return f"{catalogue.fingerprint[:12]}-{part}"


def verdict(gains: Mapping[Stage, float], deviation: float, *, refused: str) -> dict[str, Any]:
    """Which ranker is shipped and why.

    gains: NDCG@10 difference to the start by stage, simplest first; empty when too few devices answered. deviation: of
    the privacy noise in each. A stage is shipped when it beats the start clearly, and the simpler stages too.
    """
    if not gains:
        reason = f"too few devices answered the comparison ({refused}); the start is kept"
        return {"shipped": "start", "gain": None, "noise": None, "gains": {}, "reason": reason}
    needed = CONFIDENCE * deviation
    shipped: Stage = "start"
    best = 0.0
    for stage, gain in gains.items():  # the noise of a difference of two gains is larger by sqrt(2)
        margin = needed if shipped == "start" else needed * math.sqrt(2)
        if margin < gain - best and needed < 1:  # NDCG cannot gain more than 1: such a comparison decides nothing
            shipped, best = stage, gain
    gain = gains[shipped] if shipped in gains else max(gains.values())
    found = "NDCG@10 on held-out events " + ", ".join(f"{stage} {gain:+.4f}" for stage, gain in gains.items())
    if deviation:
        found += f" with privacy noise of standard deviation {deviation:.4f}"
    reason = f"{found}: not clearly better, the start is kept" if shipped == "start" else f"{found}: {_KEPT[shipped]}"
    return {"shipped": shipped, "gain": gain, "noise": deviation, "gains": dict(gains), "reason": reason}


def begun_from(folder: Path, ledger: ServerLedger) -> list[dict[str, Any]]:
    """`shared.transfer.started_from` of a run folder, each with `in_ledger`: whether this ledger holds its releases."""
    return [{**earlier, "in_ledger": _holds(ledger, earlier["ledger"])} for earlier in started_from(folder)]


def _holds(ledger: ServerLedger, head: Mapping[str, Any] | None) -> bool:
    if head is None:
        return False
    try:
        ledger.require(Head(**head))
    except (PrivacyError, TypeError):
        return False
    return True


def ship(
    folder: Path, adapter: AdapterState, *, state: ServerState, runtime: Runtime, privacy: Mapping[str, Any]
) -> None:
    """Write the adapter folder of a finished run; RunError when there is no released popularity to go with it.

    privacy: the content of privacy.json. The folder names the head of the ledger that it rests on.
    """
    if state.popularity is None:
        raise RunError("found no released popularity; the checkpoint is incomplete, start a new run")
    save_adapter(
        folder,
        adapter,
        popularity=state.popularity,
        peft_config=runtime.peft_config(),
        manifest={
            "run": state.run,
            "round": state.round,
            "backbone": runtime.backbone.digest,
            "catalogue": runtime.catalogue.fingerprint,
            "settings": public_settings(runtime.config),
            "outcome": state.outcome,
            "ledger": asdict(state.head) if state.head else None,
        },
        privacy=privacy,
    )
