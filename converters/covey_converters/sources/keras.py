"""Keras: `.keras` archives and `.h5` files of whole models. Layers that bring Python code are refused by the toolchain's script."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from covey_contract.sources import SourceFormat
from covey_converters.sources import archives
from covey_converters.sources.importer import Imported, Shapes, convert


@dataclass(frozen=True)
class KerasImporter:
    """One of Keras's two files."""

    format: SourceFormat
    toolchain = "tensorflow"

    def to_onnx(self, path: Path, folder: Path, shapes: Shapes) -> Imported:
        if self.format is SourceFormat.KERAS:
            archives.check(path)
        return convert(path, self.format, self.toolchain, folder, shapes)
