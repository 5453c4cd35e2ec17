"""What a device reports of itself: measured by the agent, or read from a file for a simulated device."""

from __future__ import annotations

import hashlib

import msgspec

from covey_contract.wire import Message


class Accelerator(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A GPU, NPU or TPU that some runtime can use."""

    kind: str  # "gpu", "npu", "tpu"
    vendor: str  # "nvidia", "intel", …
    name: str = ""
    memory_mb: int | None = None
    compute_capability: str | None = None  # NVIDIA's SM as "8.7"


class RuntimeFact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An inference runtime installed on the device."""

    name: str  # one of `covey_contract.manifest.Runtime`
    version: str
    devices: tuple[str, ...] = ()  # execution providers or device names it offers, e.g. ("CPU", "GPU.0", "NPU")


class Facts(Message, frozen=True, kw_only=True, omit_defaults=True):
    """All that profile matching, build selection and the operator may want to know of a device.

    Sizes are in MB (10^6 bytes). `simulated` is set where the facts come from a file instead of the machine itself;
    every view of such a device says so.
    """

    MAX_BYTES = 32 * 1024

    architecture: str  # as `uname -m` says: "x86_64", "aarch64", "armv7l"
    board: str = ""  # device-tree or DMI product name: "Raspberry Pi 5 Model B Rev 1.0"
    board_vendor: str = ""
    cpu_model: str = ""
    cpu_cores: int = 1
    cpu_flags: tuple[
        str, ...
    ] = ()  # those that matter to runtimes: avx2, avx512f, avx512_vnni, amx_int8, asimddp, i8mm …
    memory_mb: int = 0
    storage_free_mb: int = 0
    os: str = ""  # PRETTY_NAME of os-release
    kernel: str = ""
    libc: str = ""  # "glibc 2.36"
    python: str = ""
    jetpack: str | None = None
    l4t: str | None = None
    cuda: str | None = None
    tensorrt: str | None = None
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: tuple[RuntimeFact, ...] = ()
    agent_version: str = ""
    timezone: str = "UTC"
    simulated: bool = False

    def digest(self) -> str:
        """SHA-256 in hex over the facts' JSON; free storage changes all the time and does not count."""
        stable = msgspec.structs.replace(self, storage_free_mb=0)
        return hashlib.sha256(msgspec.json.encode(stable)).hexdigest()
