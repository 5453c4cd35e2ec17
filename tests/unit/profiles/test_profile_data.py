"""The profiles that ship: every file is valid, and each finds the devices it is meant for."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import pytest

import covey_hil
from covey_contract.facts import Accelerator, Facts, RuntimeFact
from covey_contract.wire import decode
from covey_profiles import (
    ProfileError,
    load_profiles,
    match,
    memory_budget_mb,
    ranked_targets,
    read_profile,
    targets_for,
)
from covey_profiles.page import page

ORIN = Accelerator(kind="gpu", vendor="nvidia", name="Orin (nvgpu)", compute_capability="8.7")
CPU_ARM = (RuntimeFact(name="onnxruntime", version="1.31.1"), RuntimeFact(name="tflite", version="2.3.0"))
CPU_X86 = (RuntimeFact(name="onnxruntime", version="1.31.1"), RuntimeFact(name="openvino", version="2026.4.1"))
JETSON = (RuntimeFact(name="tensorrt", version="10.3.0"), RuntimeFact(name="onnxruntime", version="1.23.2"))

# Facts as such devices report them, and the targets worth building for them.
DEVICES: dict[str, tuple[Facts, tuple[str, ...]]] = {
    "raspberry-pi-5": (
        Facts(architecture="aarch64", board="Raspberry Pi 5 Model B Rev 1.0", memory_mb=8256, runtimes=CPU_ARM),
        ("tflite-int8", "onnxruntime-int8", "onnxruntime-fp32"),
    ),
    "raspberry-pi-4": (
        Facts(architecture="aarch64", board="Raspberry Pi 4 Model B Rev 1.5", memory_mb=4000, runtimes=CPU_ARM[1:]),
        ("tflite-int8",),
    ),
    "jetson-orin-nano": (
        Facts(
            architecture="aarch64",
            board="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
            accelerators=(ORIN,),
            runtimes=JETSON,
        ),
        ("tensorrt-int8-sm87", "tensorrt-fp16-sm87", "onnxruntime-int8", "onnxruntime-fp32"),
    ),
    "jetson-orin-nx": (
        Facts(
            architecture="aarch64",
            board="NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
            runtimes=JETSON[:1],
        ),
        ("tensorrt-int8-sm87", "tensorrt-fp16-sm87"),
    ),
    "jetson-agx-orin": (
        Facts(architecture="aarch64", board="NVIDIA Jetson AGX Orin Developer Kit", accelerators=(ORIN,)),
        (),
    ),
    "jetson-xavier-nx": (
        Facts(architecture="aarch64", board="NVIDIA Jetson Xavier NX Developer Kit", runtimes=JETSON[:1]),
        ("tensorrt-int8-sm72", "tensorrt-fp16-sm72"),
    ),
    "intel-n100": (
        Facts(architecture="x86_64", board="EQ12", cpu_model="Intel(R) N100", runtimes=CPU_X86),
        ("openvino-int8", "onnxruntime-int8", "openvino-fp16", "onnxruntime-fp32"),
    ),
    "intel-core-ultra": (
        Facts(
            architecture="x86_64",
            board="NUC14RVH",
            cpu_model="Intel(R) Core(TM) Ultra 7 155H",
            accelerators=(Accelerator(kind="npu", vendor="intel", name="0x7d1d"),),
            runtimes=CPU_X86,
        ),
        ("openvino-int8", "openvino-fp16", "onnxruntime-int8", "onnxruntime-fp32"),
    ),
    "nxp-imx8mp": (
        Facts(architecture="aarch64", board="NXP i.MX8MPlus EVK board", runtimes=CPU_ARM),
        ("tflite-int8", "onnxruntime-int8", "onnxruntime-fp32"),
    ),
    "rtx-pc": (
        Facts(
            architecture="x86_64",
            cpu_model="AMD Ryzen 7 7700X 8-Core Processor",
            accelerators=(
                Accelerator(kind="gpu", vendor="nvidia", name="NVIDIA GeForce RTX 4060", compute_capability="8.9"),
            ),
            runtimes=(RuntimeFact(name="tensorrt-rtx", version="1.7.1"), *CPU_X86),
        ),
        ("tensorrt-rtx-fp16-sm89", "openvino-int8", "onnxruntime-int8", "openvino-fp16", "onnxruntime-fp32"),
    ),
    "jetson-thor": (
        Facts(
            architecture="aarch64",
            board="NVIDIA Jetson AGX Thor Developer Kit",
            memory_mb=131_880,
            l4t="38.2.1",
            accelerators=(Accelerator(kind="gpu", vendor="nvidia", name="NVIDIA Thor", compute_capability="11.0"),),
            runtimes=(
                RuntimeFact(name="tensorrt", version="10.13.3"),
                RuntimeFact(name="onnxruntime", version="1.31.1"),
            ),
        ),
        ("tensorrt-int8-sm110", "tensorrt-fp16-sm110", "onnxruntime-int8", "onnxruntime-fp32"),
    ),
    "intel-atom-x7000": (
        Facts(architecture="x86_64", board="UPS-ADLN01", cpu_model="Intel Atom(R) x7425E", runtimes=CPU_X86),
        ("openvino-int8", "onnxruntime-int8", "openvino-fp16", "onnxruntime-fp32"),
    ),
    "intel-xeon-d": (
        Facts(architecture="x86_64", cpu_model="Intel(R) Xeon(R) D-2775TE CPU @ 2.00GHz", runtimes=CPU_X86),
        ("openvino-int8", "onnxruntime-int8", "openvino-fp16", "onnxruntime-fp32"),
    ),
    "intel-arc": (
        Facts(
            architecture="x86_64",
            cpu_model="Intel(R) Core(TM) Ultra 7 265K",
            accelerators=(
                Accelerator(kind="npu", vendor="intel", name="0xad1d"),
                Accelerator(kind="gpu", vendor="intel", name="0x7d67"),
                Accelerator(kind="gpu", vendor="intel", name="0xe20b"),
            ),
            runtimes=CPU_X86,
        ),
        ("openvino-int8", "openvino-fp16", "onnxruntime-int8", "onnxruntime-fp32"),
    ),
    "raspberry-pi-zero-2-w": (
        Facts(architecture="aarch64", board="Raspberry Pi Zero 2 W Rev 1.0", memory_mb=436, runtimes=CPU_ARM),
        ("tflite-int8", "onnxruntime-int8", "onnxruntime-fp32"),
    ),
    "rockchip-rk3588": (
        Facts(architecture="aarch64", board="FriendlyElec NanoPC-T6", runtimes=CPU_ARM),
        ("tflite-int8", "onnxruntime-int8", "onnxruntime-fp32"),
    ),
    "ti-am68a": (
        Facts(architecture="aarch64", board="Texas Instruments AM68 SK", runtimes=CPU_ARM[1:]),
        ("tflite-int8",),
    ),
    "ti-am62a": (
        Facts(architecture="aarch64", board="Texas Instruments AM62A7 SK", runtimes=CPU_ARM[:1]),
        ("onnxruntime-int8", "onnxruntime-fp32"),
    ),
    "generic-x86-64": (
        Facts(architecture="x86_64", board="PowerEdge R650", cpu_model="Intel(R) Xeon(R) Gold 6330", runtimes=CPU_X86),
        ("onnxruntime-int8", "openvino-int8", "openvino-fp16", "onnxruntime-fp32"),
    ),
    "generic-arm64": (
        Facts(architecture="aarch64", board="Hardkernel ODROID-N2Plus", runtimes=CPU_ARM),
        ("tflite-int8", "onnxruntime-int8", "onnxruntime-fp32"),
    ),
}


# Kinds of device that resemble one with a profile of its own, and what they have: another, or none.
RELATIVES: list[tuple[Facts, str | None]] = [
    (Facts(architecture="armv6l", board="Raspberry Pi Zero W Rev 1.1"), None),
    (Facts(architecture="armv7l", board="Raspberry Pi Zero 2 W Rev 1.0"), None),
    (Facts(architecture="aarch64", board="Raspberry Pi 3 Model B Plus Rev 1.3"), "generic-arm64"),
    (Facts(architecture="aarch64", board="Raspberry Pi 500 Rev 1.0"), "raspberry-pi-5"),
    (Facts(architecture="aarch64", board="Raspberry Pi Compute Module 4S Rev 1.0"), "raspberry-pi-4"),
    (Facts(architecture="aarch64", board="Raspberry Pi Compute Module 5 Rev 1.0"), "raspberry-pi-5"),
    (Facts(architecture="aarch64", board="NVIDIA Jetson AGX Xavier Developer Kit"), "generic-arm64"),
    (Facts(architecture="aarch64", board="Texas Instruments AM625 SK"), "generic-arm64"),
    (Facts(architecture="aarch64", board="Texas Instruments AM69 SK"), "generic-arm64"),
    (Facts(architecture="aarch64", board="NXP i.MX8MQ EVK"), "generic-arm64"),
    (Facts(architecture="aarch64", board="Radxa ROCK 3A"), "generic-arm64"),
    (Facts(architecture="x86_64", cpu_model="Intel(R) Xeon(R) CPU D-1541 @ 2.10GHz"), "generic-x86-64"),
    (Facts(architecture="x86_64", cpu_model="Intel(R) Xeon(R) D-2146NT CPU @ 2.30GHz"), "generic-x86-64"),
    (Facts(architecture="x86_64", cpu_model="Intel(R) Atom(TM) x7-Z8750 CPU @ 1.60GHz"), "generic-x86-64"),
    (Facts(architecture="x86_64", cpu_model="Intel(R) Celeron(R) N5105 @ 2.00GHz"), "generic-x86-64"),
    (Facts(architecture="x86_64", cpu_model="Intel(R) Core(TM) Ultra 7 155H"), "generic-x86-64"),
    (
        Facts(
            architecture="x86_64",
            cpu_model="Intel(R) Core(TM) Ultra 7 258V",
            accelerators=(
                Accelerator(kind="gpu", vendor="intel", name="Intel(R) Arc(TM) Graphics 140V"),
                Accelerator(kind="npu", vendor="intel", name="0x643e"),
            ),
        ),
        "intel-core-ultra",
    ),
    (
        Facts(architecture="x86_64", accelerators=(Accelerator(kind="gpu", vendor="nvidia", name="Tesla V100"),)),
        "generic-x86-64",
    ),
]


def test_the_table_knows_the_profiles_that_ship() -> None:
    assert set(DEVICES) <= set(load_profiles())
    assert len(DEVICES) >= 18


@pytest.mark.parametrize("profile", sorted(load_profiles()))
def test_the_examples_of_a_profile_find_it_and_nothing_ties_behind_it(profile: str) -> None:
    """All that a new file has to pass: `read_profile` checked it alone, here it stands among the others."""
    for facts in load_profiles()[profile].examples:
        profiles = load_profiles()
        found = match(facts, profiles)
        assert found.profile is not None, found.reason
        assert found.profile.id == profile
        while (found := match(facts, profiles)).profile is not None:
            del profiles[found.profile.id]
        assert found.reason.startswith("no profile matches")


@pytest.mark.parametrize(("facts", "profile"), RELATIVES, ids=lambda it: it if isinstance(it, str) else None)
def test_relatives_are_not_taken_for_one_another(facts: Facts, profile: str | None) -> None:
    found = match(facts, load_profiles())
    assert (found.profile.id if found.profile else None) == profile, found.reason


def test_the_page_tells_everything_that_is_in_the_files() -> None:
    shown = page(load_profiles())
    for profile in load_profiles().values():
        assert f"| `{profile.id}`<br>" in shown
        assert all(f"{source.page}; {source.date}" in shown for source in profile.sources)
    assert len({line.count(" | ") for line in shown.splitlines() if line.startswith("| `")}) == 1


@pytest.mark.parametrize("profile", DEVICES)
def test_each_kind_of_device_finds_its_profile(profile: str) -> None:
    facts, targets = DEVICES[profile]
    found = match(facts, load_profiles())
    assert found.profile is not None, found.reason
    assert found.profile.id == profile
    assert targets_for(found.profile, facts) == targets
    assert set(targets) <= set(ranked_targets(found.profile, facts))


@pytest.mark.parametrize("profile", DEVICES)
def test_no_two_profiles_match_alike(profile: str) -> None:
    """Without the winner the next best one is just as clear: no tie hides behind it."""
    facts, _ = DEVICES[profile]
    profiles = load_profiles()
    while (found := match(facts, profiles)).profile is not None:
        del profiles[found.profile.id]
    assert found.reason.startswith("no profile matches")


@pytest.mark.parametrize("profile", sorted(load_profiles()))
def test_every_profile_can_fall_back_to_onnx_runtime(profile: str) -> None:
    assert {"onnxruntime-int8", "onnxruntime-fp32"} <= set(load_profiles()[profile].targets)


def test_a_more_specific_board_says_what_it_was_preferred_to() -> None:
    found = match(DEVICES["raspberry-pi-5"][0], load_profiles())
    assert "Raspberry Pi 5 Model B" in found.reason
    assert "more specific than generic-arm64" in found.reason


def test_an_unknown_device_is_refused_with_what_it_said() -> None:
    found = match(Facts(architecture="riscv64", board="VisionFive 2"), load_profiles())
    assert found.profile is None
    assert "riscv64" in found.reason
    assert "VisionFive 2" in found.reason


def test_a_tie_matches_nothing() -> None:
    profiles = load_profiles()
    text = _text("generic-arm64").replace('id = "generic-arm64"', 'id = "generic-other"')
    profiles["generic-other"] = read_profile("generic-other.toml", text)
    found = match(DEVICES["generic-arm64"][0], profiles)
    assert found.profile is None
    assert "generic-arm64 and generic-other match alike" in found.reason


def test_a_gpu_that_does_not_tell_its_kind_gets_no_engine() -> None:
    facts = Facts(
        architecture="x86_64",
        accelerators=(Accelerator(kind="gpu", vendor="nvidia", name="NVIDIA RTX A2000"),),
        runtimes=(RuntimeFact(name="tensorrt-rtx", version="1.7.1"),),
    )
    profile = load_profiles()["rtx-pc"]
    assert match(facts, load_profiles()).profile == profile
    assert targets_for(profile, facts) == ()


def test_memory_budget_is_a_share_and_has_a_limit() -> None:
    profile = load_profiles()["raspberry-pi-5"]
    assert memory_budget_mb(profile, Facts(architecture="aarch64", memory_mb=2000)) == pytest.approx(700)
    assert memory_budget_mb(profile, Facts(architecture="aarch64", memory_mb=64_000)) == 5600
    assert memory_budget_mb(profile, Facts(architecture="aarch64")) == 5600


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('title = "Raspberry Pi 5"', "", "raspberry-pi-5.toml: title: missing"),
        ("priority = 100", 'priority = "high"', "raspberry-pi-5.toml: match.priority: Expected `int`, got `str`"),
        ("[memory]", "[memory]\nspare = 1", "raspberry-pi-5.toml: memory.spare: there is no such field"),
        ('swap = "side-by-side"', 'swap = "twice"', "raspberry-pi-5.toml: swap: Invalid enum value 'twice'"),
        ('"tflite-int8"', '"tflite-int7"', "targets: 'tflite-int7' is not a target"),
        ('"tflite-int8"', '"tensorrt-fp16-sm87"', "names its GPU"),
        ('"tflite-int8"', '"onnxruntime-int8"', "targets: one is ranked twice"),
        ("board = '", "board = '(", "board: not a regular expression"),
        ('["precision"]', '["memory"]', "sources: none for precision"),
        ('["thermal"]', '["memory"]', "sources: none for thermal"),
        ('board = "Raspberry Pi 5 Model B Rev 1.0"', 'board = "Banana Pi"', "examples[0]: does not match this profile"),
        ("cpu_cores = 4", "cores = 4", "examples[0].cores: there is no such field"),
        ("[[examples]]", "[[sample]]", "raspberry-pi-5.toml: sample: there is no such field"),
        ("throttle_c = 80", "throttle_c = 90", "lies below throttle_c"),
        ('id = "raspberry-pi-5"', 'id = "raspberry"', "belongs in a file raspberry.toml"),
        ("title =", "title", "raspberry-pi-5.toml: Expected '='"),
    ],
)
def test_a_broken_file_is_refused_by_file_and_field(old: str, new: str, complaint: str) -> None:
    text = _text("raspberry-pi-5")
    assert old in text
    with pytest.raises(ProfileError) as error:
        read_profile("raspberry-pi-5.toml", text.replace(old, new, 1))
    assert str(error.value).startswith("raspberry-pi-5.toml: ")
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("raspberry-pi-5", ("tflite-int8", "onnxruntime-int8", "onnxruntime-fp32")),
        ("jetson-orin-nano", ("tensorrt-int8-sm87", "tensorrt-fp16-sm87", "onnxruntime-int8", "onnxruntime-fp32")),
        ("intel-n100", ("openvino-int8", "onnxruntime-int8", "openvino-fp16", "onnxruntime-fp32")),
    ],
)
def test_the_simulated_devices_say_so_and_match(name: str, targets: tuple[str, ...]) -> None:
    facts = decode(Facts, (Path(covey_hil.__file__).parent / "facts" / f"{name}.json").read_bytes())
    assert facts.simulated
    found = match(facts, load_profiles())
    assert found.profile is not None
    assert found.profile.id == name
    assert targets_for(found.profile, facts) == targets


def _text(profile: str) -> str:
    return importlib.resources.files("covey_profiles").joinpath("data", f"{profile}.toml").read_text("utf-8")
