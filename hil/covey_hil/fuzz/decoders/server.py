"""What devices, builders, operators and other tools send to the server, behind the HTTP framework and the broker.

The API's paths and bodies as such are fuzzed by its own description (tests/integration/test_openapi_fuzz.py).
"""

from __future__ import annotations

import base64
import contextlib
import io
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
from cryptography import x509
from sqlalchemy import insert
from sqlalchemy.dialects import sqlite

from covey_agent.keys import make_key_and_request
from covey_client.commands.audit import read_export
from covey_client.errors import ClientError
from covey_client.samples import unpack
from covey_client.transport import problem
from covey_contract.audit_chain import GENESIS, Entry, check
from covey_contract.blocks import blocks_of
from covey_contract.building import BuildReport
from covey_contract.conditions import MaintenanceWindow
from covey_contract.errors import ContractError
from covey_contract.messages import BlockRequest
from covey_contract.wire import encode
from covey_hil.fuzz.decoder import Decoder, Form, Made, Share
from covey_hil.fuzz.decoders.files import MATERIALS, archives, evaluations, provenance, sample_archive
from covey_hil.fuzz.decoders.messages import FROM_DEVICES, MANIFEST, MESSAGES
from covey_server.api.est import _request_of
from covey_server.api.uploads import _metadata, _number
from covey_server.core.document import DocumentError
from covey_server.core.spec import parse_spec, spec_from_json, spec_to_json
from covey_server.core.spec.expression import FIGURES, parse_condition
from covey_server.db.engine import Database
from covey_server.db.tables import Device
from covey_server.errors import Invalid
from covey_server.fleet.ca import CertificateRequestError, request_key
from covey_server.fleet.groups import meets
from covey_server.fleet.inbox import Incoming, read
from covey_server.fleet.records import store
from covey_server.registry.blobs import BlobStore
from covey_server.registry.receipt import _check_provenance, check_manifest, check_report
from covey_server.registry.versions import check_evaluation, check_metadata, check_source

_TOPICS = {
    "Hello": "hello",
    "Report": "report",
    "Telemetry": "telemetry",
    "Status": "status",
    "Reply": "reply",
    "BlockRequest": "blkreq",
    "TimeRequest": "timereq",
    "MetadataRequest": "metareq",
    "RenewRequest": "renewreq",
}
_NOW = 1_800_000_000_000
_CAMPAIGN = b"""\
name: digits-1.1
model: digits
version: "1.1"
target: {groups: [all]}
exclude: {devices: [d1], groups: []}
stages:
  - {name: canary, group: canary, soak: 15s}
  - {name: rest, percent: 100}
gates:
  install_failures: {max_rate: 0.1, max_count: 1}
  errors: {max_rate: 0.01, min_requests: 50}
  latency: {quantile: 0.99, max_ratio: 1.5, min_increase_ms: 2, min_requests: 100, measure: end_to_end}
on_breach: rollback
probation: {seconds: 10, max_errors: 3}
assignment_ttl: 7d
"""


def _inbox(_: Path) -> Made:
    """A topic, a zero byte and a payload, as the broker brings them; a request's bitmap is followed too."""
    told = [one for one in MESSAGES if type(one).__name__ in FROM_DEVICES]
    seeds = [f"covey/press-7/up/{_TOPICS[type(one).__name__]}".encode() + b"\0" + encode(one) for one in told]

    def take(data: bytes) -> object:
        topic, _, payload = data.partition(b"\0")
        found = read(topic.decode("utf-8", "replace"), payload, _NOW)
        if isinstance(found.message, BlockRequest):
            indices = blocks_of(found.message.base, found.message.bitmap)
            assert 1 <= len(indices) <= 16
        return found

    return Made(take, tuple(seeds))


def _stored(folder: Path) -> Made:
    """As the last one, and then stored by the server's own transaction, twice."""
    database = Database(f"sqlite:///{folder / 'covey.db'}")
    database.migrate()
    row = {
        "profile": "generic",
        "profile_reason": "",
        "simulated": False,
        "facts": {},
        "facts_digest": "",
        "labels": {},
    }
    row |= {"enrolled_ms": 1, "online": True, "agent_version": "", "counter": 0}
    with database.session() as session:
        session.execute(insert(Device), [{"id": "press-7", **row}])
    inner = _inbox(folder)

    def take(data: bytes) -> object:
        found = inner.decode(data)
        assert isinstance(found, Incoming)
        for _ in range(2):
            with database.session() as session:
                store(session, [found], _NOW)
        return type(found.message)

    return Made(take, inner.seeds)


