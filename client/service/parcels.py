"""Data that comes in as a zip: a data folder (docs/data.md), an items file, or an adapter folder. Untrusted."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from shared.errors import DataError

MAX_FILES = 200
MAX_BYTES = 4 * 1024**3


@contextmanager
def unpacked(data: bytes, *, within: Path) -> Iterator[Path]:
    """The folder a zip holds, for the length of a `with` block; a single outer folder is stepped into.

    DataError for anything else than a zip of at most `MAX_FILES` plain files and `MAX_BYTES` bytes, whatever names and
    sizes it claims; nothing outside the new folder is touched.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise DataError(f"found no zip file ({error}); expected a zipped folder") from None
    if not 0 < len(entries) <= MAX_FILES:
        raise DataError(f"found a zip of {len(entries)} files; expected 1 to {MAX_FILES}")
    within.mkdir(parents=True, exist_ok=True, mode=0o700)
    with TemporaryDirectory(prefix="parcel-", dir=within) as scratch:
        folder, left = Path(scratch), MAX_BYTES
        for entry in entries:
            left -= _extract(archive, entry, folder, limit=left)
        inside = list(folder.iterdir())
        yield inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def packed(folder: Path) -> bytes:
    """A zip of a folder's plain files, or of one file. DataError when there is nothing to pack, or too much."""
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else [folder]
    if not folder.exists() or not 0 < len(files) <= MAX_FILES:
        found = f"{len(files)} files" if folder.exists() else "nothing"
        raise DataError(f"{folder}: found {found}; expected a file, or a folder of 1 to {MAX_FILES} files")
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", compression=zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in files:
            archive.write(path, path.relative_to(folder) if folder.is_dir() else path.name)
    return memory.getvalue()


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path, *, limit: int) -> int:
    """Write one file; its bytes."""
    name = PurePosixPath(entry.filename.replace("\\", "/"))
    shown = entry.filename[:60]
    if name.is_absolute() or ".." in name.parts or not name.parts or ":" in entry.filename or "\0" in entry.filename:
        raise DataError(f"found the name {shown!r} in a zip; expected names inside it")
    target, written = folder.joinpath(*name.parts), 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(entry) as source, target.open("xb") as sink:
            while chunk := source.read(1 << 20):
                written += len(chunk)
                if written > limit:
                    raise DataError(f"found a zip of more than {MAX_BYTES} bytes; expected less")
                sink.write(chunk)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{shown!r}: could not be read from the zip ({error})") from None
    return written
