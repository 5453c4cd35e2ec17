"""How an engine is asked for, by TensorRT's version; what an engine is tied to; and the timings that are kept from one build to the next.

Sources: NVIDIA's "Migrating from TensorRT 8.x to 10.x" and "… 10.x to 11.x", "Optimizing Builder Performance" (timing cache). The pure
part of the TensorRT backend: the module that it is handed is TensorRT's, or TensorRT-RTX's, whose interface is the same.

    >>> plan(8, "fp16")
    EnginePlan(explicit_batch=True, typed='fp32', flags=('FP16', 'SPARSE_WEIGHTS'))
    >>> plan(11, "fp16")
    EnginePlan(explicit_batch=False, typed='fp16', flags=('SPARSE_WEIGHTS',))
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

WORKSPACE_BYTES = 1 << 30
_L4T_RELEASE = Path("/etc/nv_tegra_release")

Typed = Literal["fp32", "fp16", "int8"]
Shape = tuple[int, ...]
# By input: the smallest shape that an engine takes, the one that it is tuned for, and the largest.
Profile = Mapping[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class EnginePlan:
    """`typed`: what the graph itself must be; `flags`: names of BuilderFlag, set where that TensorRT still has them."""

    explicit_batch: bool
    typed: Typed
    flags: tuple[str, ...]


def plan(major: int, precision: str) -> EnginePlan:
    """TensorRT 8 must be told that the batch is explicit; 8 and 10 choose FP16 kernels by a flag and want one for INT8 beside the graph's
    QDQ; 11 has no such flags and takes the graph's types. Weights that are 2:4 sparse are used as such by all of them."""
    if precision not in {"fp32", "fp16", "int8"}:
        raise ValueError(f"no plan for precision {precision!r}")
    weak = major < 11
    typed: Typed = "int8" if precision == "int8" else "fp16" if precision == "fp16" and not weak else "fp32"
    flags = {"fp16": ("FP16",), "int8": ("INT8",)}.get(precision, ()) if weak else ()
    return EnginePlan(explicit_batch=major < 10, typed=typed, flags=(*flags, "SPARSE_WEIGHTS"))


def profile(shapes: Mapping[str, Shape], max_batch: int) -> Profile:
    """For inputs of these shapes, each of one row, of which up to so many may come; empty for one. Tuned for one row: most requests come alone.

    >>> profile({"image": (1, 3, 8, 8)}, 4)
    {'image': ((1, 3, 8, 8), (1, 3, 8, 8), (4, 3, 8, 8))}
    """
    if max_batch <= 1:
        return {}
    return {name: (shape, shape, (max_batch, *shape[1:])) for name, shape in shapes.items()}


@dataclass(frozen=True)
class Platform:
    """What an engine is tied to, beside the model: it loads with exactly these."""

    compute_capability: str  # "8.7"
    tensorrt: str  # "10.3.0"
    l4t: str  # release of Jetson Linux, which stands for JetPack; "" elsewhere


def engine_key(graph_sha256: str, precision: str, shapes: Mapping[str, Shape], platform: Platform) -> str:
    """Two builds with the same key would be the same engine: model, precision, shapes, SM, TensorRT and JetPack. The digest is that of
    the graph as TensorRT is given it, with the ranges of its calibration in it."""
    parts = (
        graph_sha256,
        precision,
        sorted((name, list(shape)) for name, shape in shapes.items()),
        platform.compute_capability,
        platform.tensorrt,
        platform.l4t,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def timing_cache(folder: Path, platform: Platform) -> Path:
    """Where measured kernels of a platform lie; they are of use to every model built there, and to no other platform."""
    name = f"{platform.compute_capability}-{platform.tensorrt}-{platform.l4t or 'no-l4t'}"
    return folder / f"tensorrt-timing-{re.sub(r'[^A-Za-z0-9.-]', '_', name)}.cache"


def l4t_release(path: Path = _L4T_RELEASE) -> str:
    """`# R36 (release), REVISION: 4.3, …` of a Jetson is 36.4.3; "" on other machines."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else ""


def serialised(
    tensorrt: Any,
    logger: Any,
    how: EnginePlan,
    parse: Callable[[Any], None],
    configure: Callable[[Any], None],
    cache: Path | None,
    ranges: Profile | None = None,
) -> bytes | None:
    """The engine, or None if TensorRT cannot build it. `parse` fills the network, `configure` sets what one TensorRT alone has; `cache`
    is read if it is there and fits, and written again with what this build has timed; `ranges` are those of inputs whose batch is open."""
    builder = tensorrt.Builder(logger)
    flags = 1 << int(tensorrt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH) if how.explicit_batch else 0
    network = builder.create_network(flags)
    parse(network)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, WORKSPACE_BYTES)
    for name in how.flags:
        if hasattr(tensorrt.BuilderFlag, name):
            config.set_flag(getattr(tensorrt.BuilderFlag, name))
    if ranges:
        shapes = builder.create_optimization_profile()
        for name, (smallest, usual, largest) in ranges.items():
            shapes.set_shape(name, smallest, usual, largest)
        config.add_optimization_profile(shapes)
    configure(config)
    if cache is not None:
        timings = config.create_timing_cache(cache.read_bytes() if cache.exists() else b"")
        # A cache of another device or version is not taken, and the build goes on without.
        config.set_timing_cache(timings, False)  # noqa: FBT003  # TensorRT's own signature
    engine = builder.build_serialized_network(network, config)
    if engine is not None and cache is not None and (timed := config.get_timing_cache()) is not None:
        partial = cache.with_suffix(".partial")
        partial.write_bytes(bytes(timed.serialize()))
        partial.replace(cache)
    return None if engine is None else bytes(engine)
