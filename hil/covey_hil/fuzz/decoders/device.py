"""What reaches the agent's control process beside messages: bundles, deltas, answers of servers, asks, and the repository's metadata."""

from __future__ import annotations

import bz2
import json
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.exceptions import FormatError
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

from covey_agent import asks
from covey_agent.bundle import Bundle, BundleError
from covey_agent.commands import Commands
from covey_agent.delta import patched
from covey_agent.enrol import check_ca, check_certificate, problem
from covey_agent.errors import AgentError, EnrolmentError
from covey_agent.facts import read_facts
from covey_agent.keys import make_key_and_request
from covey_agent.samples import Samples
from covey_agent.tuf import trusted as rules
from covey_agent.tuf.errors import Refused
from covey_agent.tuf.trusted import Trusted
from covey_contract.enrolment import ClaimToken, EnrolResponse
from covey_contract.envelope import encode_envelope
from covey_contract.errors import ContractError
from covey_contract.messages import COMMAND_TYPE, Command
from covey_contract.reasons import Reason
from covey_contract.samples import ListSamples
from covey_contract.signing import Trust, public_key, seal_bytes
from covey_contract.wire import decode, encode
from covey_hil.fuzz.decoder import Decoder, Form, Made, Share
from covey_hil.fuzz.decoders.files import bundle
from covey_hil.fuzz.decoders.messages import FACTS, MESSAGES
from covey_hil.testing.authority import Authority
from covey_hil.testing.made_samples import keep

_NOW = datetime(2030, 1, 1, tzinfo=UTC)


def _bundle(folder: Path) -> Made:
    """Every member that it names is read."""
    path = folder / "x.bundle"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        with Bundle(path) as found:
            for device, models in found.devices().items():
                for model in models:
                    found.order(f"orders/{device}/{model}.json")
            for name in found._places:  # noqa: SLF001  # those that are no orders too
                assert len(found.read(name, 0, 1 << 20)) <= len(data)
            return len(found._places)  # noqa: SLF001

    return Made(read, (bundle(),))


def _patch(_: Path) -> Made:
    source = bytes(range(256)) * 4
    control = bz2.compress(struct.pack("<3q", 100, 20, -10) + struct.pack("<3q", 60, 0, 0))
    parts = (control, bz2.compress(b"\1" * 160), bz2.compress(b"extra bytes, twenty!"))
    whole = struct.pack("<8sqqq", b"BSDIFF40", len(parts[0]), len(parts[1]), 180) + b"".join(parts)

    def read(data: bytes) -> object:
        found = patched(source, data, 4096)
        assert len(found) <= 4096
        return len(found)

    return Made(read, (whole,))


def _control(folder: Path) -> Made:
    """The control blocks of a patch, packed well: the numbers in them are a stranger's."""
    inner = _patch(folder)
    difference, extra = bz2.compress(b"\1" * 160), bz2.compress(b"extra bytes, twenty!")

    def read(data: bytes) -> object:
        control = bz2.compress(data, 1)
        head = struct.pack("<8sqqq", b"BSDIFF40", len(control), len(difference), 180)
        return inner.decode(head + control + difference + extra)

    return Made(read, (struct.pack("<6q", 100, 20, -10, 60, 0, 0),))


def _enrolled(folder: Path) -> Made:
    """The server's answer to an enrolment: its certificates too."""
    authority = Authority(folder)
    key_pem, _ = make_key_and_request(None, "press-7")
    own, certificate = authority.issue("press-7")
    claim = ClaimToken(authority.fingerprint, "s" * 32)
    good = next(one for one in MESSAGES if isinstance(one, EnrolResponse))
    good = msgspec.structs.replace(good, certificate_pem=certificate, ca_pem=authority.pem)

    def read(data: bytes) -> object:
        problem(400, data)
        found = decode(EnrolResponse, data)
        check_certificate(found, own if b"press-7" in data else key_pem)
        check_ca(found.ca_pem, claim)
        return found

    return Made(read, (encode(good), b'{"title":"Forbidden","detail":"the claim token is used"}'))


def _ask(_: Path) -> Made:
    told: tuple[asks.Ask, ...] = (
        asks.GoBack("digits"),
        asks.Pin("digits", "why"),
        asks.Unpin("digits"),
        asks.Install("digits", "/media/x.bundle"),
    )
    return Made(asks._ask.decode, tuple(map(msgspec.json.encode, told)))  # noqa: SLF001


def _facts(folder: Path) -> Made:
    path = folder / "facts.json"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return read_facts(path)

    return Made(read, (encode(FACTS),))


def _command(folder: Path) -> Made:
    """A command that its director has signed, whatever it says, to a device that lets its samples leave."""
    key = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
    trust = Trust(release=(), director=(public_key(key),))
    told = next(one for one in MESSAGES if isinstance(one, Command))
    keep(folder / "capture", 1)
    samples = Samples(folder / "capture", kept=True, may_leave=True)
    commands = Commands(
        *("press-7", trust),
        facts=lambda: FACTS,
        logs=(),
        diagnose=lambda: b"{}",
        renew=str,
        samples=samples,
        clock=lambda: 1,
    )
    listing = msgspec.structs.replace(told, samples=ListSamples(model="digits", skip=1, limit=5))

    def read(data: bytes) -> object:
        reply = commands.answer(encode_envelope(seal_bytes(data, COMMAND_TYPE, [key])))
        if reply is not None:
            encode(reply)
        return type(reply)

    unknown = b'{"id":"c9","device":"press-7","kind":"erase","issued_ms":1,"expires_ms":2}'
    return Made(read, (encode(told), encode(listing), unknown))


