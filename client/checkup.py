"""What `doctor` looks at: whether a profile can record, rank, and take part."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path

from client.profile import Profile
from client.quarantine import set_aside
from client.store import Store
from shared.artifacts import load_adapter, load_catalogue
from shared.catalogue import Catalogue
from shared.errors import HomerankError

#: Free bytes below which a disk is called full.
ROOM = 100 * 1024**2


@dataclass(frozen=True)
class Finding:
    """One thing looked at. remedy: what to do, empty when nothing is."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def check_up(home: Path, name: str) -> list[Finding]:
    """Look at everything; nothing is changed but the modes of the profile's files. ConfigError for a bad name."""
    profile = Profile.open(home, name)
    findings = [Finding("profile", True, str(profile.folder)), _disk(profile)]
    catalogue, told = _catalogue(profile)
    findings += [told, _events(profile), _adapter(profile, catalogue), _ledger(profile), _settings(profile)]
    return [*findings, _service(profile), _torch()]


def _disk(profile: Profile) -> Finding:
    free = shutil.disk_usage(profile.folder).free
    remedy = "" if free >= ROOM else "make room: a full disk records nothing"
    return Finding("disk", free >= ROOM, f"{free / 1024**3:.1f} GiB free", remedy)


def _catalogue(profile: Profile) -> tuple[Catalogue | None, Finding]:
    if not profile.catalogue.exists():
        remedy = "homerank-client import FOLDER, or import FOLDER --what catalogue"
        return None, Finding("catalogue", False, "none yet", remedy)
    try:
        catalogue = load_catalogue(profile.catalogue)
    except HomerankError as error:
        return None, Finding("catalogue", False, str(error), "import it again")
    return catalogue, Finding("catalogue", True, f"{len(catalogue):,} items")


def _events(profile: Profile) -> Finding:
    damaged = [path.name for path in set_aside(profile.events)]
    if not profile.events.exists():
        return Finding("events", True, "none yet")
    try:
        store = Store(profile.events)
        try:
            count, check = store.count(), store.read("PRAGMA quick_check")[0][0]
        finally:
            store.close()
    except HomerankError as error:
        return Finding("events", False, str(error), "start the service: it moves a damaged file aside")
    if check != "ok":
        return Finding("events", False, f"damaged: {check}", "start the service: it moves a damaged file aside")
    aside = f"; {len(damaged)} damaged earlier files are kept aside" if damaged else ""
    return Finding("events", True, f"{count:,}{aside}")


def _adapter(profile: Profile, catalogue: Catalogue | None) -> Finding:
    if not profile.adapter.exists():
        return Finding("adapter", True, "none yet; ranks by content and popularity")
    try:
        _, _, manifest = load_adapter(profile.adapter)
    except HomerankError as error:
        return Finding("adapter", False, str(error), "import another; until then the one before it ranks")
    if catalogue is not None and manifest.get("catalogue") != catalogue.fingerprint:
        return Finding("adapter", False, "belongs to another catalogue", "import its catalogue, or another adapter")
    return Finding("adapter", True, f"run {manifest.get('run')}, round {manifest.get('round')}")


def _ledger(profile: Profile) -> Finding:
    from client.service.accounts import account
    from client.service.owner import limits_of

    try:
        found = account(profile, limits_of(profile))
    except HomerankError as error:
        return Finding("limits", False, str(error), "mend or remove the file")
    if found.problem:
        return Finding("ledger", False, found.problem, "the device goes on ranking and does not train")
    spent = ", ".join(f"{layer.unit} {layer.spent:.3f}" for layer in found.layers)
    return Finding("ledger", True, f"epsilon spent: {spent}")


def _settings(profile: Profile) -> Finding:
    try:
        preferences = profile.preferences()
    except HomerankError as error:
        return Finding("settings", False, str(error), "mend or remove the file")
    return Finding("settings", True, "takes part in training" if preferences.participate else "paused taking part")


def _service(profile: Profile) -> Finding:
    from client.service.running import find_service

    try:
        address = find_service(profile)
    except HomerankError as error:
        return Finding("service", False, str(error), "end the other process, or wait for it")
    return Finding("service", True, f"runs at {address.url}" if address else "does not run")


def _torch() -> Finding:
    """Whether the full engine can run, without importing it."""
    try:
        there = importlib.util.find_spec("torch") is not None
    except (ImportError, ValueError):  # a finder, or a module put in its place, that says no
        there = False
    if not there:
        return Finding("torch", True, "not installed; use --engine int8 or student with an exported model")
    return Finding("torch", True, "installed")
