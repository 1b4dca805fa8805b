"""Releases: an adapter folder with a version and a signature, so that a device knows whose it is and that it is newer.

::

    release.json    what is released (`AdapterRelease`): version, every file's size and hash, fingerprints
    release.sig     Ed25519 signature of `SIGNED` + release.json, 64 bytes
    homerank.json, privacy.json, adapter_config.json, adapter_model.safetensors, projections.safetensors

One signature covers everything: it is checked before release.json is read, and the rest against what stands there.
What a device cannot notice is a server that keeps newer releases back; `created` says how old a release is.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from shared.artifacts import ADAPTER_SCHEMA, MAX_ADAPTER_BYTES
from shared.errors import AdapterError, DeploymentError

RELEASE_SCHEMA = 1
MANIFEST, SIGNATURE, LATEST = "release.json", "release.sig", "latest.json"
#: The files of an adapter folder; a release holds these, no others.
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "homerank.json",
    "privacy.json",
    "projections.safetensors",
)
#: Stands before what is signed, so that a signature of something else is never one of a release.
SIGNED = b"homerank release\n"
MAX_MANIFEST = 64 * 1024
SIGNATURE_BYTES = 64
#: A larger number does not survive every JSON reader.
MAX_VERSION = 2**53 - 1
_HASH = re.compile(r"[0-9a-f]{64}")
_TEXT = re.compile(r"[^\x00-\x1f\x7f]{0,200}")


@dataclass(frozen=True)
class FileFacts:
    """One file of a release: SHA-256 in hex, and size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class AdapterRelease:
    """The content of release.json.

    version: from 1, rising. name: for people. created: seconds UTC. files: by name. backbone, catalogue: fingerprints
    (SHA-256) of what the adapter was trained for; backbone_name: what its settings call the backbone. adapter_schema:
    of the adapter folder. homerank: the version that wrote it. key: `key_id` of the key that signs it. run, round: of
    the adapter. origin: deployment, or simulation where no real device took part.
    """

    version: int
    name: str
    created: int
    files: Mapping[str, FileFacts]
    backbone: str
    backbone_name: str
    catalogue: str
    adapter_schema: int
    homerank: str
    key: str
    run: str
    round: int
    origin: str

    @property
    def size(self) -> int:
        """Bytes of the adapter's files together."""
        return sum(file.bytes for file in self.files.values())

    def to_json(self) -> bytes:
        """release.json."""
        return (json.dumps({"schema": RELEASE_SCHEMA, **asdict(self)}, indent=1, sort_keys=True) + "\n").encode()


