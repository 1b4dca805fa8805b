"""Whom a device takes adapters from, and how far it has come with them.

::

    HOME/profiles/NAME/publisher.json   pinned once: address, CA certificate, public key
    HOME/profiles/NAME/releases.json    versions installed and seen, by key; outlives every adapter folder

Both are public; whoever can change them can already change the adapter.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from client.profile import Profile
from shared.artifacts import write_atomic
from shared.errors import AdapterError, DeploymentError
from shared.releases import MAX_VERSION, AdapterRelease, key_id, read_key

PUBLISHER_SCHEMA = 1
MEMORY_SCHEMA = 1
_URL = re.compile(r"https://[^\s/?#@\\]+(?:/[^\s?#\\]*)?")


@dataclass(frozen=True)
class Publisher:
    """Where releases come from. url: https, of the folder that holds latest.json. ca: PEM, empty for the system's.

    key: PEM of the Ed25519 key that must have signed them.
    """

    url: str
    ca: str
    key: str

    @classmethod
    def read(cls, path: Path, *, url: str = "") -> Publisher:
        """Read a publisher.json. url: in place of the address in it.

        DeploymentError for anything else, a key that is none, or an address that is not https.
        """
        try:
            facts = json.loads(path.expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DeploymentError(
                f"{path}: found no usable file ({error}); expected the publisher.json of the server's operator"
            ) from None
        if not isinstance(facts, dict) or facts.get("schema") != PUBLISHER_SCHEMA:
            raise DeploymentError(f"{path}: found another file; expected a publisher.json of schema {PUBLISHER_SCHEMA}")
        values = [url or facts.get("url"), facts.get("ca"), facts.get("key")]
        if not all(isinstance(value, str) for value in values):
            raise DeploymentError(
                f"{path}: found no text under url, ca or key; ask the server's operator for a new one"
            )
        return cls(*map(str, values)).checked()

    def checked(self) -> Publisher:
        """This, if it can be used."""
        read_key(self.key)
        if not _URL.fullmatch(self.url):
            raise DeploymentError(
                f"found the address {self.url[:100]!r} for releases; expected https://host[:port]/folder, with --url or"
                " in the publisher.json"
            )
        if self.ca and "BEGIN CERTIFICATE" not in self.ca:
            raise DeploymentError(
                "found no CA certificate under `ca`; expected PEM text, or nothing for the system's own"
            )
        return self

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The key that must have signed."""
        return read_key(self.key)

    @property
    def key_id(self) -> str:
        """What the key is called."""
        return key_id(self.public_key)


def pinned(profile: Profile, *, url: str = "") -> Publisher:
    """The profile's publisher. url: in place of the pinned address. DeploymentError while there is none."""
    place = profile.folder / "publisher.json"
    if not place.exists():
        raise DeploymentError(
            "found no publisher of releases; pin one: homerank-client update --pin publisher.json, the file that the"
            " server's operator hands out"
        )
    return Publisher.read(place, url=url)


def pin(profile: Profile, publisher: Publisher) -> None:
    """Take releases from this publisher from now on.

    Another address or certificate of the same key replaces the old one. DeploymentError for another key: whoever holds
    a key decides what ranks here, so the owner must remove the old one first.
    """
    place = profile.folder / "publisher.json"
    publisher.checked()
    if place.exists() and (old := Publisher.read(place, url=publisher.url)).key_id != publisher.key_id:
        raise DeploymentError(
            f"{place}: found key {old.key_id} pinned; expected to keep it, and {publisher.key_id} is another. Remove"
            " the file first if you mean to trust somebody else from now on"
        )
    facts = {"schema": PUBLISHER_SCHEMA, "url": publisher.url, "ca": publisher.ca, "key": publisher.key}
    write_atomic(place, (json.dumps(facts, indent=1) + "\n").encode(), private=True)


@dataclass(frozen=True)
class Memory:
    """Which releases of one key a device knows. installed: the newest it ranked with. seen: the newest it verified."""

    installed: int = 0
    seen: int = 0

    @classmethod
    def load(cls, profile: Profile, key: str) -> Memory:
        """What is known of a key, zeros for a new one. AdapterError for a damaged file: any release would pass."""
        found = _memories(profile).get(key, {"installed": 0, "seen": 0})
        try:
            memory = cls(found["installed"], found["seen"])
        except (KeyError, TypeError):
            memory = cls(-1, -1)
        if not all(type(value) is int and 0 <= value <= MAX_VERSION for value in (memory.installed, memory.seen)):
            raise _damaged(profile, "no version numbers")
        return memory

    def save(self, profile: Profile, key: str) -> None:
        """Remember it; RunError when the disk does not take it."""
        known = {**_memories(profile), key: {"installed": self.installed, "seen": self.seen}}
        facts = {"schema": MEMORY_SCHEMA, "keys": known}
        write_atomic(_place(profile), (json.dumps(facts, indent=1) + "\n").encode(), private=True)

    def require_newer(self, release: AdapterRelease, *, again: bool = False) -> None:
        """Refuse (AdapterError) what is not newer than what was installed, or older than what was offered before.

        A release whose installation failed may be tried again. again: so may the one that was installed.
        """
        if release.version < self.installed + (not again):
            raise AdapterError(
                f"found release {release.version}; expected one after {self.installed}, which was installed here. An"
                " older adapter is never taken: ask the server's operator why it is offered"
            )
        if release.version < self.seen:
            raise AdapterError(
                f"found release {release.version}; the server offered {self.seen} before, so this one is old. Ask the"
                " server's operator why it is offered"
            )


def _place(profile: Profile) -> Path:
    return profile.folder / "releases.json"


def _memories(profile: Profile) -> dict[str, Any]:
    try:
        facts = json.loads(_place(profile).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _damaged(profile, str(error)) from None
    keys = facts.get("keys") if isinstance(facts, dict) and facts.get("schema") == MEMORY_SCHEMA else None
    if not isinstance(keys, dict):
        raise _damaged(profile, f"no versions of schema {MEMORY_SCHEMA}")
    return keys


def _damaged(profile: Profile, why: str) -> AdapterError:
    return AdapterError(
        f"{_place(profile)}: found no usable memory of releases ({why}), so an old one could pass as new; remove the"
        " file to take whatever is offered next"
    )
