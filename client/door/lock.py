"""One door for each profile: a lock file that says where its socket is, held for as long as the process lives."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from pathlib import Path

from client.profile import Profile
from shared.errors import DeploymentError

#: The kernel's limit for the path of a local socket, without the closing zero.
MAX_PATH_BYTES = 107


def default_socket(profile: Profile) -> Path:
    """HOME/run/NAME.sock: outside the profile, which nobody else may enter."""
    return profile.folder.parent.parent / "run" / f"{profile.name}.sock"


def served_at(profile: Profile) -> Path | None:
    """Where a living process serves this profile's door, None when none does."""
    path = _lock_file(profile)
    if not path.exists():
        return None
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Path(file.read().strip())
    return None


class Lock:
    """Held from the beginning; DeploymentError when another process (or door) holds it."""

    def __init__(self, profile: Profile, path: Path) -> None:
        self._file = _lock_file(profile).open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise DeploymentError(
                f"found a running service for profile {profile.name!r} (socket {served_at(profile)}); a profile has one"
                " door; end that service first"
            ) from None
        self._file.truncate(0)
        self._file.write(f"{path}\n")
        self._file.flush()

    def release(self) -> None:
        """Let another process have it."""
        self._file.close()


def listen(path: Path, *, backlog: int) -> socket.socket:
    """A listening socket for its owner and its group; DeploymentError when it cannot be, or others could reach it."""
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise DeploymentError(f"{path}: found a socket path over {MAX_PATH_BYTES} bytes; choose a shorter folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
        if stat.S_IMODE(path.parent.stat().st_mode) & 0o007:
            raise DeploymentError(f"{path.parent}: found a folder that everybody may enter; expected mode 0750 or 0700")
        _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        path.chmod(0o660)  # before `listen`: nobody could connect earlier
        listener.listen(backlog)
    except OSError as error:
        raise DeploymentError(f"{path}: found no place for a socket ({error.strerror or error})") from None
    return listener


def _remove_stale(path: Path) -> None:
    """Remove what a killed process left; DeploymentError for anything else that is there."""
    if not path.exists():
        return
    if not path.is_socket():
        raise DeploymentError(f"{path}: found a file; expected nothing, or a socket that nobody serves any more")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            path.unlink()
            return
    raise DeploymentError(f"{path}: found a socket that another process serves; end it, or choose another path")


def _lock_file(profile: Profile) -> Path:
    return profile.folder / "door.lock"
