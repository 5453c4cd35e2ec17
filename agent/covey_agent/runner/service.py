"""A runner's life: load, warm up, check, say ready; then answer inferences until the socket closes.

The main thread serves and stays at normal priority; loading happens in a thread of its own, at idle priority where a build
serves beside it. The runner never outlives its gateway: it ends when the socket closes, even in the middle of loading.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from covey_agent.runner import priority
from covey_agent.runner.arena import Arena
from covey_agent.runner.backends import BACKENDS, Model, load_model
from covey_agent.runner.counting import Counter
from covey_agent.runner.errors import BadOutputError, LoadError
from covey_agent.runner.frames import Frames, GatewayGone
from covey_agent.runner.golden import mismatch, read_golden
from covey_agent.runner.protocol import (
    Error,
    ErrorKind,
    Failed,
    FrameError,
    FromRunner,
    Infer,
    Ready,
    Result,
    Start,
    TensorInfo,
    encode_frame,
    split_payload,
)
from covey_agent.runner.tensors import Array, BuildInputs, CallerOutputs, example_inputs, from_wire
from covey_contract.building import MANIFEST_FILE
from covey_contract.errors import DecodeError
from covey_contract.manifest import Manifest
from covey_contract.reasons import Reason
from covey_contract.wire import decode

WARM_UP_RUNS = 3
MAX_DETAIL = 1000


class LoadedBuild:
    """A build that can be asked in its callers' terms."""

    def __init__(self, manifest: Manifest, model: Model) -> None:
        self.manifest = manifest
        self.counter = Counter(manifest.reference)
        self._model = model
        self._inputs = BuildInputs(manifest.inputs)
        self._outputs = CallerOutputs(manifest.outputs)
        self._types = {spec.name: spec.datatype.value for spec in manifest.outputs}
        self._told: dict[str, TensorInfo] = {}  # of each output, as it was told last

    def infer(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Callers' tensors in and out; raises `BadOutputError`, and what the runtime raises."""
        return self._outputs.of(self._model.run(self._inputs.of(inputs)))

    def info(self, name: str, array: Array) -> TensorInfo:
        """What is told of an output."""
        told = self._told.get(name)
        if told is None or told.shape != array.shape:
            told = self._told[name] = TensorInfo(name, self._types[name], array.shape, array.nbytes)
        return told


@dataclass(frozen=True)
class Laid:
    """Inputs that lie in shared memory, as arrays. The next request's are the same arrays, if they look the same and lie in the same place."""

    inputs: tuple[TensorInfo, ...]
    data: memoryview
    arrays: dict[str, Array]


def load_build(folder: Path, start: Start) -> tuple[LoadedBuild, Ready]:
    """Load, warm up and check the build in `folder`; raises `LoadError` with the reason."""
    manifest = read_manifest(folder)
    began = time.perf_counter()
    try:
        build = LoadedBuild(manifest, load_model(folder, manifest, start.threads))
    except LoadError:
        raise
    except MemoryError as error:
        raise LoadError(Reason.NO_MEMORY, "there is not enough memory to load the build") from error
    except Exception as error:  # noqa: BLE001  # the seam to the runtimes, which raise what they like; reported to control
        raise LoadError(Reason.LOAD_FAILED, f"{manifest.runtime}: {_describe(error)}") from error
    loaded = time.perf_counter()
    first_s = _prove(build, folder, check_golden=start.check_golden)
    return build, Ready(load_ms=(loaded - began) * 1e3, first_ms=first_s * 1e3)


def read_manifest(folder: Path) -> Manifest:
    try:
        return decode(Manifest, (folder / MANIFEST_FILE).read_bytes())
    except (OSError, DecodeError) as error:
        raise LoadError(Reason.LOAD_FAILED, f"the build's manifest cannot be read: {error}") from error


def _prove(build: LoadedBuild, folder: Path, *, check_golden: bool) -> float:
    """Warm the build up and compare it with its golden vectors; returns how long the first inference took, in seconds."""
    manifest = build.manifest
    golden = read_golden(folder / manifest.golden, manifest) if manifest.golden else []
    inputs = golden[0][0] if golden else example_inputs(manifest.inputs)
    try:
        began = time.perf_counter()
        build.infer(inputs)
        first_s = time.perf_counter() - began
        for _ in range(WARM_UP_RUNS):
            build.infer(inputs)
        for sample, wanted in golden if check_golden else []:
            if problem := mismatch(wanted, build.infer(sample), manifest.tolerance):
                raise LoadError(Reason.GOLDEN_MISMATCH, problem)
    except LoadError:
        raise
    except BadOutputError as error:
        raise LoadError(Reason.GOLDEN_MISMATCH, str(error)) from error
    except Exception as error:  # noqa: BLE001  # the seam to the runtimes; reported to control
        raise LoadError(Reason.LOAD_FAILED, f"the first inference failed: {_describe(error)}") from error
    return first_s


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_DETAIL]