def _campaign(_: Path, *, is_json: bool) -> Made:
    """Read, and what was read survives being written as JSON."""
    good = parse_spec(_CAMPAIGN)

    def take(data: bytes) -> object:
        spec = parse_spec(data, is_json=is_json)
        assert spec_from_json(spec_to_json(spec)) == spec
        return spec

    return Made(take, (msgspec.json.encode(spec_to_json(good)),) if is_json else (_CAMPAIGN, b"a: [1, {b: 2}]\n"))


def _expression(_: Path) -> Made:
    figures = dict.fromkeys(FIGURES, 1.5)

    def take(data: bytes) -> object:
        condition = parse_condition(data.decode("utf-8", "replace"))
        return condition.holds(figures, figures)

    told = (
        b"error_rate > 0.02 or p99_ms > 2 * before.p99_ms",
        b"max(p50_ms, abs(-temperature_c)) / 2 >= 1e3 and drift < 1",
    )
    return Made(take, told)


def _selector(_: Path) -> Made:
    """As far as the query that finds the devices."""
    decoder = msgspec.json.Decoder(dict[str, object])
    good = {"profile": ["raspberry-pi-5"], "simulated": False, "labels.line": ["a", 3], "facts.deep.er": 1.5}
    return Made(
        lambda data: str(meets(decoder.decode(data)).compile(dialect=sqlite.dialect())), (msgspec.json.encode(good),)
    )


def _csr(_: Path) -> Made:
    pem = make_key_and_request(None, "press-7")[1]
    return Made(lambda data: request_key(data.decode("utf-8", "replace")), (pem.encode(),))


def _est(_: Path) -> Made:
    """The body of an enrolment by EST."""
    pem = make_key_and_request(None, "press-7")[1]
    der = x509.load_pem_x509_csr(pem.encode())
    from cryptography.hazmat.primitives.serialization import Encoding

    body = base64.encodebytes(der.public_bytes(Encoding.DER))

    def take(data: bytes) -> object:
        found, name = _request_of(data)
        request_key(found)
        return name

    return Made(take, (body,))


def _der(_: Path) -> Made:
    """The same, bent inside of the base64."""
    inner = _est(_)
    return Made(lambda data: inner.decode(base64.b64encode(data)), (base64.b64decode(inner.seeds[0]),))


def _report(_: Path) -> Made:
    good = next(one for one in MESSAGES if isinstance(one, BuildReport))
    return Made(lambda data: check_report(data, good.target, has_manifest=True), (encode(good),))


def _manifest(_: Path) -> Made:
    return Made(
        lambda data: check_manifest(data, MANIFEST.model, MANIFEST.version, MANIFEST.target), (encode(MANIFEST),)
    )


def _provenance(folder: Path) -> Made:
    blobs = BlobStore(folder)

    def take(data: bytes) -> object:
        sha256, _ = blobs.put(io.BytesIO(data), 1 << 20)
        try:
            _check_provenance(blobs, MANIFEST, sha256, {**MATERIALS, "evaluation": None})
        finally:
            blobs.path(sha256).unlink()
        return sha256

    return Made(take, (provenance(),))


def _upload(_: Path) -> Made:
    def take(data: bytes) -> object:
        check_source("model.zip", io.BytesIO(data))
        return True

    return Made(take, archives())


def _evaluation(_: Path) -> Made:
    def take(data: bytes) -> object:
        check_evaluation({"metric": "classification"}, io.BytesIO(data))
        return True

    return Made(take, evaluations())


def _upload_metadata(_: Path) -> Made:
    """The header that begins an upload in pieces: words, and numbers of bytes."""

    def take(data: bytes) -> object:
        text = data.decode("latin-1")
        found = _metadata(text)
        with contextlib.suppress(Invalid):
            assert _number(text[:20], "Upload-Length") >= 0  # as long as the header may be
        return found

    return Made(take, (b"filename ZGlnaXRzLm9ubng=,kind c291cmNl", b"1048576"))


def _version_metadata(_: Path) -> Made:
    return Made(
        lambda data: check_metadata(data.decode("utf-8", "replace")), (b'{"unit":"digit","n":3,"x":1.5,"y":true}',)
    )


def _window(_: Path) -> Made:
    decoder = msgspec.json.Decoder(MaintenanceWindow)
    return Made(decoder.decode, (b'{"from":"22:00","to":"05:30","days":["fri"]}',))


def _answer(_: Path) -> Made:
    """What a server, or a proxy in between, answers to a client that did not get what it wanted."""
    return Made(
        lambda data: str(problem(409, data)),
        (b'{"type":"about:blank","title":"Conflict","detail":"d","code":"c","errors":[]}',),
    )


