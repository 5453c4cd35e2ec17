"""What devices and server say to each other over MQTT. Times are Unix times in milliseconds.

Handlers are idempotent: QoS 1 delivers twice, brokers forget, devices reboot. Reports and telemetry carry `seq`, a number
the device never uses twice; the server acknowledges what it has stored by `Ack`, and only then does the device forget it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from covey_contract.blocks import REQUEST_BLOCKS
from covey_contract.conditions import Conditions
from covey_contract.drift import MAX_TENSORS, InputCounts, OutputCounts, TensorName
from covey_contract.envelope import Envelope
from covey_contract.facts import Facts
from covey_contract.histogram import Count, Histogram
from covey_contract.lifecycle import State
from covey_contract.manifest import Batch, ModelName, Sha256, VersionName
from covey_contract.reasons import Reason
from covey_contract.samples import SampleEntry, SamplePiece, SampleQuestion
from covey_contract.strenum import StrEnum
from covey_contract.wire import Message

Millis = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Seq = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
ShortText = Annotated[str, msgspec.Meta(max_length=256)]
Detail = Annotated[str, msgspec.Meta(max_length=2000)]


# --- from the device ----------------------------------------------------------------------------------------------


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a device holds of one model: builds by their digests, and the newest deployment."""

    model: ModelName
    active: Sha256 | None = None
    previous: Sha256 | None = None
    candidate: Sha256 | None = None
    assignment: ShortText | None = None
    counter: int = 0
    state: State | None = None
    reason: Reason = Reason.NONE
    detail: Detail = ""


class Hello(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Said on every connect. The server answers with what the device should run and does not, and with a request for facts
    if it does not know `facts_digest`."""

    boot_id: ShortText  # changes with every start of the agent
    agent_version: ShortText
    facts_digest: Sha256
    time_ms: Millis
    last_counter: int = 0  # of the newest assignment this device has accepted
    last_seq: int | None = None  # of the newest record in its spool; what it says is no older than the reports up to it
    models: tuple[ModelStatus, ...] = ()
    last_exit: Reason = Reason.STARTED  # how the previous run of the agent ended
    simulated: bool = False
    certificate_ends_ms: Millis | None = None  # of the certificate that this session was opened with


class Status(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A heartbeat, and the last will (`online` false)."""

    MAX_BYTES = 1024

    boot_id: ShortText
    online: bool
    time_ms: Millis = 0


class Report(Message, frozen=True, kw_only=True, omit_defaults=True):
    """One transition in a deployment's life."""

    seq: Seq
    time_ms: Millis
    assignment: ShortText
    counter: int
    model: ModelName
    version: VersionName
    build: Sha256
    state: State
    reason: Reason = Reason.NONE
    detail: Detail = ""
    previous: Sha256 | None = None  # the build that served before, or serves again
    bytes_fetched: int = 0
    progress: float | None = None  # 0..1 while fetching
    waits_until_ms: Millis | None = None  # of a wait whose end is known, by the device's clock


class BuildWindow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one build did in one window. Histograms are in seconds.

    `ok` and `errors` count requests by what their caller got; `fallbacks` those of them that this build failed and the
    previous build answered. `batches` counts inferences by the rows that went in, of builds
    whose manifest lets rows go together.
    `outputs` and `inputs` are counted for those that the build's manifest has a reference of, by name.
    """

    model: ModelName
    version: VersionName
    build: Sha256
    probation: bool = False
    ok: int = 0
    errors: dict[ShortText, int] = {}
    fallbacks: int = 0
    batches: dict[Batch, Count] = {}
    queue: Histogram = Histogram()
    compute: Histogram = Histogram()
    end_to_end: Histogram = Histogram()
    outputs: dict[TensorName, OutputCounts] = {}
    inputs: dict[TensorName, InputCounts] = {}

    def __post_init__(self) -> None:
        if max(len(self.outputs), len(self.inputs)) > MAX_TENSORS:
            raise ValueError(f"counts of more than {MAX_TENSORS} inputs or outputs")


class Captured(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Samples of requests and their answers that a device keeps for labelling. This counts them. Sizes in MB (10^6 bytes)."""

    share: Annotated[float, msgspec.Meta(ge=0, le=1)]  # of the answered requests
    limit_mb: float
    samples: Count = 0  # that it holds now
    held_mb: float = 0.0
    dropped: Count = 0  # chosen and not kept since the gateway started: no room or time, or too large
    may_leave: bool = False  # whether the device's own settings let the server fetch them


MAX_ACCELERATORS = 8


class Resources(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the agent's processes use, in MB (10^6 bytes) and percent of one core; None: not readable here."""

    cpu_percent: float = 0.0
    control_rss_mb: float = 0.0
    gateway_rss_mb: float = 0.0
    runners_rss_mb: float = 0.0
    memory_available_mb: float = 0.0
    storage_free_mb: float = 0.0
    temperature_c: float | None = None
    throttled: bool | None = None
    # Percent of the time that each worked, by name: gpu, npu, gpu1 …
    accelerators: Annotated[
        dict[
            Annotated[str, msgspec.Meta(pattern=r"^[a-z]{1,8}[0-9]{0,2}$")],
            Annotated[float, msgspec.Meta(ge=0, le=100)],
        ],
        msgspec.Meta(max_length=MAX_ACCELERATORS),
    ] = {}
    capture: Captured | None = None  # None: no samples are kept


class Telemetry(Message, frozen=True, kw_only=True, omit_defaults=True):
    """One window of measurements, spooled on disk until acknowledged."""

    seq: Seq
    boot_id: ShortText
    start_ms: Millis
    end_ms: Millis
    windows: tuple[BuildWindow, ...] = ()
    resources: Resources | None = None


class BlockRequest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Up to 16 blocks that the device misses: bit i of `bitmap` asks for block `base + i` of file `file`."""

    MAX_BYTES = 1024

    build: Sha256
    file: Annotated[int, msgspec.Meta(ge=0, le=256)]
    base: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)]
    bitmap: Annotated[int, msgspec.Meta(ge=1, lt=1 << REQUEST_BLOCKS)]


Nonce = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


class TimeRequest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What time is it? Asked on every connect, with a nonce that is never used twice."""

    MAX_BYTES = 1024

    nonce: Nonce


class MetadataRequest(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The repository's newest metadata that leads to a target, for a device that reaches nothing but the broker. `root`: the version of the
    root that it trusts; it gets those that follow."""

    MAX_BYTES = 2048

    id: ShortText
    path: Annotated[str, msgspec.Meta(max_length=512)]
    root: Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]


class Reply(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to a command. `facts` answers the command of that name, `text` those that ask for words, `samples` or `piece` one about
    samples."""

    id: ShortText
    time_ms: Millis
    reason: Reason = Reason.NONE
    detail: Detail = ""
    facts: Facts | None = None
    text: Annotated[str, msgspec.Meta(max_length=100_000)] = ""
    samples: tuple[SampleEntry, ...] = ()
    piece: SamplePiece | None = None


# --- from the server ----------------------------------------------------------------------------------------------


class Probation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """When a device itself goes back to its previous build after a swap."""

    seconds: float = 30.0
    max_errors: int = 3  # failed inferences by the new build (answered by the previous one) that are forgiven
    max_slowdown: float | None = None  # p99 of compute against the previous build's; None: the campaign judges latency
    min_requests: int = 50  # before the latency is judged


class Action(StrEnum):
    RUN = "run"
    REMOVE = "remove"


class Assignment(Message, frozen=True, kw_only=True, omit_defaults=True):
    """One device's order, signed by the director: run this build. Newer orders have higher counters, per device."""

    MAX_BYTES = 8 * 1024

    id: ShortText
    device: ShortText
    counter: Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
    issued_ms: Millis
    expires_ms: Millis
    model: ModelName
    version: VersionName
    build: Sha256  # digest of the manifest's bytes
    action: Action = Action.RUN
    probation: Probation = Probation()
    campaign: ShortText | None = None
    conditions: Conditions | None = None  # None: at once
    rollback: bool = False  # back to a build that served before: conditions do not hold it up


ASSIGNMENT_TYPE = "application/vnd.covey.assignment.v1+json"


class DeltaOffer(msgspec.Struct, frozen=True, kw_only=True):
    """A file that makes most of the build out of another one, `base` (covey_contract.delta). It is asked for as file 0 of a build with its
    own digest, and comes whichever way blocks come."""

    base: Sha256
    sha256: Sha256
    size: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]


class Offer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the build's bytes may be had beside asking for blocks. A hint, unsigned: it decides where bytes come from, never which.

    `url` holds `{sha256}` where a file's digest goes; one that begins with `/` is at the device's own server. `token` is for that
    server alone, as a bearer token.
    """

    broadcast: bool = False  # they are about to be broadcast, or are being so: listen before you ask
    url: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    token: Annotated[str, msgspec.Meta(max_length=256)] = ""
    delta: DeltaOffer | None = None  # where it is there, `broadcast` is about it


class Order(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What travels on `down/assignment`: the director's assignment and the release key's manifest, each in its envelope."""

    assignment: Envelope
    manifest: Envelope
    offer: Offer = Offer()


class Broadcast(Message, frozen=True, kw_only=True, omit_defaults=True):
    """How the broadcast of a build stands, said every second while it lasts, and once when it is over. A hint."""

    MAX_BYTES = 1024

    build: Sha256
    blocks: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0  # that are still to come
    over: bool = False  # devices may ask for what they miss, each after a pause of its own
    listeners: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)] = 0  # devices that were ordered to run it, about


