"""ONNX: what every other format becomes. It is reviewed as it came."""

from __future__ import annotations

from pathlib import Path

from covey_contract.sources import SourceFormat
from covey_converters.sources.importer import Imported, Shapes


class OnnxImporter:
    """ONNX, and everything that bears no mark of another format: the review says what is wrong with it."""

    toolchain = None

    def to_onnx(self, path: Path, folder: Path, shapes: Shapes) -> Imported:
        del folder, shapes
        return Imported(path=path, format=SourceFormat.ONNX)
