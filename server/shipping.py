"""How a run ends: its name, its verdict, and the adapter folder that it ships."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server.checkpoint import ServerState
from shared.adapter import AdapterState
from shared.artifacts import save_adapter
from shared.catalogue import Catalogue
from shared.config import Config
from shared.errors import RunError
from shared.runtime import Runtime, public_settings


def run_name(config: Config, catalogue: Catalogue, folder: Path, *, deployment: bool) -> str:
    """Name of an experiment in messages and ledgers.

    A simulation's depends on data and seed alone, so that the same settings give the same noise in any folder; a
    deployment's on its folder, since the ledgers of server and devices outlive a run.
    """
    part = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12] if deployment else str(config.seed)
    return f"{catalogue.fingerprint[:12]}-{part}"


def verdict(better: bool, gain: float, deviation: float, *, refused: str) -> dict[str, Any]:
    """Which ranker is shipped and why. gain: NDCG@10 difference, -infinity when too few devices answered."""
    if gain == -math.inf:
        reason = f"too few devices answered the comparison ({refused}); the start is kept"
        return {"shipped": "start", "gain": None, "noise": None, "reason": reason}
    found = f"NDCG@10 on held-out events {gain:+.4f}"
    if deviation:
        found += f" with privacy noise of standard deviation {deviation:.4f}"
    reason = f"{found}: the trained adapter is better" if better else f"{found}: not clearly better, the start is kept"
    return {"shipped": "adapter" if better else "start", "gain": gain, "noise": deviation, "reason": reason}


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
