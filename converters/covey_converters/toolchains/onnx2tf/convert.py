"""Run by the onnx2tf toolchain's own Python: one ONNX file to `NAME_float32.tflite`.

`convert.py --check` imports the toolchain; `convert.py '{"source": …, "out": …}'` converts. Exit status 0 means success; otherwise
the last line says why.
"""

from __future__ import annotations

import json
import sys


def main(argument: str) -> int:
    import onnx2tf

    if argument == "--check":
        return 0 if callable(onnx2tf.convert) else 1
    job = json.loads(argument)
    try:
        onnx2tf.convert(
            input_onnx_file_path=job["source"],
            output_folder_path=job["out"],
            tflite_backend="flatbuffer_direct",
            non_verbose=True,
        )
    except BaseException as error:  # noqa: BLE001  # it ends by sys.exit for models that it cannot convert; the caller reads one line
        line = " ".join(str(error).split())[:300]
        sys.stdout.write(f"\n{type(error).__name__}: {line}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
