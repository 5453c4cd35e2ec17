"""Which build a device gets: the reasons one by one, and against an oracle that tries everything."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_contract.building import Accuracy, BuildReport, Latency, Outcome
from covey_contract.facts import Accelerator, Facts, RuntimeFact
from covey_contract.manifest import FileEntry, Manifest, Runtime
from covey_profiles import OBJECTIVES, Candidate, Choice, Objective, Profile, load_profiles, select
from covey_profiles.figures import apart
from covey_profiles.schema import Memory

PI = load_profiles()["raspberry-pi-5"]
ORIN = load_profiles()["jetson-orin-nano"]
PI_FACTS = Facts(
    architecture="aarch64",
    board="Raspberry Pi 5 Model B Rev 1.0",
    memory_mb=8256,
    runtimes=(RuntimeFact(name="onnxruntime", version="1.31.1"), RuntimeFact(name="tflite", version="2.3.0")),
)
ORIN_FACTS = Facts(
    architecture="aarch64",
    board="NVIDIA Jetson Orin Nano Developer Kit",
    memory_mb=7990,
    accelerators=(Accelerator(kind="gpu", vendor="nvidia", compute_capability="8.7"),),
    runtimes=(RuntimeFact(name="tensorrt", version="10.3.0"), RuntimeFact(name="onnxruntime", version="1.23.2")),
)


def built(target: str, **fields: object) -> Candidate:
    number = sum(map(ord, target))
    return replace(Candidate(id=number, target=target, state="built", size=100_000), **fields)  # type: ignore[arg-type]


def speed(p50_ms: float, machine: str = "builder", profile: str | None = None) -> Latency:
    return Latency(
        p50_ms=p50_ms, p99_ms=p50_ms, load_ms=1, first_ms=1, peak_rss_mb=50, machine=machine, profile=profile
    )


def quality(build: float, *, source: float = 0.99, budget: float = 0.5, samples: int = 450) -> Accuracy:
    return Accuracy(metric="top1", source=source, build=build, samples=samples, budget=budget)


def test_the_best_ranked_build_that_fits_is_chosen_and_every_other_told_why() -> None:
    choice = select(
        PI,
        PI_FACTS,
        [
            built("onnxruntime-fp32"),
            built("tflite-int8"),
            built("openvino-int8"),
            Candidate(9, "tensorrt-fp16-sm87", "queued", waiting_for="waiting for a builder of that kind"),
        ],
    )
    assert choice.chosen is not None
    assert choice.chosen.target == "tflite-int8"
    assert choice.reason == "ranked highest for raspberry-pi-5"
    assert choice.lost == {
        "onnxruntime-fp32": "ranked lower: tflite-int8 before onnxruntime-fp32",
        "openvino-int8": "not for this kind of device: raspberry-pi-5 does not rank openvino-int8",
        "tensorrt-fp16-sm87": "wrong SM: built for 8.7, this device tells of no NVIDIA GPU",
    }


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (built("tensorrt-fp16-sm89"), "wrong SM: built for 8.9, this device has 8.7"),
        (
            built("tensorrt-fp16-sm87", compute_capability="8.6"),
            "wrong SM: built for 8.6, this device has 8.7",
        ),
        (
            built("onnxruntime-fp32", architecture="x86_64"),
            "wrong architecture: built for x86_64, this device is aarch64",
        ),
        (
            built("tensorrt-fp16-sm87", runtime_exact="10.7.0"),
            "runtime of another version: tensorrt 10.3.0, needs exactly 10.7.0",
        ),
        (
            built("onnxruntime-fp32", runtime_min="1.24"),
            "runtime too old: onnxruntime 1.23.2 < 1.24",
        ),
        (
            Candidate(1, "tensorrt-int8-sm87", "queued", waiting_for="waiting for a builder of that kind"),
            "not built yet: waiting for a builder of that kind",
        ),
        (Candidate(1, "tensorrt-int8-sm87", "queued"), "not built yet: in the queue"),
        (Candidate(1, "onnxruntime-int8", "building"), "not built yet: being built"),
        (
            Candidate(1, "onnxruntime-int8", "refused", detail="top1 drops by 0.0300, budget 0.0100"),
            "refused: top1 drops by 0.0300, budget 0.0100",
        ),
        (Candidate(1, "onnxruntime-int8", "unsupported"), "unsupported"),
        (
            Candidate(1, "tensorrt-rtx-fp32", "checked", detail="fit for SM 80, 89"),
            "only checked: the graph is fit for this target, but what was built was not run, so it is not released",
        ),
        (
            built("onnxruntime-fp32", memory_mb=2900.0),
            "over memory: 2,900 MB > 2,796 MB, this device's budget",
        ),
        (
            built("onnxruntime-fp32", size=2_100_000_000),
            "over storage: 2,100 MB > 2,000 MB, the profile's budget for the files of a build",
        ),
        (
            built("onnxruntime-int8", accuracy=quality(0.9, budget=0.01)),
            "over accuracy budget: top1 drops by 0.09 > 0.01",
        ),
        (built("bogus"), "'bogus' is not a target: RUNTIME-PRECISION, e.g. openvino-int8 or tensorrt-fp16-sm87"),
    ],
)
def test_a_build_that_does_not_fit_says_why(candidate: Candidate, reason: str) -> None:
    choice = select(ORIN, ORIN_FACTS, [candidate])
    assert choice == Choice(None, "none of 1 builds fits jetson-orin-nano", {candidate.target: reason})


def test_a_target_whose_runtime_is_not_installed_is_never_taken() -> None:
    bare = Facts(architecture="aarch64", runtimes=(RuntimeFact(name="onnxruntime", version="1.31.1"),))
    choice = select(PI, bare, [built("tflite-int8"), built("onnxruntime-fp32")])
    assert choice.chosen is not None
    assert choice.chosen.target == "onnxruntime-fp32"
    assert choice.reason == "the only build that fits; ranked highest for raspberry-pi-5"
    assert choice.lost == {"tflite-int8": "runtime missing: tflite is not installed (there is: onnxruntime)"}


def test_no_builds_at_all() -> None:
    assert select(PI, PI_FACTS, []) == Choice(None, "no builds", {})


def test_two_candidates_of_one_target_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="same target"):
        select(PI, PI_FACTS, [built("tflite-int8"), built("tflite-int8")])


def test_the_fastest_of_one_machine() -> None:
    choice = select(
        PI,
        PI_FACTS,
        [built("tflite-int8", latency=speed(14.2)), built("onnxruntime-int8", latency=speed(9.1))],
        "latency",
    )
    assert choice.chosen is not None
    assert choice.chosen.target == "onnxruntime-int8"
    assert choice.reason == "fastest: 9.1 ms measured on builder, which is not a device of this kind"
    assert choice.lost == {"tflite-int8": "slower: 14.2 ms > 9.1 ms measured on builder"}


def test_latencies_of_different_machines_are_not_compared() -> None:
    choice = select(
        PI,
        PI_FACTS,
        [
            built("tflite-int8", latency=speed(14.2, "a Pi", "raspberry-pi-5")),
            built("onnxruntime-int8", latency=speed(1.1)),
            built("onnxruntime-fp32"),
        ],
        "latency",
    )
    assert choice.chosen is not None
    assert choice.chosen.target == "tflite-int8"
    assert choice.reason == "fastest: 14.2 ms measured on a Pi"
    assert choice.lost == {
        "onnxruntime-int8": "not comparable: 1.1 ms measured on builder, tflite-int8 measured on a Pi",
        "onnxruntime-fp32": "no latency was measured",
    }


def test_where_nothing_was_measured_the_ranking_decides_and_says_so() -> None:
    choice = select(PI, PI_FACTS, [built("onnxruntime-fp32"), built("tflite-int8")], "latency")
    assert choice.chosen is not None
    assert choice.chosen.target == "tflite-int8"
    assert choice.reason == "ranked highest for raspberry-pi-5; no latency was measured to choose by"


def test_the_most_accurate_and_the_smallest() -> None:
    candidates = [
        built("tflite-int8", accuracy=quality(0.971), size=20_000),
        built("onnxruntime-int8", accuracy=quality(0.980), size=30_000),
        built("onnxruntime-fp32", accuracy=quality(0.980), size=90_000),
    ]
    accurate = select(PI, PI_FACTS, candidates, "accuracy")
    assert accurate.chosen is not None
    assert accurate.chosen.target == "onnxruntime-int8"
    assert accurate.reason == "most accurate: 0.98 top1 over 450 samples"
    assert accurate.lost == {
        "tflite-int8": "less accurate: 0.971 < 0.98 top1 over 450 samples",
        "onnxruntime-fp32": "equal accuracy (0.98), ranked lower: onnxruntime-int8 before onnxruntime-fp32",
    }
    small = select(PI, PI_FACTS, candidates, "size")
    assert small.chosen is not None
    assert small.reason == "smallest: 20,000 bytes"
    assert small.lost["onnxruntime-fp32"] == "larger: 90,000 bytes > 20,000 bytes"


def test_a_candidate_from_report_and_manifest() -> None:
    report = BuildReport(
        target="tflite-int8", outcome=Outcome.BUILT, accuracy=quality(0.98), latency=speed(3.0), size=1, reason="fine"
    )
    manifest = Manifest(
        model="digits",
        version="1.0",
        target="tflite-int8",
        runtime=Runtime.TFLITE,
        precision="int8",
        entry="model.tflite",
        files=(FileEntry(path="model.tflite", size=5000, sha256="a" * 64),),
        table=FileEntry(path="blocks.bin", size=32, sha256="b" * 64),
        inputs=(),
        outputs=(),
        runtime_min="2.0",
        memory_mb=12.5,
    )
    candidate = Candidate.of(7, "tflite-int8", "built", report=report, manifest=manifest)
    assert (candidate.size, candidate.runtime_min, candidate.memory_mb) == (5000, "2.0", 12.5)
    assert candidate.accuracy == report.accuracy
    assert candidate.latency == report.latency
    waiting = Candidate.of(8, "tensorrt-fp16-sm87", "queued", waiting_for="a builder of that kind")
    assert (waiting.size, waiting.waiting_for) == (0, "a builder of that kind")


# --- against an oracle --------------------------------------------------------------------------------------------------

KINDS = {
    name: load_profiles()[name]
    for name in ("intel-n100", "raspberry-pi-zero-2-w", "jetson-xavier-nx", "jetson-thor", "rtx-pc", "generic-x86-64")
}
TARGETS = [
    *("onnxruntime-fp32", "onnxruntime-int8", "openvino-fp16", "openvino-int8", "tflite-int8"),
    *("tensorrt-fp16-sm72", "tensorrt-int8-sm110", "tensorrt-fp16-sm89", "tensorrt-rtx-fp16-sm89"),
]
RUNTIMES = ["onnxruntime", "openvino", "tflite", "tensorrt", "tensorrt-rtx"]
VERSIONS = ["1.31.1", "1.31.1", "1.23.2", "1.9"]


@st.composite
def devices(draw: st.DrawFn) -> tuple[Profile, Facts]:
    """Facts that need not match the profile: what is chosen hangs on what the device says, not on how it got its profile."""
    profile = KINDS[draw(st.sampled_from(sorted(KINDS)))]
    capability = draw(st.sampled_from([None, "7.2", "8.9", "11.0"]))
    gpu = Accelerator(kind="gpu", vendor="nvidia", compute_capability=capability)
    missing = draw(st.sets(st.sampled_from(RUNTIMES), max_size=2))
    runtimes = {name: draw(st.sampled_from(VERSIONS)) for name in RUNTIMES if name not in missing}
    return profile, Facts(
        architecture=draw(st.sampled_from(["x86_64", "aarch64"])),
        memory_mb=draw(st.sampled_from([0, 16000, 16000, 1000, 436])),
        accelerators=draw(st.sampled_from([(), (gpu,)])),
        runtimes=tuple(RuntimeFact(name=name, version=version) for name, version in runtimes.items()),
    )


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    targets = draw(st.permutations(TARGETS))[: draw(st.integers(0, len(TARGETS)))]
    states = [*["built"] * 10, "queued", "building", "checked", "refused", "failed"]
    homes = st.sampled_from([None, *sorted(KINDS)])
    return [
        Candidate(
            id=index,
            target=target,
            state=draw(st.sampled_from(states)),
            size=draw(st.sampled_from([0, 10, 10, 20, 20, 150_000_000, 5_000_000_000])),
            accuracy=draw(st.none() | st.builds(quality, st.sampled_from([0.4, 0.9, 0.95]), samples=st.just(450))),
            latency=draw(
                st.none() | st.builds(speed, st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from(["a", "b"]), homes)
            ),
            runtime_min=draw(st.sampled_from([None, None, None, None, "1.10", "1.31"])),
            runtime_exact=draw(st.sampled_from([*[None] * 7, "1.23.2"])),
            architecture=draw(st.sampled_from([None, None, None, "x86_64", "aarch64"])),
            compute_capability=draw(st.sampled_from([*[None] * 7, "8.9"])),
            memory_mb=draw(st.sampled_from([None, None, 100.0, 100.0, 500.0, 7000.0])),
        )
        for index, target in enumerate(targets)
    ]


def oracle_ranking(profile: Profile, device: Facts) -> list[str]:
    sm = (oracle_sm(profile, device) or "").replace(".", "")
    named = [f"{target}-sm{sm}" if target.startswith("tensorrt") else target for target in profile.targets]
    return [target for target in named if not target.endswith("-sm")]


def oracle_sm(profile: Profile, device: Facts) -> str | None:
    told = [gpu.compute_capability for gpu in device.accelerators if gpu.compute_capability]
    return told[0] if told else profile.compute_capability


def oracle_fits(one: Candidate, profile: Profile, device: Facts) -> bool:
    """Written apart from the code under test, from the words of the profile alone."""
    installed = {runtime.name: runtime.version for runtime in device.runtimes}
    version = installed.get(one.target.split("-sm")[0].rpartition("-")[0])
    newest = [tuple(map(int, v.split("."))) for v in (version or "0", one.runtime_min or "0")]
    budget = min(profile.memory.max_mb, profile.memory.share * (device.memory_mb or 1e9))
    return (
        one.target in oracle_ranking(profile, device)
        and one.state == "built"
        and version is not None
        and newest[0] >= newest[1]
        and one.runtime_exact in (None, version)
        and one.architecture in (None, device.architecture)
        and one.compute_capability in (None, oracle_sm(profile, device))
        and (one.memory_mb or 0) <= budget
        and one.size <= profile.storage.build_mb * 1_000_000
        and (one.accuracy is None or one.accuracy.source - one.accuracy.build <= one.accuracy.budget)
    )


def oracle_beaten(one: Candidate, other: Candidate, objective: Objective, ranking: list[str]) -> bool:
    """Whether `other` is better than `one` by a figure that may be compared, or equal and ranked higher."""
    rank = ranking.index
    if objective == "latency" and one.latency and other.latency:
        if (one.latency.machine, one.latency.profile) != (other.latency.machine, other.latency.profile):
            return False
        mine, theirs = one.latency.p50_ms, other.latency.p50_ms
    elif objective == "accuracy" and one.accuracy and other.accuracy:
        mine, theirs = -one.accuracy.build, -other.accuracy.build
    elif objective == "size":
        mine, theirs = one.size, other.size
    elif objective == "rank":
        mine = theirs = 0
    else:
        return False
    return (theirs, rank(other.target)) < (mine, rank(one.target))


@settings(max_examples=200)
@given(device=devices(), builds=candidates(), objective=st.sampled_from(OBJECTIVES))
def test_selection_agrees_with_the_oracle(
    device: tuple[Profile, Facts], builds: list[Candidate], objective: Objective
) -> None:
    profile, facts = device
    choice = select(profile, facts, builds, objective)
    fitting = [one for one in builds if oracle_fits(one, profile, facts)]
    ranking = oracle_ranking(profile, facts)
    # Something is chosen exactly if something fits; all others, and only they, are told why.
    assert (choice.chosen is not None) == bool(fitting)
    assert choice.reason
    others = {one.target for one in builds if one is not choice.chosen}
    assert set(choice.lost) == others
    assert all(choice.lost.values())
    if choice.chosen is None:
        return
    assert choice.chosen in fitting
    assert not any(oracle_beaten(choice.chosen, other, objective, ranking) for other in fitting)
    if objective in ("latency", "accuracy") and any(getattr(one, objective) for one in fitting):
        # Who was measured goes before who was not, and on this kind of device before elsewhere.
        assert getattr(choice.chosen, objective) is not None
    if objective == "latency" and any(one.latency and one.latency.profile == profile.id for one in fitting):
        assert choice.chosen.latency is not None
        assert choice.chosen.latency.profile == profile.id


@settings(max_examples=50)
@given(
    device=devices(), builds=candidates(), objective=st.sampled_from(OBJECTIVES), seed=st.randoms(use_true_random=False)
)
def test_selection_does_not_depend_on_the_order_of_the_builds(
    device: tuple[Profile, Facts], builds: list[Candidate], objective: Objective, seed: object
) -> None:
    mixed = list(builds)
    seed.shuffle(mixed)  # type: ignore[attr-defined]
    assert select(*device, mixed, objective) == select(*device, builds, objective)


# --- figures in reasons -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"memory_mb": 1210.0}, "over memory: 1,210 MB > 900 MB, this device's budget"),
        ({"memory_mb": 900.04}, "over memory: 900.04 MB > 900 MB, this device's budget"),
        ({"runtime_min": "1.20"}, "runtime too old: onnxruntime 1.18 < 1.20"),
        ({"accuracy": quality(0.9799, budget=0.01)}, "over accuracy budget: top1 drops by 0.0101 > 0.01"),
    ],
)
def test_a_limit_is_told_with_both_figures(fields: dict[str, object], reason: str) -> None:
    facts = Facts(architecture="aarch64", memory_mb=2250, runtimes=(RuntimeFact(name="onnxruntime", version="1.18"),))
    profile = msgspec.structs.replace(PI, memory=Memory(share=0.4, max_mb=4000))
    assert select(profile, facts, [built("onnxruntime-fp32", **fields)]).lost == {"onnxruntime-fp32": reason}


def test_two_latencies_that_are_close_are_told_apart() -> None:
    close = [built("tflite-int8", latency=speed(9.1002)), built("onnxruntime-int8", latency=speed(9.1001))]
    lost = select(PI, PI_FACTS, close, "latency").lost
    assert lost == {"tflite-int8": "slower: 9.1002 ms > 9.1001 ms measured on builder"}


@given(first=st.floats(1e-6, 1e9), second=st.floats(1e-6, 1e9))
def test_two_figures_never_look_alike_unless_they_are(first: float, second: float) -> None:
    one, other = apart(first, second)
    close = abs(first - second) <= 1e-12 * max(first, second)
    assert one != other or close
    assert float(one.replace(",", "")) == pytest.approx(first, rel=0.01)
    if one != other:
        assert (float(one.replace(",", "")) < float(other.replace(",", ""))) == (first < second)
