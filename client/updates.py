"""Keeping the adapter up to date: fetch the newest release, verify all of it, install it, or stay as it was.

In this order, so that nothing is believed before it is proven and nothing is changed before it is whole:

    latest.json   how far the server is, a hint                release.json   signed; must be newer, and fit this device
    the files     into a folder of their own, then hashed      install        the ranker checks itself before it changes
    releases.json which version was installed, last

A device that was away for many releases takes the newest in one step: each is a whole adapter.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from client.door.delivery import previous
from client.downloads import Source, source_of
from client.profile import Profile
from client.publisher import Memory, Publisher
from shared.artifacts import load_adapter, load_catalogue, write_atomic
from shared.errors import AdapterError, BackboneError, CatalogueError, DeploymentError, HomerankError, RunError
from shared.releases import (
    MANIFEST,
    MAX_MANIFEST,
    SIGNATURE,
    SIGNATURE_BYTES,
    AdapterRelease,
    file_hash,
    read_release,
    require_files,
    require_fits,
)

#: Bytes that stay free on the disk.
ROOM = 16 * 1024**2

#: Ranks with an adapter folder from now on, after checking it. Any HomerankError: the adapter before stays.
Install = Callable[[Path], None]
#: Fingerprint of a backbone that this device has, by name. BackboneError when it has none of that name.
BackboneOf = Callable[[str], str]


@dataclass(frozen=True)
class Update:
    """What an update came to. version: the newest, installed. before: the version before, 0 without one.

    new: whether anything was installed. release: what, None when nothing was. statement: its privacy, in words.
    """

    version: int
    before: int
    new: bool
    release: AdapterRelease | None = None
    statement: str = ""
    seconds: float = 0.0


def update(profile: Profile, publisher: Publisher, *, install: Install, backbone_of: BackboneOf) -> Update:
    """Install the publisher's newest release, if it is newer than what was installed.

    | found | result |
    |---|---|
    | the version that is installed | nothing is done; installed again where the adapter was removed |
    | a newer one, however much | installed; the adapter before is kept beside it |
    | an older one, or older than was offered before | AdapterError |
    | another signature, catalogue, backbone or schema, or a file that does not fit | AdapterError |
    | one whose self-check fails, or whose installation stops half-way | AdapterError; the adapter before ranks on |
    | no connection, or another server's certificate | DeploymentError |
    | no room | RunError |

    Nothing is changed by an error, but that the version is remembered as seen once its signature was right.
    """
    key, started = publisher.public_key, time.perf_counter()
    with _alone(profile), source_of(publisher) as source:
        memory = Memory.load(profile, publisher.key_id)
        offered, gone = source.latest(), not profile.adapter.exists()
        if offered == memory.installed and not gone:
            return Update(offered, memory.installed, new=False)
        manifest = source.read(f"{offered}/{MANIFEST}", limit=MAX_MANIFEST)
        signature = source.read(f"{offered}/{SIGNATURE}", limit=SIGNATURE_BYTES)
        release = read_release(manifest, signature, key=key)
        if release.version != offered:
            raise AdapterError(f"found release {release.version} in the place of {offered}; expected {offered} there")
        memory.require_newer(release, again=gone)
        Memory(memory.installed, max(memory.seen, release.version)).save(profile, publisher.key_id)
        require_fits(release, catalogue=_catalogue(profile), backbone=_backbone(release, backbone_of))
        with _staged(profile, release, source, {MANIFEST: manifest, SIGNATURE: signature}) as folder:
            _installed(profile, release, folder, install)
            statement = str(json.loads((folder / "privacy.json").read_text(encoding="utf-8")).get("statement", ""))
        Memory(release.version, release.version).save(profile, publisher.key_id)
    seconds = time.perf_counter() - started
    return Update(release.version, memory.installed, new=True, release=release, statement=statement, seconds=seconds)


def go_back(profile: Profile, *, install: Install) -> str:
    """Rank with the adapter before this one; what its manifest calls it. Releases that were installed stay so.

    AdapterError when there is none, or it does not fit any more; nothing changes then.
    """
    if not previous(profile.adapter).is_dir():
        raise AdapterError("found no adapter before this one; expected adapter.previous in the profile")
    with _alone(profile), TemporaryDirectory(prefix=".back-", dir=profile.folder) as scratch:
        copy = Path(scratch) / "adapter"  # installing puts another adapter where this one lies
        shutil.copytree(previous(profile.adapter), copy)
        manifest = load_adapter(copy)[2]
        install(copy)
    return f"run {manifest.get('run')}, round {manifest.get('round')}"


def own_backbone(name: str) -> str:
    """The fingerprint of a backbone on this device. BackboneError without it, or without torch."""
    if importlib.util.find_spec("torch") is None:
        raise BackboneError(
            "found no torch; expected it, since a release is an adapter for the full model. Export it where torch is"
            " (homerank-client export-model), and rank with that model here"
        )
    from shared.backbone import open_backbone

    return open_backbone(name).digest


def _catalogue(profile: Profile) -> str:
    if not profile.catalogue.exists():
        raise CatalogueError("found no catalogue yet; import the one that the releases are for first")
    return load_catalogue(profile.catalogue).fingerprint


def _backbone(release: AdapterRelease, backbone_of: BackboneOf) -> str:
    try:
        return backbone_of(release.backbone_name)
    except BackboneError as error:
        raise AdapterError(f"release {release.version}: found that this device lacks its backbone: {error}") from None


@contextmanager
def _staged(profile: Profile, release: AdapterRelease, source: Source, signatures: dict[str, bytes]) -> Iterator[Path]:
    """The release in a folder of its own for the length of a `with` block, every byte verified."""
    folder = profile.folder / ".release.new"
    free = shutil.disk_usage(profile.folder).free
    if free < 2 * release.size + ROOM:  # once here, once as the adapter
        raise RunError(f"{profile.folder}: found {free:,} bytes free; expected {2 * release.size + ROOM:,}; make room")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        for name, content in signatures.items():
            write_atomic(folder / name, content)
        for name, facts in sorted(release.files.items()):
            source.save(f"{release.version}/{name}", folder / name, size=facts.bytes)
        require_files(folder, release)
        for name in signatures:
            (folder / name).unlink()  # what is installed is an adapter folder, no more
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _installed(profile: Profile, release: AdapterRelease, folder: Path, install: Install) -> None:
    """Install, look whether what is there now is the release, and put the adapter before back if it is not."""
    before = _content(profile.adapter)
    try:
        install(folder)
        if _content(profile.adapter) != {name: facts.sha256 for name, facts in release.files.items()}:
            raise AdapterError("it did not arrive whole where the profile keeps its adapter")
    except HomerankError as error:
        _put_back(profile, before)
        raise AdapterError(
            f"release {release.version} is not used, the adapter before goes on ranking: {error}"
        ) from None


def _put_back(profile: Profile, before: dict[str, str]) -> None:
    """Undo an installation that had already exchanged the folders."""
    if _content(profile.adapter) == before:
        return
    shutil.rmtree(profile.adapter, ignore_errors=True)
    if before and _content(previous(profile.adapter)) == before:
        previous(profile.adapter).rename(profile.adapter)


def _content(folder: Path) -> dict[str, str]:
    """Hashes of an adapter folder's files; empty for no folder."""
    return {path.name: file_hash(path) for path in folder.iterdir()} if folder.is_dir() else {}


@contextmanager
def _alone(profile: Profile) -> Iterator[None]:
    place = profile.folder / "update.lock"
    with place.open("a") as lock:
        place.chmod(0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DeploymentError(f"{profile.folder}: found another update under way; wait for its end") from None
        yield
