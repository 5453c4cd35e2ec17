"""Which build a device gets: the reasons one by one, and against an oracle that tries everything."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_contract.building import Accuracy, BuildReport, Latency, Outcome
from covey_contract.facts import Accelerator, Facts, RuntimeFact
from covey_contract.manifest import FileEntry, Manifest, Runtime
from covey_profiles import OBJECTIVES, Candidate, Choice, Objective, load_profiles, select

PI = load_profiles()["raspberry-pi-5"]
ORIN = load_profiles()["jetson-orin-nano"]
N100 = load_profiles()["intel-n100"]
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
        "tensorrt-fp16-sm87": "wrong GPU: built for compute capability 8.7, this device tells of no NVIDIA GPU",
    }


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (built("tensorrt-fp16-sm89"), "wrong GPU: built for compute capability 8.9 (SM), this device has 8.7"),
        (
            built("tensorrt-fp16-sm87", compute_capability="8.6"),
            "wrong GPU: built for compute capability 8.6 (SM), this device has 8.7",
        ),
        (
            built("onnxruntime-fp32", architecture="x86_64"),
            "wrong architecture: built for x86_64, this device is aarch64",
        ),
        (
            built("tensorrt-fp16-sm87", runtime_exact="10.7.0"),
            "runtime of another version: needs tensorrt 10.7.0 exactly, this device has 10.3.0",
        ),
        (
            built("onnxruntime-fp32", runtime_min="1.24"),
            "runtime too old: needs onnxruntime 1.24 or newer, this device has 1.23.2",
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
            "over memory: needs 2900 MB, this device's budget is 2796 MB",
        ),
        (
            built("onnxruntime-fp32", size=2_100_000_000),
            "over storage: 2100.0 MB of files, the profile's budget is 2000 MB",
        ),
        (
            built("onnxruntime-int8", accuracy=quality(0.9, budget=0.01)),
            "over accuracy budget: top1 drops by 0.0900, budget 0.0100",
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
    assert accurate.reason == "most accurate: 0.9800 top1 over 450 samples"
    assert accurate.lost == {
        "tflite-int8": "less accurate: 0.9710 < 0.9800 top1 over 450 samples",
        "onnxruntime-fp32": "equal accuracy (0.9800), ranked lower: onnxruntime-int8 before onnxruntime-fp32",
    }
    small = select(PI, PI_FACTS, candidates, "size")
    assert small.chosen is not None
    assert small.reason == "smallest: 20000 bytes"
    assert small.lost["onnxruntime-fp32"] == "larger: 90000 bytes > 20000 bytes"


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

TARGETS = [*N100.targets, "tflite-int8", "tensorrt-fp16-sm87"]
VERSIONS = ["1.9", "1.23.2", "1.31.1"]

facts = st.builds(
    lambda runtimes, memory: Facts(
        architecture="x86_64",
        cpu_model="Intel(R) N100",
        memory_mb=memory,
        runtimes=tuple(RuntimeFact(name=name, version=version) for name, version in runtimes.items()),
    ),
    st.dictionaries(st.sampled_from(["onnxruntime", "openvino", "tflite"]), st.sampled_from(VERSIONS)),
    st.sampled_from([0, 1000, 16000]),
)


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    targets = draw(st.permutations(TARGETS))[: draw(st.integers(0, len(TARGETS)))]
    return [
        Candidate(
            id=index,
            target=target,
            state=draw(st.sampled_from(["built", "built", "built", "queued", "building", "refused", "failed"])),
            size=draw(st.sampled_from([0, 10, 20, 5_000_000_000])),
            accuracy=draw(st.none() | st.builds(quality, st.sampled_from([0.4, 0.9, 0.95]), samples=st.just(450))),
            latency=draw(
                st.none()
                | st.builds(
                    speed,
                    st.sampled_from([1.0, 2.0, 3.0]),
                    st.sampled_from(["a", "b"]),
                    st.sampled_from([None, "intel-n100"]),
                )
            ),
            runtime_min=draw(st.sampled_from([None, "1.10", "1.31"])),
            architecture=draw(st.sampled_from([None, None, "x86_64", "aarch64"])),
            memory_mb=draw(st.sampled_from([None, 100.0, 500.0, 7000.0])),
        )
        for index, target in enumerate(targets)
    ]


def oracle_fits(one: Candidate, device: Facts) -> bool:
    """Written apart from the code under test, from the words of the profile alone."""
    version = next((r.version for r in device.runtimes if r.name == one.target.split("-")[0]), None)
    newest = [tuple(map(int, v.split("."))) for v in (version or "0", one.runtime_min or "0")]
    budget = min(6000.0, 0.4 * device.memory_mb) if device.memory_mb else 6000.0
    return (
        one.target in N100.targets
        and one.state == "built"
        and version is not None
        and newest[0] >= newest[1]
        and one.architecture in (None, "x86_64")
        and (one.memory_mb or 0) <= budget
        and one.size <= 4_000_000_000
        and (one.accuracy is None or one.accuracy.source - one.accuracy.build <= one.accuracy.budget)
    )


def oracle_beaten(one: Candidate, other: Candidate, objective: Objective) -> bool:
    """Whether `other` is better than `one` by a figure that may be compared, or equal and ranked higher."""
    rank = N100.targets.index
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


@given(device=facts, builds=candidates(), objective=st.sampled_from(OBJECTIVES))
def test_selection_agrees_with_the_oracle(device: Facts, builds: list[Candidate], objective: Objective) -> None:
    choice = select(N100, device, builds, objective)
    fitting = [one for one in builds if oracle_fits(one, device)]
    # Something is chosen exactly if something fits; all others, and only they, are told why.
    assert (choice.chosen is not None) == bool(fitting)
    assert choice.reason
    others = {one.target for one in builds if one is not choice.chosen}
    assert set(choice.lost) == others
    assert all(choice.lost.values())
    if choice.chosen is None:
        return
    assert choice.chosen in fitting
    assert not any(oracle_beaten(choice.chosen, other, objective) for other in fitting)
    if objective in ("latency", "accuracy") and any(getattr(one, objective) for one in fitting):
        # Who was measured goes before who was not, and on this kind of device before elsewhere.
        assert getattr(choice.chosen, objective) is not None
    if objective == "latency" and any(one.latency and one.latency.profile == "intel-n100" for one in fitting):
        assert choice.chosen.latency is not None
        assert choice.chosen.latency.profile == "intel-n100"


@given(device=facts, builds=candidates(), objective=st.sampled_from(OBJECTIVES), seed=st.randoms(use_true_random=False))
def test_selection_does_not_depend_on_the_order_of_the_builds(
    device: Facts, builds: list[Candidate], objective: Objective, seed: object
) -> None:
    mixed = list(builds)
    seed.shuffle(mixed)  # type: ignore[attr-defined]
    assert select(N100, device, mixed, objective) == select(N100, device, builds, objective)
