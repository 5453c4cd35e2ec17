"""What a source model may be, told by its content and never by its name.

Shared by the server, which refuses a pickle at the door, and the converters, which read the rest. Nothing here unpickles, unpacks
or allocates by what a file claims: a few bytes of head, and the table of contents of an archive, whose size is checked first.
"""

from __future__ import annotations

import io
import zipfile
from typing import BinaryIO

from covey_contract.errors import DecodeError
from covey_contract.strenum import StrEnum

MAX_MEMBERS = 20_000
_MAX_DIRECTORY_BYTES = 8 << 20
_LOCATOR, _END64, _END = b"PK\x06\x07", b"PK\x06\x06", b"PK\x05\x06"
_END_BYTES, _COMMENT_BYTES = 22, 65_535

# File names that a source may have; what it is, its content says.
SOURCE_SUFFIXES = (".onnx", ".pt2", ".pt", ".pth", ".ts", ".zip", ".keras", ".h5", ".tflite")

PICKLE_HELP = (
    "a PyTorch file of Python objects (pickle), and loading a pickle runs whatever code is in it, so Covey never does; export the "
    "model instead: torch.export.save(torch.export.export(model.eval(), example_inputs), 'model.pt2'), "
    "or torch.onnx.export(model, example_inputs, 'model.onnx', dynamo=True)"
)


class SourceFormat(StrEnum):
    """PICKLE is refused everywhere. ONNX has no mark of its own: it stands for everything that bears no other."""

    ONNX = "onnx"
    TORCH_EXPORT = "torch-export"
    TORCHSCRIPT = "torchscript"
    SAVED_MODEL = "saved-model"
    KERAS = "keras"
    KERAS_H5 = "keras-h5"
    TFLITE = "tflite"
    PICKLE = "pickle"


def detect(file: BinaryIO) -> SourceFormat:
    """The format of a seekable file, which is left at its beginning; raises `DecodeError` for an archive that is none of ours."""
    file.seek(0)
    head = file.read(8)
    try:
        if head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
            return SourceFormat.PICKLE
        if head[4:8] == b"TFL3":
            return SourceFormat.TFLITE
        if head == b"\x89HDF\r\n\x1a\n":
            return SourceFormat.KERAS_H5
        if head[:4] == b"PK\x03\x04":
            return _archive([one.filename for one in members(file)])
        return SourceFormat.ONNX
    finally:
        file.seek(0)


def members(file: BinaryIO) -> list[zipfile.ZipInfo]:
    """The table of contents of a zip file, by no more memory than it may take; raises `DecodeError`."""
    _check_directory(file)
    try:
        with zipfile.ZipFile(file) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, ValueError, OSError) as error:
        raise DecodeError(f"not a readable zip file: {error}") from error
    if len(found) > MAX_MEMBERS:
        raise DecodeError(f"the archive has {len(found)} members; at most {MAX_MEMBERS}")
    return found


def _check_directory(file: BinaryIO) -> None:
    """`zipfile` reads the whole directory at once, of the size that the file's end claims."""
    size = file.seek(0, io.SEEK_END)
    start = max(size - _END_BYTES - _COMMENT_BYTES - 76, 0)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_BYTES:
        raise DecodeError("not a readable zip file: its end is missing, so it was cut short")
    claimed = int.from_bytes(tail[at + 12 : at + 16], "little")
    if at >= 76 and tail[at - 20 : at - 16] == _LOCATOR:
        if tail[at - 76 : at - 72] != _END64:
            raise DecodeError("not a readable zip file: its 64-bit directory is not where it should be")
        claimed = int.from_bytes(tail[at - 76 + 40 : at - 76 + 48], "little")
    if claimed > _MAX_DIRECTORY_BYTES:
        raise DecodeError(f"the archive's directory claims {claimed} bytes; at most {_MAX_DIRECTORY_BYTES}")


def _archive(names: list[str]) -> SourceFormat:
    plain = set(names)
    if {"config.json", "model.weights.h5"} <= plain:
        return SourceFormat.KERAS
    # PyTorch puts everything into one folder, named as it likes.
    inner = {name.partition("/")[2] for name in names if "/" in name}
    if "archive_format" in inner or "archive_format" in plain or "serialized_exported_program.json" in plain | inner:
        return SourceFormat.TORCH_EXPORT
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return SourceFormat.TORCHSCRIPT
    if any(name == "saved_model.pb" or name.endswith("/saved_model.pb") for name in names):
        return SourceFormat.SAVED_MODEL
    if any(name.endswith((".pkl", ".pickle")) for name in names):
        return SourceFormat.PICKLE
    raise DecodeError(
        "an archive, but no model that Covey reads: neither torch.export, TorchScript, TensorFlow SavedModel nor Keras"
    )
