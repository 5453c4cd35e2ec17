"""The Open Inference Protocol, version 2 (KServe's "v2"), between bytes and tensors: pure, JSON and the binary tensor extension.

A request's tensors leave here as raw little-endian bytes that fit the build's signature, or a `BadRequest` names the field that
does not. Sources: "Open Inference Protocol" (kserve/open-inference-protocol, rest) and its binary tensor data extension.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from covey_agent.gateway.errors import BadRequest
from covey_agent.gateway.oip_elements import pack, unpack
from covey_agent.gateway.shared_memory import Place, Visit
from covey_agent.runner.protocol import TensorInfo
from covey_contract.manifest import DataType, Manifest, TensorSpec

MAX_RANK = 16
MAX_ELEMENT_BYTES = 128  # of one number in JSON, with the white space around it


class Tensor(msgspec.Struct, frozen=True):
    """An input as it stands in the request."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()


class Wanted(msgspec.Struct, frozen=True):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] = {}


class Header(msgspec.Struct, frozen=True):
    """The JSON part of a request."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Wanted, ...] = ()
    id: str = ""
    parameters: dict[str, Any] = {}


class InferRequest(msgspec.Struct, frozen=True):
    """A request that fits the build it was parsed for."""

    id: str
    inputs: tuple[TensorInfo, ...]
    data: tuple[bytes | memoryview, ...]
    outputs: tuple[str, ...]
    binary: frozenset[str]  # the outputs that are wanted as bytes
    timeout_s: float | None
    places: Mapping[str, Place] = {}  # the outputs that are wanted in shared memory
    manifest: Manifest | None = None  # of the build that it was parsed for

    def fits(self, manifest: Manifest) -> bool:
        """Whether the request may as well go to another build of the model: same names, types and shapes."""
        if self.manifest is manifest:
            return True
        inputs = {spec.name: spec for spec in manifest.inputs}
        outputs = {spec.name for spec in manifest.outputs}
        return (
            len(inputs) == len(self.inputs)
            and outputs >= set(self.outputs)
            and all(
                (spec := inputs.get(info.name)) is not None
                and spec.datatype == info.datatype
                and _fits(spec.shape, info.shape)
                for info in self.inputs
            )
        )


@dataclass(frozen=True)
class Form:
    """What the JSON part of a request says, where it fits a build: all of the request but the bytes that come otherwise.

    `sources`: of each input the field of the request it stands in, and its elements, or where they are: in a place in shared memory, or so
    many bytes of what follows the JSON part.
    """

    id: str
    inputs: tuple[TensorInfo, ...]
    sources: tuple[tuple[str, bytes | Place | int], ...]
    outputs: tuple[str, ...]
    binary: frozenset[str]
    timeout_s: float | None
    places: Mapping[str, Place]
    manifest: Manifest

    @property
    def is_lasting(self) -> bool:
        """Whether another request may well begin with the same JSON part: it holds neither elements nor a name of its own."""
        return not self.id and not any(isinstance(source, bytes) for _, source in self.sources)

    @cached_property
    def placed_bytes(self) -> int:
        """Bytes of the inputs, if all of them lie in shared memory; 0 otherwise."""
        if all(isinstance(source, Place) for _, source in self.sources):
            return sum([info.size for info in self.inputs])
        return 0

    def filled(self, rest: memoryview, memory: Visit) -> InferRequest:
        """With what follows the JSON part, of which it becomes views; raises `BadRequest`, and `MemoryFullError` for what lies in shared
        memory."""
        data: list[bytes | memoryview] = []
        at = 0
        for info, (field, source) in zip(self.inputs, self.sources, strict=True):
            if isinstance(source, int):
                data.append(rest[at : at + source])
                at += source
                if at > len(rest):
                    raise BadRequest(
                        f"{field}.parameters.binary_data_size: {source} bytes announced, {len(data[-1])} left in the body"
                    )
            elif isinstance(source, Place):
                data.append(memory.read(f"{field}.parameters", source, info.size))
            else:
                data.append(source)
        if at < len(rest):
            raise BadRequest(f"the body has {len(rest) - at} bytes more than the inputs' binary_data_size account for")
        return InferRequest(
            self.id,
            self.inputs,
            tuple(data),
            self.outputs,
            self.binary,
            self.timeout_s,
            self.places,
            self.manifest,
        )


_header = msgspec.json.Decoder(Header)


def parse_request(
    body: bytes | bytearray | memoryview, header_bytes: int | None, manifest: Manifest, memory: Visit
) -> InferRequest:
    """Read the body of `POST …/infer`; `header_bytes` is the value of `Inference-Header-Content-Length`, None without one.

    Raises `BadRequest`, and `MemoryFullError` for what lies in shared memory. Binary tensors are views of `body`.
    """
    told, rest = parts(body, header_bytes)
    return read_form(told, manifest).filled(rest, memory)


def parts(body: bytes | bytearray | memoryview, header_bytes: int | None) -> tuple[memoryview, memoryview]:
    """The JSON part of a body, and what follows it; raises `BadRequest`."""
    view = memoryview(body)
    if header_bytes is None:
        return view, view[len(view) :]
    if not 0 <= header_bytes <= len(view):
        raise BadRequest(f"Inference-Header-Content-Length is {header_bytes}; the body has {len(view)} bytes")
    return view[:header_bytes], view[header_bytes:]


def read_form(told: memoryview, manifest: Manifest) -> Form:
    """The JSON part of a request for that build; raises `BadRequest`."""
    try:
        header = _header.decode(told)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the request is not valid: {error}") from error
    infos, sources = _inputs(header.inputs, manifest)
    outputs, binary, places = _outputs(header, manifest)
    return Form(header.id, infos, sources, outputs, binary, _timeout(header.parameters), places, manifest)


def _inputs(
    tensors: Sequence[Tensor], manifest: Manifest
) -> tuple[tuple[TensorInfo, ...], tuple[tuple[str, bytes | Place | int], ...]]:
    specs = {spec.name: spec for spec in manifest.inputs}
    infos: dict[str, TensorInfo] = {}
    sources: list[tuple[str, bytes | Place | int]] = []
    for index, tensor in enumerate(tensors):
        field = f"inputs[{index}]"
        spec = specs.get(tensor.name)
        if spec is None:
            raise BadRequest(
                f"{field}.name: {_quote(tensor.name)} is not an input of this model; it has {', '.join(specs)}"
            )
        if tensor.name in infos:
            raise BadRequest(f"{field}.name: input {_quote(tensor.name)} is given twice")
        size = _check_signature(field, tensor, spec)
        infos[tensor.name] = TensorInfo(tensor.name, spec.datatype.value, tensor.shape, size)
        sources.append((field, _source(field, tensor, spec, size)))
    if missing := [name for name in specs if name not in infos]:
        raise BadRequest(f"inputs: {', '.join(map(_quote, missing))} missing")
    return tuple(infos.values()), tuple(sources)


def _source(field: str, tensor: Tensor, spec: TensorSpec, size: int) -> bytes | Place | int:
    if (binary_size := tensor.parameters.get("binary_data_size")) is not None:
        _check_binary(field, tensor, binary_size, size)
        return size
    if (place := _place(field, tensor.parameters)) is not None:
        if tensor.data:
            raise BadRequest(f"{field}.data: given beside shared_memory_region")
        return place
    return _from_json(field, tensor, spec, size // spec.datatype.itemsize)


def _check_signature(field: str, tensor: Tensor, spec: TensorSpec) -> int:
    """Bytes of the tensor, if its type and shape are those of the input."""
    if tensor.datatype != spec.datatype:
        raise BadRequest(f"{field}.datatype: {_quote(tensor.datatype)}; input {spec.name!r} is {spec.datatype}")
    if len(tensor.shape) > MAX_RANK or not _fits(spec.shape, tensor.shape):
        raise BadRequest(f"{field}.shape: {list(tensor.shape[:MAX_RANK])}; input {spec.name!r} is {list(spec.shape)}")
    return math.prod(tensor.shape) * spec.datatype.itemsize


def _fits(spec: Sequence[int], shape: Sequence[int]) -> bool:
    return len(spec) == len(shape) and all(
        got >= 1 and want in (-1, got) for want, got in zip(spec, shape, strict=True)
    )


def _check_binary(field: str, tensor: Tensor, given: object, size: int) -> None:
    name = f"{field}.parameters.binary_data_size"
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise BadRequest(f"{name}: must be a number of bytes")
    if tensor.data:
        raise BadRequest(f"{field}.data: given beside binary_data_size")
    if given != size:
        raise BadRequest(f"{name}: {given} bytes; shape and datatype of {_quote(tensor.name)} make {size}")


def _from_json(field: str, tensor: Tensor, spec: TensorSpec, count: int) -> bytes:
    if not tensor.data:
        raise BadRequest(f"{field}.data: missing (neither data, binary_data_size nor shared_memory_region)")
    if (
        memoryview(tensor.data).nbytes > MAX_ELEMENT_BYTES * count + MAX_ELEMENT_BYTES
    ):  # before it becomes a list many times its size
        raise BadRequest(f"{field}.data: too long for {count} elements")
    try:
        values = msgspec.json.decode(tensor.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"{field}.data: {error}") from error
    flat = _flatten(field, values, len(tensor.shape))
    if len(flat) != count:
        raise BadRequest(f"{field}.data: {len(flat)} elements; shape {list(tensor.shape)} makes {count}")
    return pack(field, flat, spec.datatype)


def _flatten(field: str, values: object, rank: int) -> list[Any]:
    """Row-major elements of nested lists, which may be flat already."""
    if not isinstance(values, list):
        raise BadRequest(f"{field}.data: must be an array")
    flat: list[Any] = values
    for _ in range(rank - 1):
        if not any(isinstance(value, list) for value in flat):
            return flat
        if not all(isinstance(value, list) for value in flat):
            raise BadRequest(f"{field}.data: arrays and numbers are mixed")
        flat = [element for value in flat for element in value]
    if any(isinstance(value, list) for value in flat):
        raise BadRequest(f"{field}.data: nested deeper than the tensor has dimensions")
    return flat


def _outputs(header: Header, manifest: Manifest) -> tuple[tuple[str, ...], frozenset[str], dict[str, Place]]:
    """Names of the outputs to answer with, those of them in binary, and those in shared memory."""
    default = _flag("parameters.binary_data_output", header.parameters.get("binary_data_output", False))
    known = [spec.name for spec in manifest.outputs]
    if not header.outputs:
        return tuple(known), frozenset(known if default else ()), {}
    names: list[str] = []
    binary: set[str] = set()
    places: dict[str, Place] = {}
    for index, wanted in enumerate(header.outputs):
        field = f"outputs[{index}]"
        if wanted.name not in known:
            raise BadRequest(
                f"{field}.name: {_quote(wanted.name)} is not an output of this model; it has {', '.join(known)}"
            )
        if wanted.name in names:
            raise BadRequest(f"{field}.name: output {_quote(wanted.name)} is asked for twice")
        if wanted.parameters.get("classification"):
            raise BadRequest(f"{field}.parameters.classification: not supported")
        names.append(wanted.name)
        if (place := _place(field, wanted.parameters)) is not None:
            places[wanted.name] = place
        elif _flag(f"{field}.parameters.binary_data", wanted.parameters.get("binary_data", default)):
            binary.add(wanted.name)
    return tuple(names), frozenset(binary), places


def _place(field: str, parameters: Mapping[str, Any]) -> Place | None:
    if "shared_memory_region" not in parameters:
        return None
    try:
        return msgspec.convert(parameters, Place)
    except msgspec.ValidationError as error:
        raise BadRequest(f"{field}.parameters: {error}") from error


def _flag(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"{field}: must be true or false")
    return value


def _timeout(parameters: Mapping[str, Any]) -> float | None:
    """Triton's `timeout` parameter: microseconds. It can only shorten a request's deadline."""
    value = parameters.get("timeout")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadRequest("parameters.timeout: must be a number of microseconds")
    return value / 1e6 if value else None


def _quote(text: str) -> str:
    return repr(text[:100])


def render_answer(
    request: InferRequest,
    manifest: Manifest,
    build: str,
    outputs: Sequence[TensorInfo],
    data: Sequence[memoryview],
    memory: Visit,
) -> tuple[list[bytes | memoryview], int | None]:
    """The body of the answer in pieces, and the length of its JSON part if binary tensors follow it.

    `manifest` and `build` are those of the build that answered. Raises `ValueError` where an output cannot be put in JSON, and
    `BadRequest` where it has no room in its place in shared memory.
    """
    rendered: list[dict[str, Any]] = []
    binary: list[bytes | memoryview] = []
    for info, content in zip(outputs, data, strict=True):
        output: dict[str, Any] = {"name": info.name, "datatype": info.datatype, "shape": info.shape}
        if (place := request.places.get(info.name)) is not None:
            memory.write(f"output {info.name!r}", place, content)
            output["parameters"] = {**msgspec.to_builtins(place), "shared_memory_byte_size": info.size}
        elif info.name in request.binary:
            output["parameters"] = {"binary_data_size": info.size}
            binary.append(content)
        else:
            output["data"] = _to_json(info, content)
        rendered.append(output)
    answer: dict[str, Any] = {
        "model_name": manifest.model,
        "model_version": manifest.version,
        "parameters": {"covey_build": build, "covey_target": manifest.target},
        "outputs": rendered,
    }
    if request.id:
        answer["id"] = request.id
    header = msgspec.json.encode(answer)
    return [header, *binary], len(header) if request.binary else None


def _to_json(info: TensorInfo, content: memoryview) -> list[Any]:
    datatype = DataType(info.datatype)
    values = unpack(content, datatype)
    if datatype.value.startswith("FP") and not all(map(math.isfinite, values)):
        raise ValueError(f"output {info.name!r} has infinite elements, which JSON cannot say; ask for binary_data")
    return values
