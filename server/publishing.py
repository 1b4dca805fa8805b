"""Making a run's adapter a release that devices can fetch from any web server.

::

    DIR/releases/1/ 2/ ...      releases, see `shared.releases`; never changed once they are there
    DIR/releases/latest.json    which of them is the newest; replaced atomically, after the release is whole
    DIR/publisher.json          what a device pins: public key, CA certificate if there is one, address if given

A release says of an adapter's privacy only what the server's ledger says.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from server.journal import JOURNAL, Journal
from server.provenance import origin_of, read_privacy, require_ledger
from server.signing import public_key, signed, signing_key
from shared.artifacts import load_adapter, write_json
from shared.errors import AdapterError, DeploymentError, RunError
from shared.releases import (
    ADAPTER_FILES,
    LATEST,
    MANIFEST,
    RELEASE_SCHEMA,
    SIGNATURE,
    AdapterRelease,
    FileFacts,
    file_hash,
    key_id,
    key_pem,
    read_key,
    read_release,
    verify_release,
)
from shared.version import version as program_version

PUBLISHER = "publisher.json"
PUBLISHER_SCHEMA = 1
#: Where a deployment's own server shows DIR/releases.
ROUTE = "/v1/releases"


@dataclass(frozen=True)
class Published:
    """A release as it lies in a deployment folder.

    release: None when it does not verify any more; `problem` then says why. privacy: the content of its privacy.json.
    latest: whether devices are sent to it.
    """

    version: int
    latest: bool
    release: AdapterRelease | None
    privacy: Mapping[str, Any]
    problem: str = ""


def publish(
    folder: Path, run: Path, *, name: str = "", simulation: bool = False, url: str = "", version: int = 0
) -> tuple[AdapterRelease, bool]:
    """Sign the adapter of a finished run and make it the newest release; whether it was new.

    An adapter that is the newest release already is not published again. name: for people. simulation: allow a
    simulation's run, whose ledger is its own. url: where devices fetch releases, for publisher.json. version: the one
    after the newest unless given; a higher one when releases were lost that devices have.

    Raises AdapterError for a damaged adapter folder, DeploymentError and PrivacyError for one whose privacy.json does
    not fit the ledger, and RunError when the disk does not take it; nothing is released then.
    """
    folder, run = folder.expanduser().resolve(), run.expanduser().resolve()
    if not folder.is_dir():
        raise DeploymentError(f"{folder}: found no such folder; expected a deployment, or an empty folder of your own")
    adapter = run / "adapter"
    _, _, manifest = load_adapter(adapter)
    _require_origin(run, simulation=simulation)
    require_ledger(run, run / "server-ledger.sqlite" if simulation else folder / "ledger.sqlite", manifest)
    places = folder / "releases"
    places.mkdir(exist_ok=True)
    with _alone(folder):
        key = signing_key(folder)
        pinned = key.public_key()
        _write_publisher(folder, pinned, url=url)
        known = _versions(places)
        files = {one: FileFacts(file_hash(adapter / one), (adapter / one).stat().st_size) for one in ADAPTER_FILES}
        newest = _verified(places, known[-1], key=pinned).release if known else None
        if newest is not None and newest.files == files:  # also after a crash before latest.json
            _point_to(places, newest.version)
            return newest, False
        following = known[-1] + 1 if known else 1
        if version and version < following:
            raise DeploymentError(
                f"found version {version} asked for; expected {following} or higher: versions only rise"
            )
        version = version or following
        release = AdapterRelease(
            version=version,
            name=name or f"release {version}",
            created=int(time.time()),
            files=files,
            **_from_manifest(manifest),
            homerank=program_version(),
            key=key_id(pinned),
            origin=origin_of(run),
        )
        content, signature = release.to_json(), signed(release.to_json(), key)
        read_release(content, signature, key=pinned)  # what a device would refuse, such as a name of two lines
        _write_release(places, adapter, release, {MANIFEST: content, SIGNATURE: signature})
        verify_release(places / str(version), key=pinned)
        _point_to(places, version)
    with suppress(RunError):  # the release is out, whether the journal has room for it or not
        Journal(folder / JOURNAL).write("release", run=release.run, version=version, bytes=release.size)
    return release, True


def published(folder: Path) -> list[Published]:
    """All releases of a deployment folder, oldest first, each checked as a device would."""
    places = folder.expanduser().resolve() / "releases"
    if not places.is_dir():
        return []
    key = public_key(places.parent)
    return [_verified(places, number, key=key) for number in _versions(places)]


def latest_version(folder: Path) -> int:
    """The version devices are sent to; 0 without one."""
    try:
        return int(json.loads((folder / "releases" / LATEST).read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _require_origin(run: Path, *, simulation: bool) -> None:
    if origin_of(run) == "simulation" and not simulation:
        raise DeploymentError(
            f"{run}: found a simulation's run, whose privacy is not in this server's ledger; say --simulation to"
            " release it all the same"
        )
    if simulation and origin_of(run) != "simulation":
        raise DeploymentError(f"{run}: found a run of real devices; publish it without --simulation")


def _from_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What an adapter's homerank.json says of it, by the names of a release."""
    try:
        return {
            "backbone": manifest["backbone"],
            "backbone_name": manifest["settings"]["model"]["backbone"],
            "catalogue": manifest["catalogue"],
            "adapter_schema": manifest["schema"],
            "run": manifest["run"],
            "round": manifest["round"],
        }
    except (KeyError, TypeError) as error:
        raise AdapterError(f"homerank.json: found no {error} in it; expected the adapter of a finished run") from None