def read_key(pem: str) -> Ed25519PublicKey:
    """A public key as devices pin it. DeploymentError for anything but Ed25519 in PEM."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DeploymentError(f"found no public key ({error}); expected the PEM text of an Ed25519 key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise DeploymentError("found a public key of another kind; expected Ed25519, as the publisher's release.pub")
    return key


def key_pem(key: Ed25519PublicKey) -> str:
    """A public key as text."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def key_id(key: Ed25519PublicKey) -> str:
    """What a key is called: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def read_release(manifest: bytes, signature: bytes, *, key: Ed25519PublicKey) -> AdapterRelease:
    """What a signed release.json says.

    | found | result |
    |---|---|
    | the key's signature of exactly these bytes | the release |
    | one byte changed, in either; another key's signature; a cut signature | AdapterError, nothing is read |
    | signed, but of a newer or older schema, not JSON, a field missing or of another type | AdapterError |
    | signed, but with other files than an adapter has, a path in a name, or too many bytes | AdapterError |
    """
    try:
        if len(manifest) > MAX_MANIFEST:
            raise AdapterError(f"{MANIFEST}: found more than {MAX_MANIFEST} bytes; it is not a release")
        key.verify(signature, SIGNED + manifest)
    except InvalidSignature:
        raise AdapterError(
            f"{SIGNATURE}: found no signature of this {MANIFEST} by key {key_id(key)}, which is pinned here; the"
            " release was changed or comes from somebody else"
        ) from None
    try:
        facts = dict(json.loads(manifest))
    except (ValueError, TypeError) as error:
        raise AdapterError(f"{MANIFEST}: found no JSON object ({error}); publish again") from None
    schema = facts.get("schema")
    if schema != RELEASE_SCHEMA:
        raise AdapterError(
            f"{MANIFEST}: found schema {schema!r}; this version reads {RELEASE_SCHEMA};"
            f" {_remedy(schema, RELEASE_SCHEMA)}"
        )
    release = _parsed(facts)
    if release.key != key_id(key):
        raise AdapterError(f"{MANIFEST}: found key {release.key} named in it; expected {key_id(key)}, which signed it")
    return release


def require_fits(release: AdapterRelease, *, catalogue: str, backbone: str) -> None:
    """Refuse (AdapterError) a release for other items, another backbone, or another version of this program.

    catalogue, backbone: fingerprints of what this device has.
    """
    if release.adapter_schema != ADAPTER_SCHEMA:
        raise AdapterError(
            f"release {release.version}: found adapter schema {release.adapter_schema}; this version reads"
            f" {ADAPTER_SCHEMA} (it was written by homerank {release.homerank});"
            f" {_remedy(release.adapter_schema, ADAPTER_SCHEMA)}"
        )
    for name, found, expected in (
        ("catalogue", release.catalogue, catalogue),
        ("backbone", release.backbone, backbone),
    ):
        if found != expected:
            raise AdapterError(
                f"release {release.version}: found an adapter for another {name} ({found[:12]}); expected"
                f" {expected[:12]}, which this device has. Bring in the {name} of the release first"
            )


def require_files(folder: Path, release: AdapterRelease) -> None:
    """Refuse (AdapterError) a folder that is not exactly the release: a file more, less, linked, cut or changed."""
    found = {path.name: path for path in folder.iterdir()}
    expected = {*release.files, MANIFEST, SIGNATURE}
    if odd := sorted(found.keys() ^ expected):
        what = "a file too many" if odd[0] in found else "no file"
        raise AdapterError(f"{folder}: found {what} {odd[0][:60]!r}; expected the files of {MANIFEST} and no others")
    for name, facts in release.files.items():
        status = found[name].lstat()
        if not stat.S_ISREG(status.st_mode):
            raise AdapterError(f"{folder}: found that {name} is no plain file; fetch the release again")
        if status.st_size != facts.bytes:
            raise AdapterError(f"{folder}: found {status.st_size} bytes in {name}; expected {facts.bytes}")
        if file_hash(found[name]) != facts.sha256:
            raise AdapterError(f"{folder}: found another content in {name} than was signed; fetch the release again")


def verify_release(folder: Path, *, key: Ed25519PublicKey) -> AdapterRelease:
    """Everything that a release shows by itself: `read_release` and `require_files`. AdapterError as there."""
    try:
        manifest, signature = ((folder / name).read_bytes() for name in (MANIFEST, SIGNATURE))
    except OSError as error:
        raise AdapterError(f"{folder}: found no release ({error.strerror}: {Path(str(error.filename)).name})") from None
    release = read_release(manifest, signature, key=key)
    require_files(folder, release)
    return release


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remedy(found: object, known: int) -> str:
    """Which side is behind."""
    if type(found) is int and found > known:
        return "update homerank on this device"
    return "the server is behind: have its operator update it and publish again"


def _parsed(facts: Mapping[str, Any]) -> AdapterRelease:
    """release.json without its schema; fields that this version does not know are left alone."""
    try:
        files = {name: FileFacts(_hash(of["sha256"]), _whole(of["bytes"])) for name, of in facts["files"].items()}
        release = AdapterRelease(
            version=_whole(facts["version"]),
            name=_text(facts["name"]),
            created=_whole(facts["created"]),
            files=files,
            backbone=_hash(facts["backbone"]),
            backbone_name=_text(facts["backbone_name"]),
            catalogue=_hash(facts["catalogue"]),
            adapter_schema=_whole(facts["adapter_schema"]),
            homerank=_text(facts["homerank"]),
            key=_text(facts["key"]),
            run=_text(facts["run"]),
            round=_whole(facts["round"]),
            origin=_text(facts["origin"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AdapterError(f"{MANIFEST}: found a field missing or unusable ({error}); publish again") from None
    if odd := sorted(set(files) ^ set(ADAPTER_FILES)):
        raise AdapterError(
            f"{MANIFEST}: found {'' if odd[0] in files else 'no '}{odd[0][:60]!r} among the files; expected exactly"
            f" {', '.join(ADAPTER_FILES)}"
        )
    if release.version < 1 or release.size > MAX_ADAPTER_BYTES:
        raise AdapterError(
            f"{MANIFEST}: found version {release.version} of {release.size} bytes; expected a version from 1 and at"
            f" most {MAX_ADAPTER_BYTES} bytes"
        )
    return release


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_VERSION:
        raise ValueError(f"{str(value)[:60]!r} is no whole number in range")
    return value


def _text(value: Any) -> str:
    if not (isinstance(value, str) and _TEXT.fullmatch(value)):
        raise ValueError(f"{str(value)[:60]!r} is no line of at most 200 characters")
    return value


def _hash(value: Any) -> str:
    if not (isinstance(value, str) and _HASH.fullmatch(value)):
        raise ValueError(f"{str(value)[:60]!r} is no SHA-256 in hex")
    return value
