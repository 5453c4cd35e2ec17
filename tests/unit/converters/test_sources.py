"""What a source is, told by its content; and what is refused before any toolchain sees it."""

from __future__ import annotations

import io
import pickle
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

from covey_contract.errors import DecodeError
from covey_contract.sources import SourceFormat, detect, members
from covey_converters import prepare as preparing
from covey_converters.errors import BadInputError, UnsupportedError
from covey_converters.sources import archives
from covey_converters.sources.registry import IMPORTERS, format_of, imported
from covey_converters.sources.saved_model import MEMBERS

_PICKLED = pickle.dumps({"weights": [1, 2, 3]})
_HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(64)


def zipped(*names: str, content: bytes = b"x") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, content)
    return buffer.getvalue()


FORMATS = [
    (b"\x08\x07onnx", SourceFormat.ONNX),
    (b"", SourceFormat.ONNX),
    (b"\x1c\0\0\0TFL3" + bytes(64), SourceFormat.TFLITE),
    (_HDF5, SourceFormat.KERAS_H5),
    (_PICKLED, SourceFormat.PICKLE),
    (zipped("config.json", "metadata.json", "model.weights.h5"), SourceFormat.KERAS),
    (zipped("m/archive_format", "m/models/model.json", "m/data/sample_inputs/model.pt"), SourceFormat.TORCH_EXPORT),
    (zipped("serialized_exported_program.json", "serialized_state_dict.pt"), SourceFormat.TORCH_EXPORT),
    (zipped("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"), SourceFormat.TORCHSCRIPT),
    (zipped("m/data.pkl", "m/version", "m/data/0"), SourceFormat.PICKLE),
    (zipped("model/saved_model.pb", "model/variables/variables.index"), SourceFormat.SAVED_MODEL),
    (zipped("saved_model.pb"), SourceFormat.SAVED_MODEL),
]


@pytest.mark.parametrize(("content", "format_"), FORMATS)
@pytest.mark.parametrize("name", ["m.onnx", "m.pt", "m.zip", "m"])
def test_the_content_tells_and_not_the_name(tmp_path: Path, name: str, content: bytes, format_: SourceFormat) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with path.open("rb") as file:
        assert detect(file) is format_
        assert file.tell() == 0


def test_every_format_but_the_pickle_has_an_importer() -> None:
    assert set(IMPORTERS) == set(SourceFormat) - {SourceFormat.PICKLE}


@pytest.mark.parametrize("name", ["weights.pt", "weights.pth", "model.onnx", "model.pt2"])
@pytest.mark.parametrize("content", [_PICKLED, zipped("archive/data.pkl", "archive/version")])
def test_a_pickle_is_refused_with_what_to_do(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        BadInputError, match=r"pickle.*runs whatever code.*export the model instead: torch\.export"
    ) as it:
        preparing.prepare(tmp_path / name, tmp_path / "work")
    assert "\n" not in str(it.value)


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("unpickled"),))


def test_a_pickle_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for content in (pickle.dumps(_Trap()), zipped("m/data.pkl", content=pickle.dumps(_Trap()))):
        (tmp_path / "trap.pt").write_bytes(content)
        with pytest.raises(BadInputError):
            format_of(tmp_path / "trap.pt")
    assert not (tmp_path / "unpickled").exists()


def test_archives_that_are_no_model(tmp_path: Path) -> None:
    path = tmp_path / "notes.zip"
    path.write_bytes(zipped("readme.txt"))
    with pytest.raises(BadInputError, match="an archive, but no model that Covey reads"):
        format_of(path)
    path.write_bytes(zipped("saved_model.pb")[:40])
    with pytest.raises(BadInputError, match="cut short"):
        format_of(path)
    with pytest.raises(BadInputError, match="no saved_model.pb"):
        format_of(tmp_path)
    with pytest.raises(BadInputError, match="no such file"):
        format_of(tmp_path / "nowhere")


def test_a_directory_that_claims_to_be_huge_is_not_read() -> None:
    content = bytearray(zipped("saved_model.pb"))
    end = content.rfind(b"PK\x05\x06")
    content[end + 12 : end + 16] = (1 << 31).to_bytes(4, "little")
    with pytest.raises(DecodeError, match="directory claims 2147483648 bytes"):
        members(io.BytesIO(bytes(content)))


def test_too_many_members() -> None:
    with pytest.raises(DecodeError, match="20001 members"):
        members(io.BytesIO(zipped(*(f"{number}" for number in range(20_001)), content=b"")))


def _bomb(path: Path, size: int) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("saved_model.pb", "w") as member:
        for _ in range(size >> 20):
            member.write(bytes(1 << 20))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.zip"
    _bomb(path, 80 << 20)
    assert path.stat().st_size < 200_000
    with pytest.raises(BadInputError, match="zip bomb"):
        imported(path, tmp_path / "work", {})
    assert not list((tmp_path / "work").rglob("*.pb"))
    with pytest.raises(BadInputError, match="unpacks to 83886080 bytes; at most 1000"):
        archives.check(path, max_total=1000)


def test_a_member_that_lies_about_its_size(tmp_path: Path) -> None:
    path = tmp_path / "liar.zip"
    content = bytearray(zipped("saved_model.pb", content=b"y" * 1000))
    claim = content.rfind(b"PK\x01\x02")
    content[claim + 24 : claim + 28] = (10).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    with pytest.raises(BadInputError, match=r"cannot be read|larger than it claims"):
        archives.unpack(path, tmp_path / "out", MEMBERS)


@pytest.mark.parametrize(
    "name", ["../saved_model.pb", "/etc/saved_model.pb", "a/../../saved_model.pb", "..\\saved_model.pb"]
)
def test_paths_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "path.zip"
    path.write_bytes(zipped(name, "saved_model.pb"))
    with pytest.raises(BadInputError, match=r"leaves the archive's folder"):
        archives.unpack(path, tmp_path / "out", re.compile(".*"))
    assert [one.name for one in tmp_path.iterdir()] == ["path.zip"]


def test_links_encrypted_and_foreign_members(tmp_path: Path) -> None:
    path = tmp_path / "m.zip"
    link = zipfile.ZipInfo("saved_model.pb")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(BadInputError, match="symbolic link"):
        archives.unpack(path, tmp_path / "out", MEMBERS)
    path.write_bytes(zipped("saved_model.pb", "run.sh"))
    with pytest.raises(BadInputError, match=r"'run.sh' does not belong"):
        archives.unpack(path, tmp_path / "out", MEMBERS)


def test_a_saved_model_folder_with_a_link_out_of_it(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "variables").mkdir(parents=True)
    (model / "saved_model.pb").write_bytes(b"x")
    (tmp_path / "secret").write_bytes(b"s")
    (model / "variables" / "variables.index").symlink_to(tmp_path / "secret")
    with pytest.raises(BadInputError, match=r"variables.index is a link that leaves"):
        imported(model, tmp_path / "work", {})


@pytest.mark.parametrize(
    ("content", "toolchain"),
    [
        (zipped("m/archive_format"), "torch"),
        (zipped("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"), "torch"),
        (zipped("saved_model.pb"), "tensorflow"),
        (zipped("config.json", "model.weights.h5"), "tensorflow"),
        (_HDF5, "tensorflow"),
    ],
)
def test_without_its_toolchain_a_source_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, toolchain: str
) -> None:
    monkeypatch.setenv("COVEY_TOOLCHAINS", str(tmp_path))
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(
        UnsupportedError, match=f"toolchain {toolchain} is not installed.*toolchain install {toolchain}"
    ):
        imported(tmp_path / "m", tmp_path / "work", {})
