"""Run by the TensorFlow toolchain's own Python: SavedModel, Keras or TFLite to ONNX, by tf2onnx.

`convert.py --check` imports the toolchain; `convert.py '{"format", "source", "out", "shapes"}'` converts. It leaves `model.onnx`,
`about.json` and, where the model could be run, `answers.npz` (see `covey_converters.sources.importer`). Exit status 0 means success;
otherwise the last line says why.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any

os.environ.update(
    CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="2", KERAS_BACKEND="tensorflow", TF_ENABLE_ONEDNN_OPTS="0"
)

_OPSET = 17
# Operators that run Python or touch files.
_FORBIDDEN = {
    "PyFunc",
    "PyFuncStateless",
    "EagerPyFunc",
    "ReadFile",
    "WriteFile",
    "MatchingFiles",
    "SaveV2",
    "ShardedFilename",
}
# Layers whose configuration holds Python code.
_CODE = ("Lambda", "TFSMLayer", "JaxLayer", "FlaxLayer", "TorchModuleWrapper")


class Refused(Exception):
    """What a person should read."""


def main(argument: str) -> int:
    import tensorflow as tf
    import tf2onnx

    if argument == "--check":
        return 0 if tf.reduce_sum([1.0]).numpy() == 1.0 and callable(tf2onnx.convert.from_function) else 1
    job = json.loads(argument)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    out = Path(job["out"])
    shapes = {name: tuple(shape) for name, shape in job["shapes"].items()}
    try:
        if job["format"] == "tflite":
            notes = _tflite(tf, tf2onnx, job["source"], out)
        else:
            read = _saved_model if job["format"] == "saved-model" else _keras
            notes = _function(tf, tf2onnx, *read(tf, job["source"]), shapes, out)
    except Refused as error:
        return _say(str(error))
    except Exception as error:  # noqa: BLE001  # exporters raise anything; the caller reads one line
        return _say(f"TensorFlow or tf2onnx cannot turn it into ONNX: {type(error).__name__}: {_brief(error)}")
    versions = {name: importlib.metadata.version(name) for name in ("keras", "tf2onnx", "onnx")}
    versions["tensorflow"] = tf.__version__
    (out / "about.json").write_text(json.dumps({"toolchain": versions, "notes": notes}))
    return 0


def _saved_model(tf: Any, source: Any) -> Any:
    """The callable by its inputs' names, the specifications of its inputs, and what is kept alive for it."""
    loaded = tf.saved_model.load(source)
    signatures = loaded.signatures
    name = "serving_default" if "serving_default" in signatures else next(iter(signatures), None)
    if name is None or (name != "serving_default" and len(signatures) > 1):
        have = ", ".join(sorted(signatures)) or "none"
        raise Refused(f"the SavedModel has no signature serving_default (it has: {have}); export it with one")
    concrete = signatures[name]
    _check_operators(concrete.graph)
    specs = dict(sorted(concrete.structured_input_signature[1].items()))
    return (lambda feeds: concrete(**feeds)), specs, loaded


def _keras(tf: Any, source: Any) -> Any:
    import keras

    _check_layers(source)
    model = keras.saving.load_model(source, compile=False, safe_mode=True)
    if not getattr(model, "inputs", None):
        raise Refused("the Keras model has no defined inputs; call it once before saving, or build it by keras.Input")
    names = [tensor.name for tensor in model.inputs]
    specs = {
        name: tf.TensorSpec(tuple(tensor.shape), tensor.dtype, name=name)
        for name, tensor in zip(names, model.inputs, strict=True)
    }
    outputs = [tensor.name for tensor in model.outputs]
    outputs = [str(name).split("/")[-1] for name in getattr(model, "output_names", None) or outputs]
    single = len(names) == 1

    def call(feeds: Any) -> Any:
        values = list(feeds.values())
        got = tf.nest.flatten(model(values[0] if single else values, training=False))
        if len(set(outputs)) == len(got):
            return dict(zip(outputs, got, strict=True))
        return {f"output_{index}": value for index, value in enumerate(got)}

    return call, specs, model


def _check_layers(source: Any) -> None:
    """Keras's safe mode refuses code in `.keras` files; this also names the layer, and covers `.h5` and links to other files."""
    import h5py

    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            with archive.open("config.json") as file:
                config = file.read(64 << 20)
            with archive.open("model.weights.h5") as weights, h5py.File(weights, "r") as file:
                _check_links(h5py, file)
    else:
        with h5py.File(source, "r") as file:
            _check_links(h5py, file)
            config = file.attrs.get("model_config")
            if config is None:
                raise Refused("the .h5 file holds weights alone; save the whole model: model.save('model.keras')")
    for layer in _layers(json.loads(config)):
        if layer in _CODE:
            raise Refused(
                f"a layer {layer}, which brings Python code that Covey never runs; use layers of Keras itself"
            )


def _check_links(h5py: Any, group: Any) -> None:
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise Refused(f"{group.name}/{name} is a link, which may lead to another file")
        item = group[name]
        if isinstance(item, h5py.Group):
            _check_links(h5py, item)
        elif item.external or item.is_virtual:
            raise Refused(f"{item.name} has its data in another file")


def _layers(config: Any) -> Any:
    stack = [config]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            if isinstance(one.get("class_name"), str):
                yield one["class_name"].split(">")[-1]
            stack.extend(one.values())
        elif isinstance(one, list):
            stack.extend(one)


