"""Run by the torch toolchain's own Python: a torch.export program or a TorchScript archive to ONNX.

`convert.py --check` imports the toolchain; `convert.py '{"format", "source", "out", "shapes"}'` converts. It leaves `model.onnx`,
`about.json` and, where the program could be run, `answers.npz` (see `covey_converters.sources.importer`). Exit status 0 means success;
otherwise the last line says why. Nothing is unpickled but tensors.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""

_OPSET = 18
_FORBIDDEN = ("aten::from_file", "aten::save", "prim::PythonOp")
_NAMESPACES = {"aten", "prim", "prims", "quantized", "torchvision"}


class Refused(Exception):
    """What a person should read."""


def main(argument: str) -> int:
    import onnx
    import onnxscript
    import torch

    if argument == "--check":
        return 0 if callable(onnx.load) and onnxscript.__name__ and torch.zeros(1).sum() == 0 else 1
    job = json.loads(argument)
    torch.set_num_threads(1)
    _tensors_only(torch)
    out = Path(job["out"])
    shapes = {name: tuple(shape) for name, shape in job["shapes"].items()}
    try:
        read = _export if job["format"] == "torch-export" else _script
        program, call, notes = read(torch, job["source"], shapes)
        program.save(str(out / "model.onnx"), external_data=False)
        notes += _answers(torch, onnx.load(str(out / "model.onnx")), call, shapes, out)
    except Refused as error:
        return _say(str(error))
    except Exception as error:  # noqa: BLE001  # exporters raise anything; the caller reads one line
        return _say(f"torch cannot turn it into ONNX: {type(error).__name__}: {_brief(error)}")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxscript")}
    (out / "about.json").write_text(json.dumps({"toolchain": versions, "notes": notes}))
    return 0


def _tensors_only(torch: Any) -> None:
    """Some archives hold parts that torch itself would unpickle whole; then it is told to read tensors and nothing else."""
    load = torch.load

    def safe(*arguments: Any, **options: Any) -> Any:
        options["weights_only"] = True
        return load(*arguments, **options)

    torch.load = safe
    torch.serialization.load = safe


def _export(torch: Any, source: Any, shapes: Any) -> Any:
    del shapes
    program = torch.export.load(source)
    custom = sorted(
        {
            str(node.target)
            for node in program.graph.nodes
            if node.op == "call_function" and getattr(node.target, "namespace", "aten") not in _NAMESPACES
        }
    )
    if custom:
        raise Refused(f"custom operator {custom[0]}: Covey builds from PyTorch's own operators alone")
    return torch.onnx.export(program, dynamo=True, opset_version=_OPSET, verbose=False), program.module(), []


def _script(torch: Any, source: Any, shapes: Any) -> Any:
    module = torch.jit.load(source, map_location="cpu").eval()
    inputs = [value for value in module.forward.graph.inputs()][1:]
    names = [value.debugName().split(".")[0] for value in inputs]
    for node in _nodes(module.inlined_graph):
        if node.kind() in _FORBIDDEN or node.kind().split("::")[0] not in _NAMESPACES:
            raise Refused(
                f"operator {node.kind()}: Covey builds from PyTorch's own operators alone, and from none that touch files"
            )
    missing = [name for name in names if name not in shapes]
    if missing:
        raise Refused(
            f"TorchScript does not say the shape of its inputs: give it for {', '.join(missing)} (--shape {missing[0]}=1x3x224x224)"
        )
    torch.manual_seed(0)
    feeds = tuple(torch.rand(shapes[name]) for name in names)
    try:
        program = torch.export.export(_wrapped(torch, module), feeds, strict=False)
        onnx_program = torch.onnx.export(program, dynamo=True, opset_version=_OPSET, verbose=False, input_names=names)
    except Exception as error:  # noqa: BLE001  # not every script can be traced anew
        return (
            _Legacy(torch, module, feeds, names),
            module,
            [f"by the older exporter ({type(error).__name__} in the newer)"],
        )
    return onnx_program, module, []


def _wrapped(torch: Any, module: Any) -> Any:
    class Wrapped(torch.nn.Module):
        def forward(self, *feeds: Any) -> Any:
            return module(*feeds)

    return Wrapped()


class _Legacy:
    """torch's older exporter, with the one method that we need of the newer one's result."""

    def __init__(self, torch: Any, module: Any, feeds: Any, names: Any) -> None:
        self._torch, self._module, self._feeds, self._names = torch, module, feeds, names

    def save(self, path: Any, external_data: Any = False) -> Any:
        del external_data
        self._torch.onnx.export(
            self._module, self._feeds, path, dynamo=False, opset_version=17, input_names=self._names
        )


def _nodes(graph: Any) -> Any:
    for node in graph.nodes():
        yield node
        for block in node.blocks():
            yield from _nodes(block)


def _answers(torch: Any, model: Any, call: Any, shapes: Any, out: Any) -> Any:
    import numpy as np

    weights = {tensor.name for tensor in model.graph.initializer}
    generator = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        known = [dim.dim_value if dim.dim_value > 0 else 0 for dim in kind.shape.dim]
        shape = shapes.get(value.name) or tuple(size or (1 if axis == 0 else 0) for axis, size in enumerate(known))
        if 0 in shape:
            return [f"not run in torch: input {value.name!r} is open"]
        feeds[value.name] = _random(np, generator, kind.elem_type, shape)
        if feeds[value.name] is None:
            return [f"not run in torch: input {value.name!r} is of an unusual type"]
    try:
        with torch.no_grad():
            result = call(*(torch.from_numpy(array) for array in feeds.values()))
    except Exception as error:  # noqa: BLE001  # a program may want other numbers than random ones; then it is not compared
        return [f"not run in torch on random inputs: {type(error).__name__}: {_brief(error)[:120]}"]
    flat = torch.utils._pytree.tree_leaves(result)
    names = [value.name for value in model.graph.output]
    if len(flat) != len(names):
        raise Refused(f"{len(names)} outputs in the ONNX, {len(flat)} in the program")
    arrays = {f"in/{name}": array for name, array in feeds.items()}
    arrays |= {f"out/{name}": value.detach().numpy() for name, value in zip(names, flat, strict=True)}
    np.savez(out / "answers.npz", **arrays)
    return []


def _random(np: Any, generator: Any, elem_type: Any, shape: Any) -> Any:
    # ONNX's element types: 1 float32, 11 float64, 10 float16, 6 int32, 7 int64, 2 uint8, 9 bool.
    floats = {1: np.float32, 11: np.float64, 10: np.float16}
    integers = {6: np.int32, 7: np.int64, 2: np.uint8}
    if elem_type in floats:
        return generator.random(shape).astype(floats[elem_type])
    if elem_type in integers:
        return generator.integers(0, 2, shape).astype(integers[elem_type])
    return generator.random(shape) > 0.5 if elem_type == 9 else None


def _brief(error: Any) -> str:
    return " ".join(str(error).split())[:300]


def _say(line: str) -> int:
    sys.stdout.write(f"\n{line}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
