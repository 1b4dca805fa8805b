"""Releases made by hand, so that tests can make wrong ones too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.adapter import AdapterState
from shared.artifacts import ADAPTER_SCHEMA, save_adapter
from shared.releases import (
    ADAPTER_FILES,
    LATEST,
    MANIFEST,
    RELEASE_SCHEMA,
    SIGNATURE,
    SIGNED,
    AdapterRelease,
    FileFacts,
    key_id,
)

#: Keys of tests: drawn from a fixed seed, so that failures repeat.
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
CATALOGUE, BACKBONE = "c" * 64, "b" * 64


def bare_adapter(folder: Path, *, value: float = 0.5, catalogue: str = CATALOGUE, backbone: str = BACKBONE) -> Path:
    """An adapter folder of a few numbers, which no model needs to have made."""
    save_adapter(
        folder,
        AdapterState({"x.lora_A": np.full(3, value, np.float32), "gamma": np.ones(1, np.float32)}),
        popularity=np.zeros(4, np.float32),
        peft_config={"r": 1},
        manifest={"run": "r", "round": 3, "backbone": backbone, "catalogue": catalogue, "settings": {}, "ledger": None},
        privacy={"mode": "none", "statement": "No privacy."},
    )
    return folder


def facts_of(folder: Path, version: int, **changed: Any) -> dict[str, Any]:
    """The content of release.json for an adapter folder; `changed` replaces fields."""
    manifest = json.loads((folder / "homerank.json").read_text())
    release = AdapterRelease(
        version=version,
        name=f"release {version}",
        created=1_700_000_000,
        files={name: file_facts(folder / name) for name in ADAPTER_FILES},
        backbone=manifest["backbone"],
        backbone_name="tiny-bert",
        catalogue=manifest["catalogue"],
        adapter_schema=ADAPTER_SCHEMA,
        homerank="0.1.0",
        key=key_id(KEY.public_key()),
        run="r",
        round=3,
        origin="deployment",
    )
    return {**json.loads(release.to_json()), **changed}


def file_facts(path: Path) -> FileFacts:
    content = path.read_bytes()
    return FileFacts(hashlib.sha256(content).hexdigest(), len(content))


def encoded(facts: Any) -> bytes:
    return json.dumps(facts).encode()


def signature_of(content: bytes, key: Ed25519PrivateKey = KEY) -> bytes:
    return key.sign(SIGNED + content)


def write_release(folder: Path, facts: Mapping[str, Any], key: Ed25519PrivateKey = KEY) -> Path:
    """Add a signed release.json to an adapter folder."""
    (folder / MANIFEST).write_bytes(encoded(facts))
    (folder / SIGNATURE).write_bytes(signature_of(encoded(facts), key))
    return folder


def point_to(places: Path, version: Any) -> None:
    """Say which release is the newest."""
    (places / LATEST).write_bytes(encoded({"schema": RELEASE_SCHEMA, "version": version}))
