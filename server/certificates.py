"""Certificates of a deployment: its own authority, and the server's certificate for loopback and its names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import DeploymentError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

HOST = "127.0.0.1"

_CA_YEARS = 10
_SERVER_DAYS = 365
_RENEW_DAYS = 30


def create_certificates(folder: Path, *, names: Sequence[str] = (), renew: bool = False) -> x509.Certificate:
    """Make the CA and the server certificate in `folder`, or keep the ones that are there. Returns the server's.

    names: host names and IP addresses of the server besides localhost and 127.0.0.1.
    renew: issue a new server certificate in any case.

    An existing CA is never replaced, because devices trust it. The server certificate is issued anew when it ends
    within 30 days or lacks a name; devices notice nothing. Keys are P-256, files of mode 0600. Raises DeploymentError
    when only half is there.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if _pair_exists(folder / "ca.pem", folder / "ca.key"):
        ca, ca_key = _read_pair(folder / "ca.pem", folder / "ca.key")
    else:
        ca, ca_key = _issue("homerank deployment CA", timedelta(days=365 * _CA_YEARS))
        _write_pair(folder / "ca.pem", folder / "ca.key", ca, ca_key)

    files = folder / "server.pem", folder / "server.key"
    wanted = ["localhost", HOST, *(name for name in dict.fromkeys(names) if name not in ("localhost", HOST))]
    if not renew and _pair_exists(*files):
        certificate, _ = _read_pair(*files)
        remaining = certificate.not_valid_after_utc - datetime.now(UTC)
        lasts = certificate.issuer == ca.subject and remaining > timedelta(days=_RENEW_DAYS)
        if lasts and set(wanted) <= set(names_in(certificate)):
            return certificate
    issued = _issue(wanted[-1], timedelta(days=_SERVER_DAYS), authority=(ca, ca_key), names=wanted)
    _write_pair(*files, *issued)
    return issued[0]


def names_in(certificate: x509.Certificate) -> list[str]:
    """The host names and addresses a certificate is for."""
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return [*found.get_values_for_type(x509.DNSName), *addresses]


def _issue(
    name: str,
    lifetime: timedelta,
    *,
    authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None = None,
    names: Sequence[str] = (),
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate and its key: self-signed for a CA, signed by `authority` for a server of these names."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    issuer, signing_key = (authority[0].subject, authority[1]) if authority else (subject, key)
    # A minute back: two clocks on one network are rarely exactly alike.
    start = datetime.now(UTC) - timedelta(minutes=1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + lifetime)
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(_key_usage(ca=authority is None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False)
    )
    if authority:
        alternatives = x509.SubjectAlternativeName([_general_name(each) for each in names])
        builder = builder.add_extension(alternatives, critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(signing_key, hashes.SHA256()), key


def _general_name(text: str) -> x509.GeneralName:
    """A host name or an IP address, as certificates want it."""
    import ipaddress

    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    """A CA signs certificates; a server signs handshakes."""
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pair_exists(certificate: Path, key: Path) -> bool:
    """Both files or neither; one alone is an error, because replacing it would lock devices out."""
    if certificate.exists() != key.exists():
        missing = key if certificate.exists() else certificate
        raise DeploymentError(
            f"{missing} is missing while its partner exists; restore it, or remove both to start anew "
            "(devices then need a new invitation)"
        )
    return certificate.exists()


def _read_pair(certificate: Path, key: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Load what `_write_pair` wrote."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        loaded = load_pem_private_key(key.read_bytes(), password=None)
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (ValueError, TypeError) as error:
        raise DeploymentError(f"{certificate} or {key} is damaged; expected PEM. Restore both files.") from error
    if not isinstance(loaded, ec.EllipticCurvePrivateKey) or found.public_key() != loaded.public_key():
        raise DeploymentError(f"{key} does not belong to {certificate}; restore both files")
    return found, loaded


def _write_pair(certificate: Path, key: Path, content: x509.Certificate, private: ec.EllipticCurvePrivateKey) -> None:
    """Write key first: a certificate without its key is the worse half."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    replace_file(key, pem, mode=0o600)
    replace_file(certificate, content.public_bytes(Encoding.PEM), mode=0o644)


def replace_file(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file whole or not at all, with `mode` from its first moment."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
