"""How a new device is let in: the token it is given, what it asks the server, and what it is answered.

A token names the server, the SHA-256 of the certificate of its authority, and a secret. The device therefore needs to
trust nothing on the network: it fetches the certificate from whoever answers, keeps it only if the hash is the one in
the token, and from then on speaks to nobody else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from shared.errors import DeploymentError

#: Schema of the requests and answers below; another one is refused with the code `schema`.
ENROLMENT_SCHEMA = 1

CA_PATH, TIME_PATH, VERSION_PATH, ENROL_PATH = "/v1/ca", "/v1/time", "/v1/version", "/v1/enroll"

#: Bytes a request to enrol may have, and the answer to it.
LARGEST_BODY = 4096

#: Seconds by which a device's clock may be ahead of the server's, and behind it: what Flower's signatures allow.
CLOCK_AHEAD, CLOCK_BEHIND = 5.0, 305.0

#: Everything a server can say to a device that it does not let in, and the HTTP status that goes with it.
REFUSALS = {
    "bad-request": 400,
    "unknown": 403,
    "expired": 403,
    "used": 403,
    "revoked": 403,
    "registered": 409,
    "schema": 426,
    "too-many": 429,
    "unavailable": 503,
}

SECRET_BYTES = 20
_PREFIX = "hr1."
_CHECK_BYTES = 4


class EnrolmentRefused(DeploymentError):
    """A device is not let in; `code` is one of `REFUSALS` and all that it is told."""

    def __init__(self, code: str) -> None:
        super().__init__(f"enrolment refused: {code}")
        self.code = code


@dataclass(frozen=True)
class Ticket:
    """What a token says. address: host:port. fingerprint: SHA-256 of the CA certificate (DER), hex. secret: once."""

    address: str
    fingerprint: str
    secret: bytes

    def token(self) -> str:
        """One word without characters that a shell would touch."""
        address = self.address.encode("ascii")
        body = bytes([len(address)]) + address + bytes.fromhex(self.fingerprint) + self.secret
        whole = body + hashlib.sha256(body).digest()[:_CHECK_BYTES]
        return _PREFIX + base64.urlsafe_b64encode(whole).decode("ascii").rstrip("=")

    @classmethod
    def read(cls, token: str) -> Ticket:
        """Take a token apart. DeploymentError when it is not whole."""
        text = token.strip()
        wrong = DeploymentError(
            "found no whole enrolment token; expected the one word that `homerank-server enroll` printed, which"
            f" begins with {_PREFIX!r}. Copy it again"
        )
        try:
            whole = base64.b64decode(text.removeprefix(_PREFIX) + "=" * (-len(text[4:]) % 4), b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise wrong from None
        body, check = whole[:-_CHECK_BYTES], whole[-_CHECK_BYTES:]
        if not text.startswith(_PREFIX) or not body or hashlib.sha256(body).digest()[:_CHECK_BYTES] != check:
            raise wrong
        end = 1 + body[0]
        address, rest = body[1:end], body[end:]
        if len(rest) != 32 + SECRET_BYTES:
            raise wrong
        return cls(read_address(address.decode("ascii", "replace")), rest[:32].hex(), rest[32:])


def read_address(text: str) -> str:
    """host:port from an address or an https URL; an IPv6 host stands in brackets. DeploymentError for anything else."""
    found = re.fullmatch(r"(?:https://)?([\w.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})/?", text.strip())
    if not found or not 0 < int(found[2]) < 65536 or len(found[1]) > 200:
        raise DeploymentError(f"found {text!r}; expected the server's address, for example https://example.org:8443")
    return f"{found[1].lower()}:{int(found[2])}"


def fingerprint_of(pem: str) -> str:
    """SHA-256 (hex) of the one certificate in a PEM text. DeploymentError when there is none."""
    import ssl

    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.strip())).hexdigest()
    except (ValueError, binascii.Error):
        raise DeploymentError("found no certificate; expected PEM text") from None
