"""TensorRT-RTX builds engines without a GPU, which makes it the check that a graph is fit for TensorRT.

Running an engine takes a GPU. What was not run was not compared with its source, and nothing that was not compared ships: the
outcome is "checked", and its reason says for which GPUs the graph is fit. No engine leaves the build process.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from covey_contract.manifest import Runtime, check_target
from covey_converters.backend import Built, Session, Source
from covey_converters.backends.tensorrt_engine import plan, serialised
from covey_converters.backends.tensorrt_graphs import explicit_qdq, typed_half
from covey_converters.errors import RecipeError, UnsupportedError, UnverifiableError
from covey_converters.samples import Samples

# The GPUs that TensorRT-RTX builds for with none at hand: Turing, Ampere (A100), Ampere, Ada, Blackwell.
CHECKED_SMS = ("75", "80", "86", "89", "120")


class TensorRtRtxBackend:
    """`tensorrt-rtx-fp32`, `-fp16`, `-int8`: built, and only checked as long as it cannot be run where it was built."""

    runtime = Runtime.TENSORRT_RTX
    module = "tensorrt_rtx"
    packages = ("tensorrt-rtx", "onnx", "onnxslim")

    def recipes(self, precision: str, *, calibrated: bool) -> tuple[str, ...]:
        if precision == "int8" and not calibrated:
            raise UnsupportedError("tensorrt-rtx-int8 needs calibration data (--calibration FILE.npz)")
        return (f"TensorRT-RTX engine, {precision}",)

    def build(self, source: Source, target: str, recipe: str, calibration: Samples | None, folder: Path) -> Built:
        del recipe, folder
        _, precision = check_target(target)
        source = source.alone()  # what is fit for one row is fit for several, by a profile
        graph = source.start
        if precision != "fp32":
            graph = typed_half(source) if precision == "fp16" else explicit_qdq(source, calibration)
        wanted = (target.rpartition("-sm")[2],) if "-sm" in target else CHECKED_SMS
        raise UnverifiableError(
            f"{check(graph, wanted)}; no engine was run, which takes an NVIDIA GPU, so none was compared with the source and "
            "none is released"
        )

    def open(self, built: Built, *, threads: int, reference: bool = False) -> Session:
        del built, threads, reference
        raise RecipeError("a TensorRT-RTX engine needs an NVIDIA GPU to run")


def check(graph: Path, sms: tuple[str, ...] = CHECKED_SMS) -> str:
    """Build the graph's engine for each kind of GPU and say, in words, for which it is fit.

    Raises `UnsupportedError` with TensorRT's first complaint if it is fit for none, or if TensorRT-RTX is not installed, and
    `RecipeError` if TensorRT-RTX itself does not work here.
    """
    fit: list[str] = []
    complaints: dict[str, str] = {}
    for sm in sms:
        engine, complaint = build_engine(graph, sm)
        if engine is None:
            complaints[sm] = complaint
        else:
            fit.append(sm)
    unfit = "; ".join(f"not for SM {sm}: {complaint}" for sm, complaint in complaints.items())
    if not fit:
        raise UnsupportedError(f"the graph is not fit for TensorRT (checked by TensorRT-RTX {version()}): {unfit}")
    return f"the graph is fit for TensorRT (TensorRT-RTX {version()} built engines for SM {', '.join(fit)}{'; ' + unfit if unfit else ''})"


def version() -> str:
    import tensorrt_rtx

    return str(tensorrt_rtx.__version__)


def build_engine(graph: Path, sm: str) -> tuple[bytes | None, str]:
    """The engine for one kind of GPU, or None and why not. Raises `UnsupportedError` if the parser refuses the graph."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise UnsupportedError("TensorRT-RTX is not installed here (pip install 'covey-converters[tensorrt-rtx]')")
    try:
        import tensorrt_rtx as tensorrt
    except (ImportError, OSError) as error:
        raise RecipeError(f"TensorRT-RTX is installed here but does not load: {str(error)[:300]}") from error
    capability = getattr(tensorrt.ComputeCapability, f"SM{sm}", None)
    if capability is None:
        raise UnsupportedError(f"TensorRT-RTX {version()} builds for SM {', '.join(CHECKED_SMS)}; not for {sm}")
    complaints: list[str] = []

    class Log(tensorrt.ILogger):  # type: ignore[misc]  # the bindings have no types
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (tensorrt.ILogger.ERROR, tensorrt.ILogger.INTERNAL_ERROR):
                complaints.append(message)

    logger = Log()

    def only_this(config: Any) -> None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(capability, 0)

    # Strongly typed, as TensorRT 11 is.
    how = plan(11, "fp32")
    engine = serialised(tensorrt, logger, how, lambda network: parse(tensorrt, network, logger, graph), only_this, None)
    return engine, _brief(complaints[0] if complaints else "no reason given") if engine is None else ""


def _brief(complaint: str) -> str:
    """`[file.cpp:12: check] Cannot compile operation 'x' …` is what a person needs of TensorRT's complaint."""
    return " ".join(complaint.rpartition("] ")[2].partition("). In ")[0].split(". In compileGraph")[0].split())[:200]


def parse(tensorrt: Any, network: Any, logger: Any, graph: Path) -> None:
    """The graph into TensorRT's network; the API is the same in TensorRT and TensorRT-RTX."""
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse(graph.read_bytes()):
        first = parser.get_error(0)
        # The oldest TensorRT that we build with tells of a node by its number alone.
        node = first.node_name() if hasattr(first, "node_name") else first.node()
        operator = f" ({first.node_operator()})" if hasattr(first, "node_operator") else ""
        raise UnsupportedError(f"TensorRT's parser refuses node {node!r}{operator}: {str(first.desc())[:300]}")
