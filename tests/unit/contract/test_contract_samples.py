"""Samples are looked through before anybody believes them: only what a gateway writes is one."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest

from covey_contract.errors import DecodeError
from covey_contract.samples import read_sample
from covey_hil.testing.made_samples import BUILD, about, array, sample, zipped

GOOD = {"about.json": about(), "in/x.npy": array(), "out/y.npy": array(2)}


def npy(header: bytes, data: bytes = b"") -> bytes:
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def test_a_sample_says_what_it_is() -> None:
    found = read_sample(io.BytesIO(sample(version="1.1", time_ms=7)))
    assert (found.about.model, found.about.version, found.about.time_ms, found.about.build) == (
        "digits",
        "1.1",
        7,
        BUILD,
    )
    assert (found.inputs, found.outputs) == (("x",), ("y",))


@pytest.mark.parametrize("name", ["in/a b:0.npy", "in/serving/default_x:0.npy", "in/图像.npy"])
def test_tensors_have_the_names_that_models_give_them(name: str) -> None:
    assert read_sample(io.BytesIO(zipped({**GOOD, name: array()}))).inputs == ("x", name[3:-4])


def test_scalars_vectors_and_nothing_are_arrays_too() -> None:
    shapes = {
        "in/scalar.npy": npy(b"{'descr': '<i8', 'fortran_order': False, 'shape': ()}", bytes(8)),
        "in/vector.npy": npy(b"{'descr': '|b1', 'fortran_order': False, 'shape': (3,)}", bytes(3)),
        "out/empty.npy": npy(b"{'descr': '<f2', 'fortran_order': False, 'shape': (0, 4)}"),
    }
    assert read_sample(io.BytesIO(zipped({**GOOD, **shapes}))).inputs == ("x", "scalar", "vector")


PLAIN = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4)}"
BAD: dict[str, dict[str, bytes | None]] = {
    "no about.json": {"about.json": None},
    "no input": {"in/x.npy": None},
    "no output": {"out/y.npy": None},
    "a member too many": {"extra.txt": b"x"},
    "a way out of the folder": {"in/../../x.npy": array()},
    "an absolute name": {"/in/x.npy": array()},
    "a folder": {"in/x.npy/": b""},
    "a backslash": {"in/..\\x.npy": array()},
    "a pickle": {"in/x.npy": npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", b"cos\nsystem\n")},
    "a header with code": {"in/x.npy": npy(b"{'descr': __import__('os'), 'fortran_order': False, 'shape': (1,)}")},
    "fewer bytes than the shape says": {"in/x.npy": npy(PLAIN, bytes(12))},
    "more bytes than the shape says": {"in/x.npy": npy(PLAIN, bytes(20))},
    "a shape that no memory has": {
        "in/x.npy": npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (999999999999, 999999999999)}", bytes(8))
    },
    "another order": {"in/x.npy": npy(b"{'descr': '<f4', 'fortran_order': True, 'shape': (1, 4)}", bytes(16))},
    "another version of the format": {"in/x.npy": array().replace(b"NUMPY\x01", b"NUMPY\x02")},
    "no array at all": {"in/x.npy": b"short"},
    "about.json that is none": {"about.json": b"[1]"},
    "about.json that is nested": {"about.json": b"[" * 5000},
    "about.json of another target": {"about.json": about(target="magic")},
    "a version that is a path": {"about.json": about(version="../1")},
    "an about.json that is long": {"about.json": about(id="x" * 9000)},
    "very many members": {f"in/x{number}.npy": array() for number in range(200)},
}


@pytest.mark.parametrize("what", BAD)
def test_what_no_gateway_writes_is_refused(what: str) -> None:
    members = {name: data for name, data in {**GOOD, **BAD[what]}.items() if data is not None}
    with pytest.raises(DecodeError):
        read_sample(io.BytesIO(zipped(members)))


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (100000000,)}", bytes(100_000_000))
    packed = zipped({**GOOD, "in/x.npy": bomb}, zipfile.ZIP_DEFLATED)
    assert len(packed) < 200_000
    with pytest.raises(DecodeError, match="packed"):
        read_sample(io.BytesIO(packed))


def test_members_that_lie_over_one_another_are_refused() -> None:
    """A table of contents that names the same bytes a hundred times, under as many names."""
    good = zipped(
        {"about.json": about(), **{f"in/{number:03d}.npy": array(1000) for number in range(100)}, "out/y.npy": array()}
    )
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        entries = archive.infolist()
        first = archive.getinfo("in/000.npy")
    held = io.BytesIO(good[: entries[2].header_offset])
    held.seek(0, io.SEEK_END)
    with zipfile.ZipFile(held, "a") as archive:
        for entry in entries:
            entry.header_offset = 0 if entry.filename == "about.json" else first.header_offset
            archive.filelist.append(entry)
            archive.NameToInfo[entry.filename] = entry
        archive._didModify = True  # type: ignore[attr-defined]  # so that the table is written
    assert len(held.getvalue()) < len(good) / 5
    with pytest.raises(DecodeError, match="more bytes than the file"):
        read_sample(io.BytesIO(held.getvalue()))


@pytest.mark.parametrize("claimed", [0, 1 << 20, (1 << 32) - 2])
def test_members_that_lie_outside_of_the_file_are_refused(tmp_path: Path, claimed: int) -> None:
    """Of a directory that is said to begin elsewhere; in a file on disk, where a seek may fail as no buffer's does."""
    good = sample()
    end = good.rfind(b"PK\x05\x06") + 16
    (path := tmp_path / "x.npz").write_bytes(good[:end] + struct.pack("<I", claimed) + good[end + 4 :])
    with path.open("rb") as file, pytest.raises(DecodeError):
        read_sample(file)


@pytest.mark.parametrize("cut", [0, 1, 30, 300, -1, -30])
def test_a_file_that_was_cut_is_refused(cut: int) -> None:
    with pytest.raises(DecodeError):
        read_sample(io.BytesIO(sample()[:cut]))


def test_every_byte_that_counts_is_looked_at() -> None:
    """A bit that turned in an array is noticed by the checksum, which is read to the end."""
    good = sample(count=5000)
    spoiled = bytearray(good)
    spoiled[len(good) // 2] ^= 1
    with pytest.raises(DecodeError):
        read_sample(io.BytesIO(bytes(spoiled)))


def test_a_member_without_a_name_is_refused() -> None:
    """Told by the directory alone; `zipfile` itself stumbles over one."""
    with pytest.raises(DecodeError):
        read_sample(io.BytesIO(b"\0n/x.npy".join(sample().rsplit(b"in/x.npy", 1))))


def test_two_members_of_one_name_are_refused() -> None:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, data in (*GOOD.items(), ("out/y2.npy", array())):
            archive.writestr(zipfile.ZipInfo(name), data)
    with pytest.raises(DecodeError):
        read_sample(io.BytesIO(held.getvalue().replace(b"out/y2.npy", b"out/y.npy\0")))
