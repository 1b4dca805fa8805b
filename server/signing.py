"""The key that a server signs its releases with.

::

    DIR/release.key    Ed25519, PKCS8 PEM, mode 0600: whoever has it can put an adapter on every device
    DIR/release.pub    its public half, which devices pin
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from shared.artifacts import write_atomic
from shared.errors import DeploymentError
from shared.releases import LATEST, SIGNED, key_pem, read_key

KEY, PUBLIC = "release.key", "release.pub"


def signing_key(folder: Path) -> Ed25519PrivateKey:
    """The deployment's key, made the first time; the public half is derived from it each time, so the two match.

    Raises DeploymentError when the key is damaged, readable by others, or gone while its public half or a release is
    still there: a new one would lock out every device that pinned the old one.
    """
    place, public = folder / KEY, folder / PUBLIC
    if place.exists():
        key = _read(place)
    elif public.exists() or (folder / "releases" / LATEST).exists():
        raise DeploymentError(
            f"{place} is missing while there are releases; restore it from a backup, or remove {public} and the"
            " releases to start anew (devices then refuse releases until they pin the new key)"
        )
    else:
        key = Ed25519PrivateKey.generate()
        write_atomic(place, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), private=True)
    pem = key_pem(key.public_key()).encode()
    if not public.exists() or public.read_bytes() != pem:
        write_atomic(public, pem)
    return key


def public_key(folder: Path) -> Ed25519PublicKey:
    """The public half alone, which everybody may read. DeploymentError when there is none."""
    try:
        return read_key((folder / PUBLIC).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DeploymentError(f"{folder / PUBLIC}: found no public key ({error}); publish a release first") from None


def signed(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """The signature of a release.json, 64 bytes."""
    return key.sign(SIGNED + manifest)


def _read(place: Path) -> Ed25519PrivateKey:
    mode = place.stat().st_mode & 0o777
    if mode & 0o077:
        raise DeploymentError(
            f"{place}: found mode {mode:o}; expected 600. Close it (chmod 600) and see who has read it"
        )
    try:
        key = load_pem_private_key(place.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DeploymentError(f"{place}: found no usable key ({error}); restore it from a backup") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise DeploymentError(f"{place}: found a key of another kind; expected Ed25519; restore it from a backup")
    return key
