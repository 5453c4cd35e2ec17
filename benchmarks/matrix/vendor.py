"""One target by the vendor's tools called directly, as a careful person's script would: `python vendor.py JOB` (JSON). Nothing of Covey.

Converts or quantises with the settings that Covey's first recipe has, then asks source and result on the evaluation samples, then times
both. Prints one JSON object: accuracy of both, p50 of both in ms, and the CPU seconds that had been used after each step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Ask = Callable[[Array], Array]


def onnxruntime_session(path: Path) -> Ask:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda sample: session.run(None, {name: sample})[0]


def onnxruntime_fp32(graph: Path, _samples: Array, out: Path) -> Ask:
    (out / "model.onnx").write_bytes(graph.read_bytes())
    return onnxruntime_session(out / "model.onnx")


def onnxruntime_int8(graph: Path, samples: Array, out: Path) -> Ask:
    import onnx
    from onnxruntime import quantization

    inferred = out / "inferred.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(str(graph))), str(inferred))
    waiting = iter(samples)

    class Reader:
        def get_next(self) -> dict[str, Array] | None:
            sample = next(waiting, None)
            return None if sample is None else {"image": sample}

    quantization.quantize_static(
        str(inferred),
        str(out / "model.onnx"),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        calibrate_method=quantization.CalibrationMethod.MinMax,
    )
    return onnxruntime_session(out / "model.onnx")


def openvino_session(path: Path) -> Ask:
    import openvino

    compiled = openvino.Core().compile_model(
        str(path), "CPU", {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    )
    request = compiled.create_infer_request()

    def ask(sample: Array) -> Array:
        request.infer({0: sample})
        return np.array(request.get_output_tensor(0).data)

    return ask


def openvino_fp16(graph: Path, _samples: Array, out: Path) -> Ask:
    import openvino

    openvino.save_model(openvino.convert_model(str(graph)), str(out / "model.xml"), compress_to_fp16=True)
    return openvino_session(out / "model.xml")


def openvino_int8(graph: Path, samples: Array, out: Path) -> Ask:
    import nncf
    import openvino

    nncf.set_log_level("ERROR")
    model = nncf.quantize(
        openvino.convert_model(str(graph)),
        nncf.Dataset(list(samples)),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(samples),
    )
    openvino.save_model(model, str(out / "model.xml"))
    return openvino_session(out / "model.xml")


def tflite_int8(graph: Path, samples: Array, out: Path) -> Ask:
    import warnings

    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import algorithm_manager, calibrator, qtyping, quantizer, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    script = f"import onnx2tf; onnx2tf.convert(input_onnx_file_path={str(graph)!r}, output_folder_path={str(out)!r}, "
    script += "tflite_backend='flatbuffer_direct', non_verbose=True)"
    subprocess.run([os.environ["ONNX2TF_PYTHON"], "-I", "-c", script], check=True, stdout=sys.stderr)
    floats = out / f"{graph.stem}_float32.tflite"
    manager, operation = recipe_manager.RecipeManager(), qtyping.TFLOperationName
    manager.add_static_config(".*", operation.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    for edge in (operation.INPUT, operation.OUTPUT):
        manager.add_quantization_config(".*", edge, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE)
    interpreter = Interpreter(str(floats), num_threads=1)
    key = next(iter(interpreter.get_signature_list()), None)
    name = next(iter(interpreter.get_signature_runner(key).get_input_details()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranged = calibrator.Calibrator(floats.read_bytes(), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
        feeds = [{name: np.ascontiguousarray(sample.transpose(0, 2, 3, 1))} for sample in samples]
        ranged.calibrate({key: feeds}, manager)
    made = quantizer.Quantizer(str(floats), manager.get_quantization_recipe())
    result = made.quantize(ranged.get_model_qsvs(), enable_progress_report=False)
    (out / "model.tflite").write_bytes(bytes(result.quantized_model))
    session = Interpreter(str(out / "model.tflite"), num_threads=1)
    session.allocate_tensors()
    first, last = session.get_input_details()[0]["index"], session.get_output_details()[0]["index"]

    def ask(sample: Array) -> Array:
        session.set_tensor(first, np.ascontiguousarray(sample.transpose(0, 2, 3, 1)))
        session.invoke()
        return np.asarray(session.get_tensor(last))

    return ask


TOOLS: dict[str, Callable[[Path, Array, Path], Ask]] = {
    "onnxruntime-fp32": onnxruntime_fp32,
    "onnxruntime-int8": onnxruntime_int8,
    "openvino-fp16": openvino_fp16,
    "openvino-int8": openvino_int8,
    "tflite-int8": tflite_int8,
}


def cpu_seconds() -> float:
    """Of this process and of the children that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def accuracy(ask: Ask, images: Array, labels: Array) -> float:
    return float(np.mean([int(ask(image).argmax()) == label for image, label in zip(images, labels, strict=True)]))


def p50_ms(ask: Ask, image: Array, seconds: float) -> float:
    runs: list[float] = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(runs) < 20:
        began = time.perf_counter()
        ask(image)
        runs.append((time.perf_counter() - began) * 1e3)
    return float(np.median(runs))


def main() -> None:
    job = json.loads(sys.argv[1])
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    with np.load(job["calibration"]) as data:
        samples = data["image"]
    ask = TOOLS[job["target"]](Path(job["graph"]), samples, out)
    converted = cpu_seconds()
    source = onnxruntime_session(Path(job["source"]))
    with np.load(job["evaluation"]) as data:
        images, labels = data["image"], data["labels"]
    found = {name: accuracy(one, images, labels) for name, one in (("build", ask), ("source", source))}
    evaluated = cpu_seconds()
    times = {name: p50_ms(one, images[0], job["seconds"]) for name, one in (("build", ask), ("source", source))}
    steps = {"converted": converted, "evaluated": evaluated, "timed": cpu_seconds()}
    print(json.dumps({"accuracy": found, "p50_ms": times, "cpu_s": steps}))


if __name__ == "__main__":
    main()
