"""One good message of every kind, with every field in use: what the fuzzer bends."""

from __future__ import annotations

from covey_contract import building, conditions, drift, enrolment, envelope, facts, manifest, messages, samples
from covey_contract.histogram import Recorder
from covey_contract.lifecycle import State
from covey_contract.reasons import Reason
from covey_contract.signing import Trust
from covey_contract.wire import Message

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
_COUNTS = drift.OutputCounts(count=3, classes={0: 1, 7: 2}, scores=(0,) * 17 + (1, 1, 1))
_VALUES = drift.OutputCounts(count=4, values=(1, 2, 1))
_REFERENCE = drift.Reference(
    samples=450,
    outputs={
        "y": drift.OutputReference(kind=drift.OutputKind.LOGITS, counts=_COUNTS),
        "z": drift.OutputReference(kind=drift.OutputKind.VALUES, counts=_VALUES, edges=(0.0, 1.5)),
    },
    inputs={"x": drift.InputReference(low=0.0, high=1.0)},
)
MANIFEST = manifest.Manifest(
    model="digits",
    version="1.1",
    target="onnxruntime-int8",
    runtime=manifest.Runtime.ONNXRUNTIME,
    precision="int8",
    entry="model.onnx",
    files=(
        manifest.FileEntry(path="model.onnx", size=70_000, sha256=A),
        manifest.FileEntry(path="golden.npz", size=100, sha256=B),
    ),
    table=manifest.FileEntry(path="blocks.bin", size=3 * 32, sha256=C),
    inputs=(manifest.TensorSpec(name="x", datatype=manifest.DataType.FP32, shape=(-1, 2)),),
    outputs=(
        manifest.TensorSpec(name="y", datatype=manifest.DataType.FP32, shape=(-1, 10), build_name="y:0"),
        manifest.TensorSpec(name="z", datatype=manifest.DataType.INT64, shape=(-1, 2, 3), permutation=(0, 2, 1)),
    ),
    runtime_min="1.18",
    architecture="x86_64",
    options={"threads": 1, "fast": True, "hint": "latency", "scale": 0.5},
    golden="golden.npz",
    tolerance={"y": manifest.Tolerance(absolute=0.1, relative=0.01)},
    metadata={"unit": "digit"},
    max_batch=8,
    memory_mb=40.0,
    provenance_sha256=C,
    reference=_REFERENCE,
)
_WINDOW = conditions.MaintenanceWindow(start="22:00", end="05:30", days=(conditions.Day.FRI,), month_days=(1, 31))
CONDITIONS = conditions.Conditions(not_before_ms=1, windows=(_WINDOW,), mains_power=True, unlocked=True, idle_s=60.0)
FACTS = facts.Facts(
    architecture="aarch64",
    board="Raspberry Pi 5 Model B Rev 1.0",
    cpu_cores=4,
    cpu_flags=("asimddp",),
    memory_mb=8000,
    os="Debian GNU/Linux 12",
    accelerators=(facts.Accelerator(kind="gpu", vendor="nvidia", memory_mb=8000, compute_capability="8.7"),),
    runtimes=(facts.RuntimeFact(name="tflite", version="2.1.0", devices=("CPU",)),),
    timezone="Europe/Berlin",
    simulated=True,
)
SIGNED = envelope.Envelope(
    payload=b'{"v":1}',
    payload_type=messages.ASSIGNMENT_TYPE,
    signatures=(envelope.Signature(keyid=A, sig=b"s" * 64),),
)


def _histogram() -> Recorder:
    recorder = Recorder()
    for milliseconds in (0.0, 0.4, 0.5, 2.0, 90.0):
        recorder.record(milliseconds / 1000)
    return recorder


HISTOGRAM = _histogram().snapshot()
_MODEL = messages.ModelStatus(
    model="digits", active=A, previous=B, candidate=C, assignment="a1", counter=3, state=State.ACTIVE, detail="ok"
)
TELEMETRY = messages.Telemetry(
    seq=8,
    boot_id="b1",
    start_ms=1_800_000_000_000,
    end_ms=1_800_000_010_000,
    windows=(
        messages.BuildWindow(
            model="digits",
            version="1.1",
            build=A,
            probation=True,
            ok=5,
            errors={"queue_full": 2},
            fallbacks=1,
            batches={1: 3, 4: 1},
            queue=HISTOGRAM,
            compute=HISTOGRAM,
            end_to_end=HISTOGRAM,
            outputs={"y": _COUNTS, "z": _VALUES},
            inputs={"x": drift.InputCounts(count=5, nan=1)},
        ),
    ),
    resources=messages.Resources(
        cpu_percent=3.5,
        control_rss_mb=46.0,
        temperature_c=61.5,
        throttled=False,
        accelerators={"gpu": 25.0},
        capture=messages.Captured(share=0.01, limit_mb=200.0, samples=3, may_leave=True),
    ),
)
_PARITY = building.OutputParity(max_error=0.1, mean_error=0.01, cosine=0.999, top1_agreement=0.99, column=(1, 2))