class RunnerService:
    """Serves one gateway over `sock`, which must be blocking. `arena` holds larger inputs."""

    def __init__(self, sock: socket.socket, folder: Path, arena: Arena | None = None) -> None:
        self._socket = sock
        self._folder = folder
        self._arena = arena
        self._frames = Frames(sock)
        self._laid: Laid | None = None

    def run(self) -> int:
        """Until the gateway closes the socket; returns the exit code."""
        try:
            start, _ = self._frames.next()
            if not isinstance(start, Start):
                raise FrameError("the first frame must be Start")
            build = self._load(start)
            if build is None:
                return 1
            while True:
                request, payload = self._frames.next()
                if not isinstance(request, Infer):
                    raise FrameError("a second Start")
                self._answer(build, request, payload)
        except GatewayGone:
            return 0

    def _load(self, start: Start) -> LoadedBuild | None:
        """Load in a thread, beside which this one notices when the gateway goes away."""
        outcome: list[tuple[LoadedBuild, Ready] | LoadError] = []
        done, finished = os.pipe()

        def load() -> None:
            try:
                if start.background and self._may_idle():
                    priority.make_idle()
                loaded = load_build(self._folder, start)
                # What was loaded stays for life; the collector need not look at it again.
                gc.collect()
                gc.freeze()
                outcome.append(loaded)
            except LoadError as error:
                outcome.append(error)
            finally:
                os.close(finished)

        threading.Thread(target=load, name="load", daemon=True).start()
        while True:
            readable, _, _ = select.select([self._socket.fileno(), done], [], [])
            if done in readable:
                break
            # Nothing may be said to a runner that loads: what is readable is the end of the socket.
            raise GatewayGone
        os.close(done)
        if start.background:
            priority.restore()
        result = outcome[0] if outcome else LoadError(Reason.INTERNAL, "the runner failed while it loaded; see its log")
        if isinstance(result, LoadError):
            self._send(Failed(result.reason, str(result)))
            return None
        build, ready = result
        self._send(ready)
        return build

    def _may_idle(self) -> bool:
        runtime = read_manifest(self._folder).runtime
        return not BACKENDS[runtime].own_threads or priority.may_return()

    def _answer(self, build: LoadedBuild, request: Infer, payload: memoryview) -> None:
        data = self._shared(request) if request.shared else payload
        began = time.perf_counter()
        try:
            inputs = self._arrays(request, data)
            outputs = build.infer(inputs)
        except BadOutputError as error:
            self._send(Error(request.id, ErrorKind.BAD_OUTPUT, str(error)))
            return
        except Exception as error:  # noqa: BLE001  # the seam to the runtimes; the gateway answers with it
            self._send(Error(request.id, ErrorKind.FAILED, _describe(error)))
            return
        compute_s = time.perf_counter() - began
        wanted = [outputs[name] for name in request.outputs]
        infos = tuple(map(build.info, request.outputs, wanted))
        counter = build.counter
        self._send(
            Result(request.id, compute_s, infos, counter.outputs(outputs), counter.inputs(inputs)),
            [array.data for array in wanted],
        )

    def _arrays(self, request: Infer, data: memoryview) -> dict[str, Array]:
        laid = self._laid
        if laid is not None and data is laid.data and request.inputs == laid.inputs:
            return laid.arrays
        parts = split_payload(request.inputs, data)
        arrays = {info.name: from_wire(info, part) for info, part in zip(request.inputs, parts, strict=True)}
        if request.shared:
            self._laid = Laid(request.inputs, data, arrays)
        return arrays

    def _send(self, message: FromRunner, tensors: list[memoryview] | None = None) -> None:
        try:
            self._socket.sendall(encode_frame(message, tensors or ()))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise GatewayGone from error

    def _shared(self, request: Infer) -> memoryview:
        if self._arena is None:
            raise FrameError("inputs were laid in shared memory, of which there is none")
        return self._arena.view(sum([info.size for info in request.inputs]))