def _export(folder: Path) -> Made:
    """The audit log as it was exported, checked by whoever holds it."""
    path = folder / "audit.jsonl"
    entries: list[Entry] = []
    for number in (1, 2, 3):
        before = entries[-1].hash if entries else GENESIS
        entry = Entry(number, 1, "anna", "", "model.push", "digits", {"a": [1]}, before, "")
        entries.append(replace(entry, hash=entry.computed()))
    good = b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries)

    def take(data: bytes) -> object:
        path.write_bytes(data)
        found = check(read_export(path))
        return found.flaw

    return Made(take, (good,))


def _unpacked(folder: Path) -> Made:
    """An archive of samples into a user's folder; nothing may appear outside of it."""
    file, place = folder / "samples.zip", folder / "place"
    good = sample_archive()

    def take(data: bytes) -> object:
        file.write_bytes(data)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        try:
            return unpack(file, place)
        finally:
            assert {path.name for path in folder.iterdir()} == {"samples.zip", "place"}
            assert not list(place.rglob("*.part"))

    return Made(take, (good,))


_INBOX = ("covey_server.fleet.inbox", "covey_contract.topics")
_SPEC = (
    "covey_server.core.document",
    "covey_server.core.spec.campaign",
    "covey_server.core.spec.checks",
    "covey_server.core.spec.values",
)
_RECEIPT = ("covey_server.registry.receipt",)
_PUSHED = ("covey_server.registry.versions", "covey_contract.sources")
_NOT_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
DECODERS = (
    Decoder("server.inbox", "a device", _inbox, (ContractError,), _INBOX, Form.BYTES),
    Decoder(
        "server.stored", "a device", _stored, (ContractError,), ("covey_server.fleet.records",), Form.BYTES, Share.DEAR
    ),
    Decoder(
        "server.campaign_yaml",
        "an operator",
        partial(_campaign, is_json=False),
        (DocumentError,),
        _SPEC,
        Form.TEXT,
        Share.DEAR,
        2048,
    ),
    Decoder(
        "server.campaign_json",
        "an operator",
        partial(_campaign, is_json=True),
        (DocumentError,),
        _SPEC,
        share=Share.DEAR,
        longest=2048,
    ),
    Decoder(
        "server.expression",
        "an operator",
        _expression,
        (ValueError,),
        ("covey_server.core.spec.expression",),
        Form.TEXT,
        Share.MIDDLE,
        400,
    ),
    Decoder(
        "server.selector",
        "an operator",
        _selector,
        (Invalid, *_NOT_JSON),
        ("covey_server.fleet.groups",),
        share=Share.MIDDLE,
    ),
    Decoder(
        "server.csr", "a device", _csr, (CertificateRequestError,), ("covey_server.fleet.ca",), Form.TEXT, Share.MIDDLE
    ),
    Decoder(
        "server.est",
        "a device",
        _est,
        (Invalid, CertificateRequestError),
        ("covey_server.api.est",),
        Form.TEXT,
        Share.MIDDLE,
    ),
    Decoder(
        "server.est_der",
        "a device",
        _der,
        (Invalid, CertificateRequestError),
        ("covey_server.api.est",),
        Form.BYTES,
        Share.MIDDLE,
    ),
    Decoder("server.report", "a builder", _report, (Invalid,), _RECEIPT),
    Decoder("server.manifest", "a builder", _manifest, (Invalid,), _RECEIPT),
    Decoder("server.provenance", "a builder", _provenance, (Invalid,), _RECEIPT, share=Share.DEAR),
    Decoder("server.source", "an operator", _upload, (Invalid,), _PUSHED, Form.BYTES, Share.MIDDLE),
    Decoder(
        "server.evaluation",
        "an operator",
        _evaluation,
        (Invalid,),
        (*_PUSHED, "covey_contract.metric"),
        Form.BYTES,
        Share.MIDDLE,
    ),
    Decoder(
        "server.upload_metadata", "an operator", _upload_metadata, (Invalid,), ("covey_server.api.uploads",), Form.TEXT
    ),
    Decoder("server.metadata", "an operator", _version_metadata, (Invalid,), _PUSHED),
    Decoder(
        "server.window",
        "an operator",
        _window,
        (msgspec.MsgspecError, UnicodeDecodeError, RecursionError),
        ("covey_contract.conditions",),
    ),
    Decoder("client.answer", "a server", _answer, (), ("covey_client.transport",)),
    Decoder(
        "client.export",
        "a file",
        _export,
        (ClientError,),
        ("covey_client.commands.audit", "covey_contract.audit_chain"),
        share=Share.MIDDLE,
    ),
    Decoder(
        "client.samples",
        "a server",
        _unpacked,
        (ClientError,),
        ("covey_client.samples", "covey_contract.samples"),
        Form.BYTES,
        Share.DEAR,
    ),
)
