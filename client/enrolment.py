"""Joining a server with a token: the device makes its keys, finds out that the server is the right one, and is let in.

Nothing is trusted on the way. The certificate is fetched from whoever answers and kept only if its SHA-256 is the one
in the token; everything after that is said over a connection which that certificate vouches for.
"""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.deployment import INVITATION_SCHEMA, DeviceHome, Invitation, create_keys
from shared.enrolment import (
    CA_PATH,
    CLOCK_AHEAD,
    CLOCK_BEHIND,
    ENROL_PATH,
    ENROLMENT_SCHEMA,
    TIME_PATH,
    VERSION_PATH,
    Ticket,
    fingerprint_of,
    read_address,
)
from shared.errors import DeploymentError, RunError
from shared.protocol import SCHEMA_VERSION
from shared.version import version

INVITATION = "invitation.json"

_LARGEST_ANSWER = 64 * 1024
#: Verification errors of OpenSSL that a wrong clock explains: certificate not yet valid, certificate expired.
_WRONG_TIME = (9, 10)
_REASONS = {
    "unknown": "the server does not know this token; ask its operator for a new one",
    "expired": "the token has expired; ask the server's operator for a new one",
    "used": "the token was used by another device already; every device needs its own",
    "revoked": "the server's operator has shut this device out; it can join again only as a new one, with other keys",
    "registered": "this device is registered already; join with the invitation it has, or with the operator's",
    "too-many": "the server is asked too often; wait a minute and try again",
    "unavailable": "the server cannot register devices at this moment; try again, the token is still good",
    "bad-request": "the server could not read the request; compare the versions of both sides",
}


@dataclass(frozen=True)
class _Server:
    """Where to ask, and what vouches for the answers: a CA certificate, or None for nobody yet."""

    address: str
    ca: str | None
    timeout: float

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        """Status and body of the answer. DeploymentError when there is none, ssl.SSLCertVerificationError if forged."""
        import http.client

        context = ssl.create_default_context(cadata=self.ca) if self.ca else ssl.create_default_context()
        if self.ca is None:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        host, _, port = self.address.rpartition(":")
        link = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=self.timeout, context=context)
        content = None if body is None else json.dumps(body).encode()
        try:
            link.request("GET" if body is None else "POST", path, content, {"Content-Type": "application/json"})
            answer = link.getresponse()
            return answer.status, answer.read(_LARGEST_ANSWER)
        except ssl.SSLCertVerificationError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise DeploymentError(
                f"no homerank server answers at {self.address} ({error or type(error).__name__}); check the address,"
                " the network, and that the server runs"
            ) from None
        finally:
            link.close()

    def facts(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        """The same for answers in JSON; DeploymentError for anything else."""
        status, content = self.ask(path, body)
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise DeploymentError(f"{self.address} answered {status} and no JSON; expected a homerank server")
        return status, found


def enrol(
    url: str, token: str, home: DeviceHome, *, timeout: float = 30.0, clock: Callable[[], float] = time.time
) -> Invitation:
    """Let this device in at a server: make keys, pin the CA, compare clocks, redeem the token, write the invitation.

    url: https://host:port or host:port, must be the one in the token. timeout: seconds for each answer. clock: seconds
    UTC as this device has it. Asking again after a failure is safe: a token that was redeemed by these keys is
    answered the same.

    | case | DeploymentError says |
    |---|---|
    | a part of the token is missing, or it is no token | copy it again |
    | url is another server's than the token's | both addresses |
    | nobody answers | address and reason |
    | who answers has another authority than the token names | somebody else answers there |
    | the clock is more than 5 s ahead or about 5 min behind | by how much, and to set it |
    | the server speaks another schema | both versions, and which side to update |
    | the token is expired, used, unknown; the device is known or shut out | that |
    """
    ticket = Ticket.read(token)
    if read_address(url) != ticket.address:
        raise DeploymentError(
            f"found the server {read_address(url)} and a token for {ticket.address}; use the address that came with the"
            " token"
        )
    public_key = create_keys(home).read_text(encoding="ascii").strip()
    ca = _pinned(ticket, timeout)
    server = _Server(ticket.address, ca, timeout)
    try:
        _compare_clocks(server, clock)
        _compare_versions(server)
        asked = {"schema": ENROLMENT_SCHEMA, "messages": SCHEMA_VERSION, "version": version()}
        status, answer = server.facts(ENROL_PATH, {**asked, "secret": ticket.secret.hex(), "public_key": public_key})
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _WRONG_TIME:
            _compare_clocks(_Server(ticket.address, None, timeout), clock)  # says by how much, if that is why
        raise DeploymentError(
            f"the certificate of {ticket.address} is not valid: {error.verify_message}; check this device's clock and"
            " tell the server's operator"
        ) from None
    if status != 200:
        code = str(answer.get("error", ""))
        raise DeploymentError(_REASONS.get(code, f"the server refused with {status} {code[:40]!r}"))
    _write_invitation(home.folder / INVITATION, ticket.address, ca)
    return Invitation(ticket.address, ca)


def _pinned(ticket: Ticket, timeout: float) -> str:
    """The CA certificate of the token; its hash is what makes it right, whoever sent it."""
    status, content = _Server(ticket.address, None, timeout).ask(CA_PATH)
    pem = content.decode("ascii", "replace")
    if status != 200 or "BEGIN CERTIFICATE" not in pem:
        raise DeploymentError(f"{ticket.address} answered {status} and no certificate; expected a homerank server")
    if fingerprint_of(pem) != ticket.fingerprint:
        raise DeploymentError(
            f"what answers at {ticket.address} is not the server that made this token: its authority has another"
            " fingerprint. Somebody may stand in between; ask the server's operator"
        )
    return pem


def _compare_clocks(server: _Server, clock: Callable[[], float]) -> None:
    """Flower refuses a device whose clock is off, with no usable reason; so it is said here."""
    before = clock()
    status, answer = server.facts(TIME_PATH)
    after = clock()
    theirs = answer.get("time")
    if status != 200 or not isinstance(theirs, (int, float)):
        raise DeploymentError(f"{server.address} did not say what time it is; expected a homerank server")
    ahead = (before + after) / 2 - theirs
    if not -CLOCK_BEHIND < ahead < CLOCK_AHEAD:
        raise DeploymentError(
            f"this device's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's, which"
            f" allows {CLOCK_AHEAD:.0f} s ahead and {CLOCK_BEHIND:.0f} s behind; set it, best by a time service"
        )


def _compare_versions(server: _Server) -> None:
    """A server that speaks another schema would refuse every message later on."""
    status, theirs = server.facts(VERSION_PATH)
    mine = (ENROLMENT_SCHEMA, SCHEMA_VERSION)
    found = (theirs.get("schema"), theirs.get("messages"))
    if status != 200 or not all(type(value) is int for value in found):
        raise DeploymentError(f"{server.address} did not say what it speaks; expected a homerank server")
    if found != mine:
        older = (
            "this device"
            if any(isinstance(v, int) and v > m for v, m in zip(found, mine, strict=True))
            else "the server"
        )
        raise DeploymentError(
            f"the server (homerank {str(theirs.get('version'))[:20]}) speaks schemas {found}, this device (homerank"
            f" {version()}) {mine}; update {older}"
        )


def _write_invitation(path: Path, address: str, ca: str) -> None:
    from shared.artifacts import write_atomic

    facts = {"schema": INVITATION_SCHEMA, "address": address, "ca": ca}
    try:
        write_atomic(path, json.dumps(facts, indent=1).encode())
    except RunError as error:
        raise DeploymentError(f"{error}; then enrol again with the same token") from None