def _check_operators(graph: Any) -> None:
    kinds = {operation.type: operation.name for operation in graph.get_operations()}
    for function in graph.as_graph_def().library.function:
        kinds |= {node.op: node.name for node in function.node_def}
    for kind in sorted(_FORBIDDEN & kinds.keys()):
        raise Refused(f"node {kinds[kind]!r} is of the operator {kind}, which runs code or touches files")


def _function(tf: Any, tf2onnx: Any, call: Any, specs: Any, alive: Any, shapes: Any, out: Any) -> Any:
    import onnx

    names = list(specs)
    if unknown := sorted(set(shapes) - set(names)):
        raise Refused(f"no input {unknown[0]!r}; it has {', '.join(names)}")
    # Under our own names from here on: tf2onnx takes the order of arguments, and TensorFlow changes names as it likes.
    signature = [
        tf.TensorSpec(shapes.get(name, spec.shape), spec.dtype, name=f"covey_in_{index}")
        for index, (name, spec) in enumerate(specs.items())
    ]

    @tf.function(input_signature=signature)
    def run(*feeds: Any) -> Any:
        return call(dict(zip(names, feeds, strict=True)))

    concrete = run.get_concrete_function()
    _check_operators(concrete.graph)
    wanted = sorted(concrete.structured_outputs)
    model, _ = tf2onnx.convert.from_function(run, input_signature=signature, opset=_OPSET)
    _rename(onnx, model, names, wanted)
    onnx.save(model, str(out / "model.onnx"))
    del alive
    return _answers(
        model,
        lambda feeds: {k: v.numpy() for k, v in run(*(tf.constant(f) for f in feeds.values())).items()},
        names,
        out,
    )


def _rename(onnx: Any, model: Any, inputs: Any, outputs: Any) -> None:
    """The source's names instead of tf2onnx's. Order tells which is which."""
    graph = model.graph
    if len(graph.input) != len(inputs) or len(graph.output) != len(outputs):
        raise Refused(
            f"tf2onnx left {len(graph.input)} inputs and {len(graph.output)} outputs of {len(inputs)} and {len(outputs)}"
        )
    order = sorted(graph.input, key=lambda value: int(value.name.split("covey_in_")[1].split(":")[0]))
    renamed = {value.name: name for value, name in zip(order, inputs, strict=True)}
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    for value, name in zip(list(graph.output), outputs, strict=True):
        if value.name == name:
            continue
        final = name if name not in taken | set(inputs) else f"{name}_out"
        graph.node.append(onnx.helper.make_node("Identity", [value.name], [final], name=f"covey_{final}"))
        value.name = final
    for value in graph.input:
        value.name = renamed[value.name]
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)


def _tflite(tf: Any, tf2onnx: Any, source: Any, out: Any) -> Any:
    interpreter = tf.lite.Interpreter(source, num_threads=1)
    interpreter.allocate_tensors()
    custom = sorted(
        op["op_name"] for op in interpreter._get_ops_details() if op["op_name"].startswith(("CUSTOM", "Flex"))
    )
    if custom:
        raise Refused(f"custom operator {custom[0]}: it has no counterpart in ONNX")
    model, _ = tf2onnx.convert.from_tflite(source, opset=_OPSET, output_path=str(out / "model.onnx"))
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    by_name = {value.name: value for value in model.graph.input}

    def run(feeds: Any) -> Any:
        for detail in inputs:
            interpreter.set_tensor(detail["index"], feeds[detail["name"]])
        interpreter.invoke()
        return {detail["name"]: interpreter.get_tensor(detail["index"]) for detail in outputs}

    if any(detail["name"] not in by_name for detail in inputs):
        return ["not run in LiteRT: tf2onnx renamed an input"]
    quantised = any(len(detail["quantization_parameters"]["scales"]) for detail in interpreter.get_tensor_details())
    if quantised:
        return ["a quantised TFLite model: its ONNX differs by rounding, so it was not compared"]
    return _answers(model, run, [detail["name"] for detail in inputs], out)


def _answers(model: Any, run: Any, names: Any, out: Any) -> Any:
    import numpy as np

    values = {value.name: value.type.tensor_type for value in model.graph.input}
    generator = np.random.default_rng(0)
    floats = {1: np.float32, 11: np.float64, 10: np.float16}
    integers = {6: np.int32, 7: np.int64, 2: np.uint8, 3: np.int8}
    feeds = {}
    for name in names:
        kind = values[name]
        shape = [
            dim.dim_value if dim.dim_value > 0 else (1 if axis == 0 else 0) for axis, dim in enumerate(kind.shape.dim)
        ]
        if 0 in shape:
            return [f"not run in TensorFlow: input {name!r} is open"]
        if kind.elem_type in floats:
            feeds[name] = generator.random(shape).astype(floats[kind.elem_type])
        elif kind.elem_type in integers:
            feeds[name] = generator.integers(0, 2, shape).astype(integers[kind.elem_type])
        else:
            return [f"not run in TensorFlow: input {name!r} is of an unusual type"]
    try:
        got = run(feeds)
    except Exception as error:  # noqa: BLE001  # a model may want other numbers than random ones; then it is not compared
        return [f"not run in TensorFlow on random inputs: {type(error).__name__}: {_brief(error)[:120]}"]
    present = {value.name for value in model.graph.output}
    by_name = {(name if name in present else f"{name}_out"): value for name, value in got.items()}
    arrays = {f"in/{name}": array for name, array in feeds.items()}
    np.savez(out / "answers.npz", **arrays, **{f"out/{name}": value for name, value in by_name.items()})
    return []


def _brief(error: Any) -> str:
    return " ".join(str(error).split())[:300]


def _say(line: str) -> int:
    sys.stdout.write(f"\n{line}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