class CommandKind(StrEnum):
    PING = "ping"
    FACTS = "facts"
    LOGS = "logs"
    DIAGNOSTICS = "diagnostics"  # `text` is a JSON object
    RENEW = "renew"  # the device's certificate, now
    SAMPLES = "samples"  # which samples it keeps, or a piece of one: `Command.samples`


class Command(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Something to do now, signed by the director (`COMMAND_TYPE`). Expired or repeated ids are ignored."""

    MAX_BYTES = 8 * 1024

    id: ShortText
    device: ShortText
    kind: CommandKind
    issued_ms: Millis
    expires_ms: Millis
    lines: Annotated[int, msgspec.Meta(ge=1, le=2000)] = 200  # of the log
    samples: SampleQuestion | None = None


COMMAND_TYPE = "application/vnd.covey.command.v1+json"


class TimeReply(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The server's time, signed by the director (`TIME_TYPE`) for one device and one nonce."""

    MAX_BYTES = 1024

    device: ShortText
    nonce: Nonce
    time_ms: Millis


TIME_TYPE = "application/vnd.covey.time.v1+json"


class MetadataPart(Message, frozen=True, kw_only=True, omit_defaults=True):
    """A part of the answer to a `MetadataRequest` (covey_contract.metadata). Not signed: what is in it is."""

    id: ShortText
    part: Annotated[int, msgspec.Meta(ge=0, lt=256)]
    parts: Annotated[int, msgspec.Meta(ge=1, le=256)]
    data: bytes


class Ack(Message, frozen=True, kw_only=True, omit_defaults=True):
    """The reports and telemetry records that the server has stored. It is a hint, unsigned: losing one costs a duplicate."""

    MAX_BYTES = 16 * 1024

    seqs: tuple[Seq, ...]
