"""TFLite: turned into ONNX for the other runtimes. A float model is its own `tflite-fp32` build, so it is handed on as it came."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from covey_contract.sources import SourceFormat
from covey_converters.errors import BadInputError
from covey_converters.sources.importer import Imported, Shapes, convert


class TfliteImporter:
    """A flatbuffer. A quantised one becomes ONNX with its quantisation, and its TFLite builds are made anew from that."""

    toolchain = "tensorflow"

    def to_onnx(self, path: Path, folder: Path, shapes: Shapes) -> Imported:
        floats = _is_float(path)
        found = convert(path, SourceFormat.TFLITE, self.toolchain, folder, shapes)
        return dataclasses.replace(found, native=path if floats else None)


def _is_float(path: Path) -> bool:
    """Whether no tensor is quantised. Reads the model with LiteRT, in this confined process."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        details = Interpreter(str(path), num_threads=1).get_tensor_details()
    except Exception as error:  # noqa: BLE001  # LiteRT raises ValueError and RuntimeError with its own words
        raise BadInputError(f"{path.name}: not a TFLite model, or cut short ({str(error)[:200]})") from error
    return not any(len(detail["quantization_parameters"]["scales"]) for detail in details)