def _collected(_: Path) -> Made:
    """What a collector answers to a push."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

    from covey_agent.otlp.collector import _partial, _seconds

    answer = ExportMetricsServiceResponse()
    answer.partial_success.rejected_data_points = 3
    answer.partial_success.error_message = "too old"

    def read(data: bytes) -> object:
        assert 0 <= _seconds(data.decode("latin-1")) <= 300
        return _partial(data)

    return Made(read, (answer.SerializeToString(), b"30"))


# --- the repository of releases ---------------------------------------------------------------------------------------


class _Published:
    """One version of each role, signed by one key, always the same bytes."""

    def __init__(self) -> None:
        self.signer = CryptoSigner(Ed25519PrivateKey.from_private_bytes(b"\x01" * 32))
        expires = _NOW + timedelta(days=30)
        root = Root(expires=expires, consistent_snapshot=True)
        for role in ("root", "timestamp", "snapshot", "targets"):
            root.add_key(self.signer.public_key, role)
        targets = Targets(expires=expires)
        targets.targets["digits/1.1"] = TargetFile.from_data("digits/1.1", b"bytes", ["sha256"])
        signed = {
            "root": root,
            "timestamp": Timestamp(expires=expires),
            "snapshot": Snapshot(expires=expires),
            "targets": targets,
        }
        self.files = {role: self._bytes(Metadata(one)) for role, one in signed.items()}
        root.version = 2
        self.next_root = self._bytes(Metadata(root))

    def _bytes(self, metadata: Metadata[Any]) -> bytes:
        metadata.sign(self.signer)
        return metadata.to_bytes()

    def sealed(self, signed: bytes) -> bytes:
        """What a thief of the key, or a careless owner, could publish."""
        tree = json.loads(signed)
        signature = self.signer.sign((encode_canonical(tree) or "").encode())
        return json.dumps({"signatures": [signature.to_dict()], "signed": tree}).encode()

    def taker(self, role: str) -> Callable[[bytes], Trusted]:
        """Takes the role's bytes, with everything before it as it was published."""
        first = rules.start(self.files["root"])
        if role == "root":
            return lambda data: rules.with_root(first, data)
        if role == "timestamp":
            return lambda data: rules.with_timestamp(first, data, _NOW)
        second = rules.with_timestamp(first, self.files["timestamp"], _NOW)
        if role == "snapshot":
            return lambda data: rules.with_snapshot(second, data, _NOW)
        third = rules.with_snapshot(second, self.files["snapshot"], _NOW)
        return lambda data: rules.with_role(third, "targets", "root", data, _NOW)


def _metadata(role: str, _: Path, *, signed: bool) -> Made:
    published = _Published()
    take = published.taker(role)
    good = published.next_root if role == "root" else published.files[role]
    if not signed:
        return Made(take, (good,))

    def read(data: bytes) -> object:
        try:
            whole = published.sealed(data)
        except (ValueError, FormatError, RecursionError, TypeError) as error:
            raise Refused(Reason.METADATA_INVALID, "nobody can sign this") from error
        return take(whole)

    return Made(read, (json.dumps(json.loads(good)["signed"]).encode(),))


_TUF = ("covey_agent.tuf.trusted",)
DECODERS = (
    Decoder(
        "device.bundle",
        "a stick",
        _bundle,
        (BundleError,),
        ("covey_agent.bundle", "covey_contract.sources"),
        Form.BYTES,
        Share.MIDDLE,
    ),
    Decoder("device.patch", "the server", _patch, (ValueError,), ("covey_agent.delta",), Form.BYTES, Share.MIDDLE),
    Decoder(
        "device.patch_control", "the server", _control, (ValueError,), ("covey_agent.delta",), Form.BYTES, Share.MIDDLE
    ),
    Decoder(
        "device.enrolled",
        "the server",
        _enrolled,
        (ContractError, EnrolmentError),
        ("covey_agent.enrol",),
        share=Share.MIDDLE,
    ),
    Decoder(
        "device.ask",
        "a person at the device",
        _ask,
        (msgspec.MsgspecError, UnicodeDecodeError, RecursionError),
        ("covey_agent.asks",),
    ),
    Decoder(
        "device.command",
        "the server",
        _command,
        (ContractError,),
        ("covey_agent.commands", "covey_agent.samples"),
        share=Share.MIDDLE,
    ),
    Decoder("device.collector", "a collector", _collected, (), ("covey_agent.otlp.collector",), Form.BYTES),
    Decoder("device.facts", "a file", _facts, (AgentError,), ("covey_agent.facts",), share=Share.MIDDLE),
    *(
        Decoder(
            f"device.{role}{'_signed' if signed else ''}",
            "the repository",
            partial(_metadata, role, signed=signed),
            (Refused,),
            _TUF,
            share=Share.MIDDLE,
        )
        for signed in (False, True)
        for role in ("root", "timestamp", "snapshot", "targets")
    ),
)