def _write_release(places: Path, adapter: Path, release: AdapterRelease, signatures: Mapping[str, bytes]) -> None:
    """All of a release under another name first, on the disk, and then the name that devices know."""
    fresh = places / f".{release.version}.new"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        for one in release.files:
            shutil.copyfile(adapter / one, fresh / one)
        for one, content in signatures.items():
            (fresh / one).write_bytes(content)
        for path in fresh.iterdir():
            path.chmod(0o644)
            _to_disk(path)
        _to_disk(fresh)
        fresh.rename(places / str(release.version))
        _to_disk(places)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise RunError(
            f"{places}: release {release.version} could not be written ({error.strerror or error}); devices still get"
            " the one before. Make room and publish again"
        ) from None


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _point_to(places: Path, version: int) -> None:
    write_json(places / LATEST, {"schema": RELEASE_SCHEMA, "version": version})


def _write_publisher(folder: Path, key: Ed25519PublicKey, *, url: str) -> None:
    """What a device pins. An address given once is kept until another is given; the server's own, unless one is."""
    place, authority = folder / PUBLISHER, folder / "ca.pem"
    known = _object(place)
    public = _object(folder / "server.json").get("public")
    ca = authority.read_text(encoding="utf-8") if authority.exists() else ""
    address = url or known.get("url") or (f"https://{public}{ROUTE}" if public else "")
    facts = {"schema": PUBLISHER_SCHEMA, "key": key_pem(key), "ca": ca, "url": address}
    if facts != known:
        write_json(place, facts)


def _object(path: Path) -> dict[str, Any]:
    """A JSON object of a file, {} for anything else."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two at once would take the same version."""
    with (folder / "releases.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DeploymentError(f"{folder}: found another process that publishes; wait for its end") from None
        yield


def _versions(places: Path) -> list[int]:
    return sorted(int(path.name) for path in places.iterdir() if path.name.isdecimal() and path.is_dir())


def _verified(places: Path, number: int, *, key: Ed25519PublicKey) -> Published:
    place = places / str(number)
    stamps = tuple(sorted((path.name, (of := path.lstat()).st_size, of.st_mtime_ns) for path in place.iterdir()))
    release, privacy, problem = _judged(place, number, key_pem(key), stamps)
    return Published(number, number == latest_version(places.parent), release, privacy, problem)


@lru_cache(maxsize=1024)  # who watches a server asks every few seconds; the files stay as they are
def _judged(
    place: Path, number: int, key: str, stamps: tuple[object, ...]
) -> tuple[AdapterRelease | None, dict[str, Any], str]:
    try:
        release = verify_release(place, key=read_key(key))
        if release.version != number:
            raise AdapterError(f"{place}: found version {release.version} in it; expected {number}")
        return release, read_privacy(place), ""
    except AdapterError as error:
        return None, {}, str(error)