MESSAGES: tuple[Message, ...] = (
    messages.Hello(
        boot_id="b1",
        agent_version="0.1.0",
        facts_digest=A,
        time_ms=1_800_000_000_000,
        last_counter=3,
        last_seq=7,
        models=(_MODEL,),
        simulated=True,
    ),
    messages.Status(boot_id="b1", online=True, time_ms=1),
    messages.Report(
        seq=7,
        time_ms=1,
        assignment="a1",
        counter=3,
        model="digits",
        version="1.1",
        build=A,
        state=State.ROLLED_BACK,
        reason=Reason.RUNNER_CRASHED,
        detail="exit code -9",
        previous=B,
        bytes_fetched=10,
        progress=0.5,
        waits_until_ms=2,
    ),
    TELEMETRY,
    messages.BlockRequest(build=A, file=1, base=16, bitmap=0xFFFF),
    messages.TimeRequest(nonce=A),
    messages.MetadataRequest(id="q1", path="digits/1.1", root=1),
    messages.Reply(
        id="c1",
        time_ms=1,
        detail="done",
        facts=FACTS,
        text="words",
        samples=(samples.SampleEntry(model="digits", name="1790000000000-000001.npz", size=5000),),
        piece=samples.SamplePiece(size=5000, data=b"some bytes", sha256=A),
    ),
    messages.Assignment(
        id="a1",
        device="press-7",
        counter=4,
        issued_ms=1,
        expires_ms=2,
        model="digits",
        version="1.1",
        build=A,
        probation=messages.Probation(seconds=5.0, max_slowdown=2.0),
        campaign="digits-1.1",
        conditions=CONDITIONS,
        rollback=True,
    ),
    messages.Order(
        assignment=SIGNED,
        manifest=SIGNED,
        offer=messages.Offer(
            broadcast=True,
            url="/api/v1/delivery/{sha256}",
            token="t1",  # noqa: S106  # made up
            delta=messages.DeltaOffer(base=B, sha256=C, size=1000),
        ),
    ),
    messages.Broadcast(build=A, blocks=10, over=True, listeners=3),
    messages.Command(
        id="c1",
        device="press-7",
        kind=messages.CommandKind.SAMPLES,
        issued_ms=1,
        expires_ms=2,
        lines=50,
        samples=samples.ReadSample(model="digits", name="1790000000000-000001.npz", offset=81_920),
    ),
    messages.TimeReply(device="press-7", nonce=A, time_ms=1),
    messages.MetadataPart(id="q1", part=0, parts=2, data=b"some bytes"),
    messages.Ack(seqs=(1, 2, 3)),
    enrolment.EnrolRequest(secret="s" * 30, csr_pem="-----BEGIN", facts=FACTS, device="press-7"),
    enrolment.RenewRequest(certificate_pem="-----BEGIN CERTIFICATE-----", csr_pem="-----BEGIN", proof=b"0E", id="r1"),
    enrolment.RenewResponse(certificate_pem="-----BEGIN CERTIFICATE-----"),
    enrolment.RenewReply(id="r1", status=200, certificate_pem="-----BEGIN CERTIFICATE-----", detail="words"),
    enrolment.EnrolResponse(
        device="press-7",
        certificate_pem="-----BEGIN",
        ca_pem="-----BEGIN",
        broker=enrolment.Broker(host="fleet.example", port=8883),
        trust=Trust(release=(b"r" * 32,), director=(b"d" * 32,)),
        root=b"{}",
    ),
    building.BuildReport(
        target="onnxruntime-int8",
        outcome=building.Outcome.BUILT,
        size=10,
        tries=(building.Try(recipe="per-tensor", outcome=building.Outcome.REFUSED, figures={"drop": 0.1}),),
        parity={"y": _PARITY},
        accuracy=building.Accuracy(
            metric="accuracy", source=0.98, build=0.97, samples=450, budget=0.01, figures={"f1": (0.9, 0.8)}
        ),
        latency=building.Latency(
            p50_ms=0.1, p99_ms=0.2, load_ms=5.0, first_ms=1.0, peak_rss_mb=40.0, machine="a machine"
        ),
        toolchain={"onnx": "1.16"},
        notes=("a note",),
    ),
    building.BuildJob(
        id=1,
        lease="l1",
        lease_expires_ms=1,
        model="digits",
        version="1.1",
        target="onnxruntime-int8",
        source=building.SourceFile(filename="digits.onnx", size=10, sha256=A),
        evaluation=building.SourceFile(filename="evaluation.npz", size=10, sha256=B),
        metadata={"metric": "classification"},
    ),
    building.LeaseRequest(worker="w1", targets=("onnxruntime-*",), seconds=60),
    FACTS,
    MANIFEST,
)
# What arrives at the server and on a device, by topic; the rest is between server and builders or is signed.
FROM_DEVICES = frozenset(
    {
        "Hello",
        "Status",
        "Report",
        "Telemetry",
        "BlockRequest",
        "TimeRequest",
        "MetadataRequest",
        "RenewRequest",
        "Reply",
    }
)
FROM_BUILDERS = frozenset({"BuildReport", "LeaseRequest", "Manifest"})
