"""PyTorch: a `torch.export` program (.pt2), and TorchScript (.pt, .ts), which has no shapes of its own and needs them given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from covey_contract.sources import SourceFormat
from covey_converters.sources import archives
from covey_converters.sources.importer import Imported, Shapes, convert


@dataclass(frozen=True)
class TorchImporter:
    """One of PyTorch's two archives. Both are zip files that PyTorch opens itself; what they claim is checked before."""

    format: SourceFormat
    toolchain = "torch"

    def to_onnx(self, path: Path, folder: Path, shapes: Shapes) -> Imported:
        archives.check(path)
        return convert(path, self.format, self.toolchain, folder, shapes)
