"""Keys, masks and sealed boxes.

From Flower's primitives (`flwr.common.secure_aggregation.crypto`, read in 1.41.0): key agreement (ECDH and
HKDF-SHA256) and Fernet sealing (AES-128-CBC with HMAC-SHA256). Not taken:

- `pseudo_rand_gen` folds its 32-byte seed to 32 bits for a Mersenne Twister, so masks can be found by trying all
  2^32 seeds, and never draws the largest residue, so they are not uniform. Masks here are AES-256 in counter mode.
- P-384 keys in PEM: reading PEM accepts any kind of key, and P-384 takes 6.5 times as long as P-256 (0.56 against
  0.09 ms an agreement) for no gain beside AES-128. Points of P-256 are read instead, which checks that they are some.
- `create_shares` and `combine_shares`: slow, see `shamir`.

Fernet binds a box to no sender or recipient; the caller puts both inside. Its time stamp tells the server the second
at which a box was sealed.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
from cryptography.fernet import InvalidToken
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key

from shared.errors import ProtocolError
from shared.secagg.ring import Residues

_CURVE = ec.SECP256R1()
PUBLIC_BYTES = 33
SECRET_BYTES = 32


def new_secret_key() -> bytes:
    """A fresh P-256 private key (32 bytes)."""
    return ec.generate_private_key(_CURVE).private_numbers().private_value.to_bytes(SECRET_BYTES, "big")


def public_key(secret: bytes) -> bytes:
    """The public key (33 bytes, a compressed point) of a private one; ProtocolError when that is none."""
    return _private(secret).public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def check_public(public: bytes) -> None:
    """ProtocolError when this is no point of the curve."""
    _point(public)


def agree(secret: bytes, publics: Sequence[bytes]) -> list[bytes]:
    """The keys shared with the owners of public keys, the same from either side. ProtocolError as `check_public`."""
    private = _private(secret)
    return [generate_shared_key(private, _point(public)) for public in publics]


def new_seed() -> bytes:
    """A fresh seed (32 bytes) for a device's own mask."""
    return secrets.token_bytes(SECRET_BYTES)


def commitment(seed: bytes, *, session: bytes) -> bytes:
    """SHA-256 by which the server recognises a seed that it has put together from shares."""
    return sha256(b"homerank seed" + session + seed).digest()


def mask(key: bytes, *, session: bytes, size: int) -> Residues:
    """Uniform residues (size,): the AES-256-CTR stream under a key derived from `key` and the session."""
    stream_key = hmac.digest(key, b"homerank mask" + session, "sha256")
    stream = Cipher(algorithms.AES(stream_key), modes.CTR(bytes(16))).encryptor().update(bytes(4 * size))
    return np.frombuffer(stream, dtype="<u4").astype(np.uint32)


def add_pair(total: Residues, pair: Residues, *, own: bytes, other: bytes) -> Residues:
    """The total with a pair's mask: added by the device whose masking key is the smaller, subtracted by the other."""
    return total + pair if own < other else total - pair


def seal(key: bytes, content: bytes) -> bytes:
    """Encrypted and authenticated."""
    return encrypt(key, content)


def unseal(key: bytes, box: bytes) -> bytes | None:
    """What was sealed; None when the box was made with another key or altered."""
    try:
        return decrypt(key, box)
    except InvalidToken:
        return None


def _private(secret: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        return ec.derive_private_key(int.from_bytes(secret, "big"), _CURVE)
    except ValueError:
        raise ProtocolError("found bytes that are no private key") from None


def _point(public: bytes) -> ec.EllipticCurvePublicKey:
    try:
        if len(public) != PUBLIC_BYTES:
            raise ValueError("length")
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, public)
    except ValueError:
        raise ProtocolError("found bytes that are no public key of curve P-256") from None
