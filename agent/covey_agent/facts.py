"""What this device is, measured: psutil, /proc, the device tree, DMI, os-release, package metadata; or, simulated, from a file.

No runtime is imported to find out that it is there: that costs seconds and hundreds of megabytes. What cannot be read is left out.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil

from covey_agent import __version__
from covey_agent.errors import UsageError
from covey_agent.timezone import zone_name
from covey_contract.errors import ContractError
from covey_contract.facts import Accelerator, Facts, RuntimeFact
from covey_contract.manifest import Runtime
from covey_contract.wire import decode

log = logging.getLogger(__name__)

# For each runtime the distributions that bring it, the preferred one first, with the module that is imported.
DISTRIBUTIONS: Mapping[Runtime, tuple[tuple[str, str], ...]] = {
    Runtime.ONNXRUNTIME: (
        ("onnxruntime", "onnxruntime"),
        ("onnxruntime-gpu", "onnxruntime"),
        ("onnxruntime-openvino", "onnxruntime"),
    ),
    Runtime.OPENVINO: (("openvino", "openvino"),),
    Runtime.TFLITE: (("ai-edge-litert", "ai_edge_litert"), ("tflite-runtime", "tflite_runtime")),
    Runtime.TENSORRT: (("tensorrt", "tensorrt"),),
    Runtime.TENSORRT_RTX: (("tensorrt-rtx", "tensorrt_rtx"),),
}
_FLAGS = frozenset(
    [
        "sse4_2",
        "avx",
        "avx2",
        "f16c",
        "fma",
        "avx512f",
        "avx512_vnni",
        "avx_vnni",
        "avx512_bf16",
        "amx_int8",
        "amx_bf16",
        "neon",
        "asimd",
        "asimdhp",
        "asimddp",
        "i8mm",
        "bf16",
        "sve",
    ]
)
_PCI_VENDORS = {"0x8086": "intel", "0x10de": "nvidia", "0x1002": "amd"}
_MAX_FILE = 1 << 20


def installed_runtimes() -> dict[str, str]:
    """The inference runtimes that can be imported on this machine, with their versions."""
    found: dict[str, str] = {}
    for runtime, choices in DISTRIBUTIONS.items():
        for distribution, module in choices:
            try:
                version = importlib.metadata.version(distribution)
            except importlib.metadata.PackageNotFoundError:
                continue
            if importlib.util.find_spec(module) is not None:
                found[str(runtime)] = version
                break
    return found


def read_facts(path: Path) -> Facts:
    """The facts of a simulated device; raises `UsageError` if the file is none."""
    try:
        with path.open("rb") as file:
            facts = decode(Facts, file.read(Facts.MAX_BYTES + 1))
    except OSError as error:
        raise UsageError(f"facts file {path}: {error.strerror}") from error
    except ContractError as error:
        raise UsageError(f"facts file {path}: {error}") from error
    return msgspec.structs.replace(facts, simulated=True, agent_version=__version__)


def measure_facts(state: Path) -> Facts:
    """The facts of this machine; `state` is on the disk whose free space counts."""
    cpu = _cpu()
    l4t = _l4t()
    runtimes = installed_runtimes()
    return Facts(
        architecture=platform.machine(),
        board=_board(),
        board_vendor=_text("/sys/class/dmi/id/sys_vendor"),
        cpu_model=cpu.get("model name") or cpu.get("Model") or cpu.get("Hardware", ""),
        cpu_cores=len(os.sched_getaffinity(0)),
        cpu_flags=tuple(sorted(_FLAGS & set((cpu.get("flags") or cpu.get("Features", "")).split()))),
        memory_mb=psutil.virtual_memory().total // 1_000_000,
        storage_free_mb=psutil.disk_usage(str(state)).free // 1_000_000,
        os=_os_release().get("PRETTY_NAME", ""),
        kernel=platform.release(),
        libc=" ".join(platform.libc_ver()).strip(),
        python=platform.python_version(),
        l4t=l4t,
        jetpack=_debian_version("nvidia-jetpack") if l4t else None,
        cuda=_cuda(),
        tensorrt=runtimes.get(str(Runtime.TENSORRT)) or _debian_version("tensorrt"),
        accelerators=_accelerators(l4t),
        runtimes=tuple(RuntimeFact(name=name, version=version) for name, version in sorted(runtimes.items())),
        agent_version=__version__,
        timezone=zone_name(),
    )


def _text(path: str) -> str:
    """A small file of the kernel's; empty if it is not there. Device-tree strings end in NUL."""
    try:
        with Path(path).open("rb") as file:
            return file.read(_MAX_FILE).decode("utf-8", "replace").strip("\0\n ")
    except OSError:
        return ""


