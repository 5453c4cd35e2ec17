"""Archives from outside: what they may claim, and how one is unpacked. Checked before a byte is written.

Invariants: nothing is written outside the folder, no more than the caps allow, and only members that are asked for.
"""

from __future__ import annotations

import errno
import re
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from covey_contract.errors import DecodeError
from covey_contract.sources import members
from covey_converters.errors import BadInputError

MAX_TOTAL_BYTES = 4 << 30
# Weights hardly shrink; thousandfold is what bombs are made of. Small archives may be as regular as they like.
MAX_RATIO = 200
_FREE_BYTES = 64 << 20
_CHUNK = 1 << 20


def check(path: Path, max_total: int = MAX_TOTAL_BYTES) -> list[zipfile.ZipInfo]:
    """The members of an archive that claims nothing wrong; raises `BadInputError`."""
    with path.open("rb") as file:
        return _checked(path.name, file, max_total)


def unpack(path: Path, folder: Path, allowed: re.Pattern[str], max_total: int = MAX_TOTAL_BYTES) -> list[Path]:
    """Write the members whose names match `allowed` to `folder`; a member that does not is refused."""
    written: list[Path] = []
    found = check(path, max_total)
    with zipfile.ZipFile(path) as archive:
        for member in found:
            if member.is_dir():
                continue
            if not allowed.fullmatch(member.filename):
                raise BadInputError(f"{path.name}: member {member.filename[:120]!r} does not belong to such a model")
            out = folder / member.filename
            _write(path.name, archive, member, out)
            written.append(out)
    return written


def _write(name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, out: Path) -> None:
    left = member.file_size
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as source, out.open("xb") as target:
            while chunk := source.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    raise BadInputError(f"{name}: member {member.filename[:120]!r} is larger than it claims")
                target.write(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise BadInputError(f"{name}: member {member.filename[:120]!r} cannot be read: {error}") from error
    except FileExistsError as error:
        raise BadInputError(f"{name}: member {member.filename[:120]!r} is there twice") from error
    except NotADirectoryError as error:
        raise BadInputError(f"{name}: member {member.filename[:120]!r} lies in another member") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place that the directory claims and no file can have
            raise
        raise BadInputError(f"{name}: member {member.filename[:120]!r} is not where the directory says") from error


def _checked(name: str, file: BinaryIO, max_total: int) -> list[zipfile.ZipInfo]:
    try:
        found = members(file)
    except DecodeError as error:
        raise BadInputError(f"{name}: {error}") from error
    total = sum(member.file_size for member in found)
    if total > max_total:
        raise BadInputError(f"{name}: the archive unpacks to {total} bytes; at most {max_total}")
    packed = sum(member.compress_size for member in found)
    if total > _FREE_BYTES and total > MAX_RATIO * max(packed, 1):
        raise BadInputError(
            f"{name}: the archive unpacks to {total // max(packed, 1)} times its size, as a zip bomb does"
        )
    for member in found:
        if not member.filename:
            raise BadInputError(f"{name}: a member has no name")
        parts = PurePosixPath(member.filename).parts
        if member.filename.startswith("/") or ".." in parts or "\\" in member.filename or "\0" in member.orig_filename:
            raise BadInputError(f"{name}: member {member.filename[:120]!r} leaves the archive's folder")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise BadInputError(f"{name}: member {member.filename[:120]!r} is a symbolic link")
        if member.flag_bits & 1:
            raise BadInputError(f"{name}: member {member.filename[:120]!r} is encrypted")
    return found
