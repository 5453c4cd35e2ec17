"""Every source format and its importer, and the one way in: `imported`. Runs in the build process, before the review."""

from __future__ import annotations

import hashlib
from pathlib import Path

from covey_contract.errors import DecodeError
from covey_contract.sources import PICKLE_HELP, SourceFormat, detect
from covey_converters.errors import BadInputError
from covey_converters.review import MAX_SOURCE_BYTES
from covey_converters.sources.importer import Imported, Importer, Shapes
from covey_converters.sources.keras import KerasImporter
from covey_converters.sources.onnx import OnnxImporter
from covey_converters.sources.saved_model import SavedModelImporter
from covey_converters.sources.tflite import TfliteImporter
from covey_converters.sources.torch import TorchImporter

IMPORTERS: dict[SourceFormat, Importer] = {
    SourceFormat.ONNX: OnnxImporter(),
    SourceFormat.TORCH_EXPORT: TorchImporter(SourceFormat.TORCH_EXPORT),
    SourceFormat.TORCHSCRIPT: TorchImporter(SourceFormat.TORCHSCRIPT),
    SourceFormat.SAVED_MODEL: SavedModelImporter(),
    SourceFormat.KERAS: KerasImporter(SourceFormat.KERAS),
    SourceFormat.KERAS_H5: KerasImporter(SourceFormat.KERAS_H5),
    SourceFormat.TFLITE: TfliteImporter(),
}


def imported(path: Path, work: Path, shapes: Shapes) -> Imported:
    """The source as ONNX, kept in `work` for its next target. Raises `BadInputError`, or `UnsupportedError` without its toolchain."""
    found = format_of(path)
    folder = work / f"import-{_digest(path, shapes)}"
    return IMPORTERS[found].to_onnx(path, folder, shapes)


def format_of(path: Path) -> SourceFormat:
    """By content; raises `BadInputError` for a pickle, for what is too large and for what cannot be read."""
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise BadInputError(f"{path.name}: a folder, but not a TensorFlow SavedModel (no saved_model.pb)")
        return SourceFormat.SAVED_MODEL
    try:
        size = path.stat().st_size
        if size > MAX_SOURCE_BYTES:
            raise BadInputError(f"{path.name}: {size} bytes; a source model may have {MAX_SOURCE_BYTES}")
        with path.open("rb") as file:
            found = detect(file)
    except FileNotFoundError as error:
        raise BadInputError(f"{path}: no such file") from error
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror}") from error
    except DecodeError as error:
        raise BadInputError(f"{path.name}: {error}") from error
    if found is SourceFormat.PICKLE:
        raise BadInputError(f"{path.name}: {PICKLE_HELP}")
    return found


def _digest(path: Path, shapes: Shapes) -> str:
    digest = hashlib.sha256(repr(sorted(shapes.items())).encode())
    for file in [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file()):
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as content:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:16]