def _cpu() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo, and those that stand once for all."""
    pairs: dict[str, str] = {}
    for line in _text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        pairs.setdefault(key.strip(), value.strip())
    return pairs


def _board() -> str:
    return _text("/proc/device-tree/model") or _text("/sys/class/dmi/id/product_name")


def _os_release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _l4t() -> str | None:
    match = re.search(r"# R(\d+) \(release\), REVISION: ([\d.]+)", _text("/etc/nv_tegra_release"))
    return f"{match[1]}.{match[2]}" if match else None


def _cuda() -> str | None:
    match = re.search(r'"cuda"\s*:\s*{[^}]*"version"\s*:\s*"([\d.]+)"', _text("/usr/local/cuda/version.json"))
    return match[1] if match else None


def _debian_version(package: str) -> str | None:
    if shutil.which("dpkg-query") is None:
        return None
    return _output("dpkg-query", "-W", "-f", "${Version}", package) or None


def _accelerators(l4t: str | None) -> tuple[Accelerator, ...]:
    found = list(_nvidia_gpus())
    for card in sorted(Path("/sys/class/drm").glob("card[0-9]*")):
        vendor = _PCI_VENDORS.get(_text(str(card / "device/vendor")))
        if "-" not in card.name and vendor in ("intel", "amd"):
            found.append(Accelerator(kind="gpu", vendor=vendor, name=_text(str(card / "device/device"))))
    for node in sorted(Path("/sys/class/accel").glob("accel[0-9]*")):
        vendor = _PCI_VENDORS.get(_text(str(node / "device/vendor")), "unknown")
        found.append(Accelerator(kind="npu", vendor=vendor, name=_text(str(node / "device/device"))))
    if l4t and not any(accelerator.vendor == "nvidia" for accelerator in found):
        found.append(Accelerator(kind="gpu", vendor="nvidia", name=_board(), compute_capability=_jetson_capability()))
    return tuple(found)


def _jetson_capability() -> str | None:
    """From the SoC's name in the device tree: Orin is 8.7, Xavier 7.2, TX2 6.2, Nano 5.3 (NVIDIA's CUDA GPU list)."""
    compatible = _text("/proc/device-tree/compatible")
    chips = {"tegra234": "8.7", "tegra194": "7.2", "tegra186": "6.2", "tegra210": "5.3"}
    return next((capability for chip, capability in chips.items() if chip in compatible), None)


def _nvidia_gpus() -> list[Accelerator]:
    if shutil.which("nvidia-smi") is None:
        return []
    rows = _output("nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits")
    gpus = []
    for row in rows.splitlines():
        name, memory, capability, *_ = [*(cell.strip() for cell in row.split(",")), "", "", ""]
        gpus.append(
            Accelerator(
                kind="gpu",
                vendor="nvidia",
                name=name,
                memory_mb=int(int(memory) * 1.048576) if memory.isdigit() else None,
                compute_capability=capability if re.fullmatch(r"\d+\.\d", capability) else None,
            )
        )
    return gpus


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s: %s", command[0], error)
        return ""
    return done.stdout.strip()[:_MAX_FILE] if done.returncode == 0 else ""
