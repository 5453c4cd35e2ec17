"""TensorFlow SavedModel: a folder, or a zip file of it. Only what belongs to a SavedModel is unpacked."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from covey_contract.sources import SourceFormat
from covey_converters.errors import BadInputError
from covey_converters.sources import archives
from covey_converters.sources.importer import Imported, Shapes, convert

_NAME = r"[\w.+ -]{1,200}"
MEMBERS = re.compile(
    rf"(?:{_NAME}/)?(?:saved_model\.pb|keras_metadata\.pb|fingerprint\.pb|variables/variables\.(?:index|data-\d+-of-\d+)"
    rf"|assets(?:\.extra)?/(?:{_NAME}/)*{_NAME})"
)


class SavedModelImporter:
    """By the signature `serving_default`, or the only one there is."""

    toolchain = "tensorflow"

    def to_onnx(self, path: Path, folder: Path, shapes: Shapes) -> Imported:
        root = path if path.is_dir() else _unpacked(path, folder)
        _refuse_links(path, root)
        return convert(root, SourceFormat.SAVED_MODEL, self.toolchain, folder, shapes)


def _unpacked(path: Path, folder: Path) -> Path:
    out = folder / "unpacked"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    roots = [one.parent for one in archives.unpack(path, out, MEMBERS) if one.name == "saved_model.pb"]
    if len(roots) != 1:
        raise BadInputError(f"{path.name}: {len(roots)} saved_model.pb in the archive; there must be one")
    return roots[0]


def _refuse_links(path: Path, root: Path) -> None:
    total = 0
    for one in root.rglob("*"):
        if one.is_symlink() and not one.resolve().is_relative_to(root.resolve()):
            raise BadInputError(f"{path.name}: {one.relative_to(root)} is a link that leaves the model's folder")
        total += one.stat().st_size if one.is_file() else 0
    if total > archives.MAX_TOTAL_BYTES:
        raise BadInputError(f"{path.name}: {total} bytes; a source model may have {archives.MAX_TOTAL_BYTES}")
