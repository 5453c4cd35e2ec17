"""Samples that a device keeps for labelling: how the server asks for them, and what the file of one may hold.

A sample is an `.npz` file as `covey_agent.gateway.capture` writes it: `about.json`, and an array for each input (`in/NAME.npy`) and output
(`out/NAME.npy`), nothing packed. Whoever takes one checks it by `read_sample` first, which loads no array, unpickles nothing and allocates
by no size that a file only claims.
"""

from __future__ import annotations

import math
import re
import struct
import zipfile
from typing import Annotated, BinaryIO, NamedTuple

import msgspec

from covey_contract.errors import DecodeError
from covey_contract.manifest import ModelName, Sha256, VersionName, check_target
from covey_contract.sources import members

MAX_SAMPLE_BYTES = 32 << 20  # of one file; larger ones stay where they are
PIECE_BYTES = 80 * 1024  # in base64 within a message
MAX_LISTED = 400  # entries in a message
MAX_SKIPPED = 20_000  # samples are not listed beyond the newest so many
_MAX_MEMBERS = 130  # inputs and outputs have 64 each at most
_MAX_ABOUT_BYTES = 8192
_MAX_HEADER_BYTES = 1024
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '([<|][bfiu][1248])', 'fortran_order': False, 'shape': \((|\d{1,12},|\d{1,12}(?:, \d{1,12}){1,31})\)\} *\n"
)
_ITEMS = {b"|b1", b"|u1", b"|i1", b"<u2", b"<u4", b"<u8", b"<i2", b"<i4", b"<i8", b"<f2", b"<f4", b"<f8"}
_MEMBER = re.compile(r"(?:in|out)/([^\x00-\x1f\x7f\\]{1,256})\.npy")

SampleName = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,16}-[0-9]{1,12}\.npz$")]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]


class ListSamples(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="list"):
    """Which are there? The newest first, without the first `skip`."""

    model: ModelName | None = None  # None: of every model
    skip: Annotated[int, msgspec.Meta(ge=0, le=MAX_SKIPPED)] = 0
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_LISTED)] = MAX_LISTED


class ReadSample(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="read"):
    """The bytes of one, from `offset` on."""

    model: ModelName
    name: SampleName
    offset: Annotated[int, msgspec.Meta(ge=0, le=MAX_SAMPLE_BYTES)] = 0


SampleQuestion = ListSamples | ReadSample


class SampleEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One that a device has; `name` is unique among those of its model there."""

    model: ModelName
    name: SampleName
    size: Size


class SamplePiece(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Bytes of a sample; those before the end are `PIECE_BYTES`. `size` and `sha256` are of the whole file; the digest comes with its beginning."""

    size: Size
    data: bytes
    sha256: Sha256 | None = None


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What a sample says of itself. `build`: its digest; `id`: of the request, as its caller gave it."""

    model: ModelName
    version: VersionName
    target: Annotated[str, msgspec.Meta(max_length=64)]
    build: Sha256
    time_ms: Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
    id: Annotated[str, msgspec.Meta(max_length=256)] = ""


class Sample(NamedTuple):
    """`inputs` and `outputs`: names of the arrays."""

    about: About
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


_about = msgspec.json.Decoder(About)


def read_sample(file: BinaryIO) -> Sample:
    """Check a whole sample, every byte of it once. Raises `DecodeError` with what is wrong, and nothing else (`OSError` apart).

    Members may only be those that a sample has, each stored as it is, so that what they unpack to is never more than the file.
    """
    found = members(file)
    if len(found) > _MAX_MEMBERS:
        raise DecodeError(f"a sample of {len(found)} members; at most {_MAX_MEMBERS}")
    names = [one.filename for one in found]
    if len(set(names)) != len(names):
        raise DecodeError("a sample with two members of the same name")
    size = file.seek(0, 2)
    for member in found:
        check_stored(member, size)
    if sum(one.file_size for one in found) > size:
        raise DecodeError("a sample whose members have more bytes than the file")
    about: About | None = None
    sides: dict[str, list[str]] = {"in": [], "out": []}
    try:
        with zipfile.ZipFile(file) as archive:
            for member in found:
                if member.filename == "about.json":
                    about = _read_about(archive, member)
                    continue
                side = _check_name(member.filename)
                _check_array(archive, member)
                sides[side].append(member.filename.removeprefix(f"{side}/").removesuffix(".npy"))
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError, RuntimeError, struct.error) as error:
        raise DecodeError(f"not a readable sample: {error}") from error
    if about is None or not sides["in"] or not sides["out"]:
        raise DecodeError("not a sample: it has no about.json, no input or no output")
    return Sample(about, tuple(sides["in"]), tuple(sides["out"]))


def check_stored(member: zipfile.ZipInfo, size: int) -> None:
    """That the member lies as it is within an archive of `size` bytes. Raises `DecodeError`."""
    if not 0 <= member.header_offset < size:
        raise DecodeError(f"member {member.filename[:80]!r} lies outside of the file")
    packed = member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size
    if packed or member.flag_bits & 0x1 or member.filename.endswith("/"):
        raise DecodeError(f"member {member.filename[:80]!r} is packed, encrypted or a folder")


def _check_name(name: str) -> str:
    """`in` or `out`."""
    if not _MEMBER.fullmatch(name) or ".." in name.split("/") or "" in name.split("/"):
        raise DecodeError(f"a sample has no member {name[:80]!r}")
    return name.partition("/")[0]


def _read_about(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> About:
    if member.file_size > _MAX_ABOUT_BYTES:
        raise DecodeError(f"about.json has {member.file_size} bytes; at most {_MAX_ABOUT_BYTES}")
    try:
        about = _about.decode(archive.read(member))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"about.json: {error}") from error
    check_target(about.target)
    return about


def _check_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """A header as `capture` writes it, then as many bytes as the shape says."""
    with archive.open(member) as file:
        head = file.read(10)
        length = int.from_bytes(head[8:], "little")
        if len(head) != 10 or head[:8] != _MAGIC or length > _MAX_HEADER_BYTES:
            raise DecodeError(f"{member.filename[:80]!r} is no array in NumPy's format 1.0")
        match = _HEADER.fullmatch(file.read(length))
        if match is None or match[1] not in _ITEMS:
            raise DecodeError(f"{member.filename[:80]!r} is no plain array")
        shape = [int(one) for one in match[2].split(b",") if one.strip()]
        if math.prod(shape) * int(match[1][2:]) != member.file_size - 10 - length:
            raise DecodeError(f"{member.filename[:80]!r} has not the bytes that its shape says")
        while file.read(1 << 20):  # to its end, where zipfile compares the checksum
            pass
