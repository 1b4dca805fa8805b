"""Fetching a release over HTTPS: the server is who was pinned, and nothing it sends is larger than was agreed."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from client.publisher import Publisher
from shared.errors import AdapterError, DeploymentError, RunError
from shared.releases import LATEST, RELEASE_SCHEMA
from shared.version import version

#: Seconds without a byte, and for one file as a whole.
PATIENCE = 30.0
LONGEST = 3600.0
MAX_LATEST = 4096
_HEADERS = {"accept-encoding": "identity", "user-agent": f"homerank/{version()}"}  # unpacking could grow without end


@dataclass(frozen=True)
class Source:
    """The releases of one publisher, while it is connected."""

    client: httpx.Client
    url: str

    def latest(self) -> int:
        """The version that is the newest, as an unsigned hint. AdapterError when the server does not say."""
        body = self.read(LATEST, limit=MAX_LATEST)
        try:
            facts = json.loads(body)
            found, number = facts["schema"], facts["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise AdapterError(
                f"{self.url}{LATEST}: found no version in it ({error!r}); expected a releases folder"
            ) from None
        if found != RELEASE_SCHEMA:
            raise AdapterError(f"{self.url}{LATEST}: found schema {found!r}; this version reads {RELEASE_SCHEMA}")
        if type(number) is not int or number < 1:
            raise AdapterError(f"{self.url}{LATEST}: found version {str(number)[:60]!r}; expected a number from 1")
        return number

    def read(self, path: str, *, limit: int) -> bytes:
        """A small file. AdapterError when it is missing or longer than `limit` bytes."""
        return b"".join(self._chunks(path, limit=limit))

    def save(self, path: str, target: Path, *, size: int) -> None:
        """A file of exactly `size` bytes. AdapterError when it is longer, RunError when the disk is full."""
        try:
            with target.open("xb") as file:
                for chunk in self._chunks(path, limit=size):
                    file.write(chunk)
        except OSError as error:
            raise RunError(
                f"{target}: could not be written ({error.strerror or error}); the adapter before goes on ranking. Make"
                " room and try again"
            ) from None

    def _chunks(self, path: str, *, limit: int) -> Iterator[bytes]:
        received, deadline = 0, time.monotonic() + LONGEST
        try:
            with self.client.stream("GET", self.url + path) as answer:
                if answer.status_code != httpx.codes.OK:
                    raise AdapterError(
                        f"{self.url}{path}: found answer {answer.status_code}; expected 200, as from a releases folder"
                    )
                for chunk in answer.iter_raw(64 * 1024):
                    received += len(chunk)
                    if received > limit:
                        raise AdapterError(f"{self.url}{path}: found more than {limit} bytes; expected at most that")
                    if time.monotonic() > deadline:
                        raise DeploymentError(f"{self.url}{path}: not received within {LONGEST:.0f} s; try again later")
                    yield chunk
        except httpx.HTTPError as error:
            raise _unreachable(self.url, error) from None


@contextmanager
def source_of(publisher: Publisher) -> Iterator[Source]:
    """A connection for the length of a `with` block. Only the pinned authority's certificates count, where one is.

    No proxy of the environment is used and no redirection followed.
    """
    try:
        context = ssl.create_default_context(cadata=publisher.ca or None)
    except ssl.SSLError as error:
        raise DeploymentError(f"found an unusable CA certificate ({error}); ask for a new publisher.json") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    with httpx.Client(verify=context, trust_env=False, timeout=PATIENCE, headers=_HEADERS) as client:
        yield Source(client, publisher.url.rstrip("/") + "/")


def _unreachable(url: str, error: httpx.HTTPError) -> DeploymentError:
    words = str(error)
    if "CERTIFICATE_VERIFY_FAILED" not in words:
        why = "it is not reachable" if isinstance(error, httpx.ConnectError) else type(error).__name__
        return DeploymentError(
            f"found no releases at {url} ({why}); the adapter before goes on ranking, try again later"
        )
    if "not yet valid" in words or "expired" in words:
        return DeploymentError(
            f"the certificate of {url} is not valid at this device's time; set the clock, or ask the server's operator"
            " to renew it"
        )
    return DeploymentError(
        f"what answers at {url} has no certificate of the pinned authority for that name; ask the server's operator for"
        " the current publisher.json"
    )
