"""The one place that writes state to disk: temporary file, fsync, rename, fsync of the folder.

After a power cut a file written here holds either its old bytes or its new ones, and once `write` has returned, the new ones.
Nothing else in the agent opens a state file for writing.

>>> import tempfile; folder = Path(tempfile.mkdtemp())
>>> write(folder / "answer", b"42"); (folder / "answer").read_bytes()
b'42'
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

# Temporary files carry this ending, so that whoever lists a folder can tell what a power cut has left there.
TEMPORARY = ".tmp"


def write(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace the file durably. Raises `OSError` (a full disk, say) and then leaves the old file as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sweep(folder: Path) -> None:
    """Remove the temporary files that a kill has left in the folder, where nobody else writes at the moment. What cannot be removed stays."""
    for leftover in folder.glob(f".*{TEMPORARY}"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable: a rename or a new file is not, before this."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the file's bytes durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path, mode: int = 0o755) -> None:
    """Make the folder, and the ones above it, durably; an existing one is left alone."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=mode, exist_ok=True)
    sync_folder(folder.parent)
