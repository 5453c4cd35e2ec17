"""What the fuzzer has found, each mended: hostile bytes are one line for people, and no traceback."""

from __future__ import annotations

import io
import json
import re
import ssl
import struct
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from covey_agent.commands import Commands
from covey_agent.enrol import check_certificate, problem
from covey_agent.errors import EnrolmentError
from covey_agent.gateway.control_api import Load
from covey_agent.gateway.errors import OrderError
from covey_agent.gateway.models import read_spec
from covey_agent.samples import Samples
from covey_client.commands.audit import read_export
from covey_client.errors import ClientError
from covey_client.transport import problem as client_problem
from covey_contract import metric
from covey_contract.enrolment import Broker, EnrolResponse
from covey_contract.envelope import encode_envelope
from covey_contract.errors import DecodeError
from covey_contract.facts import Facts
from covey_contract.manifest import DataType, TensorSpec
from covey_contract.messages import COMMAND_TYPE
from covey_contract.signing import Trust, public_key, seal_bytes
from covey_converters.errors import BadInputError
from covey_converters.review import load
from covey_converters.samples import load_samples
from covey_converters.sources import archives
from covey_hil.testing.authority import Authority
from covey_server.core.document import DocumentError
from covey_server.core.spec import parse_spec

ANY = re.compile(r".+")


def zipped(*members: tuple[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return content.getvalue()


def before_its_beginning(archive: bytes) -> bytes:
    """Its directory stands later than it says, so that the first member would lie before the file."""
    end = archive.rfind(b"PK\x05\x06")
    (offset,) = struct.unpack_from("<I", archive, end + 16)
    return archive[: end + 16] + struct.pack("<I", offset + 14) + archive[end + 20 :]


def nameless(archive: bytes) -> bytes:
    """The name of its member is taken for a comment on it."""
    at = archive.find(b"PK\x01\x02") + 28
    return archive[:at] + struct.pack("<HHH", 0, 0, 1) + archive[at + 6 :]


def test_an_evaluation_whose_members_lie_before_the_file() -> None:
    content = io.BytesIO()
    np.savez(content, metric=np.array("classification"), x=np.zeros(3))
    with pytest.raises(DecodeError, match="cannot be read"):
        metric.check_evaluation("", io.BytesIO(before_its_beginning(content.getvalue())))


def test_an_export_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").write_bytes(b'{"who":"\xbe"}\n')
    with pytest.raises(ClientError, match=r"line 1"):
        list(read_export(tmp_path / "audit.jsonl"))


def test_a_server_that_answers_too_deep() -> None:
    assert problem(400, b"[" * 100_000) == "status 400"
    assert "400" in str(client_problem(400, b"[" * 100_000))


def test_a_certificate_on_a_key_that_is_none(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    key, pem = authority.issue("press-7")
    der = bytearray(ssl.PEM_cert_to_DER_cert(pem))
    point = authority.key.public_key()  # somebody else's, to have its length
    length = len(point.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
    own = load_pem_private_key(key, None).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    at = bytes(der).find(own)
    der[at : at + length] = b"\x04" + bytes(length - 1)  # no point of the curve
    response = EnrolResponse(
        device="press-7",
        certificate_pem=ssl.DER_cert_to_PEM_cert(bytes(der)),
        ca_pem=authority.pem,
        broker=Broker(host="x", port=1),
        trust=Trust(release=(), director=()),
    )
    with pytest.raises(EnrolmentError, match="not an identity"):
        check_certificate(response, key)


def test_a_campaign_with_half_a_character_in_a_name() -> None:
    with pytest.raises(DocumentError, match="half of a character"):
        parse_spec(json.dumps({"name": "a", "stages\ud800": []}), is_json=True)


def test_a_signed_command_that_is_nested_too_deep() -> None:
    key = Ed25519PrivateKey.generate()
    trust = Trust(release=(), director=(public_key(key),))
    samples = Samples(Path("/nowhere"), kept=False, may_leave=False)
    commands = Commands(
        *("d", trust),
        facts=Facts,  # type: ignore[arg-type]  # nobody asks for them
        logs=(),
        diagnose=bytes,
        renew=str,
        samples=samples,
        clock=lambda: 1,
    )
    body = b'{"id":"c","device":"d","more":' + b'{"a":' * 5000
    assert commands.answer(encode_envelope(seal_bytes(body, COMMAND_TYPE, [key]))) is None


def test_an_order_for_a_folder_that_no_disk_can_have() -> None:
    with pytest.raises(OrderError, match="cannot be read"):
        read_spec(Load(model="digits", build="a" * 64, folder="x\0"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no archive", "not a readable zip file"),
        (zipped(("a", b"1"), ("a/b", b"2")), "lies in another member|is there twice"),
        (nameless(zipped(("a", b"1"))), "has no name"),
        (before_its_beginning(zipped(("a", b"1"))), "not where the directory says"),
    ],
    ids=["none", "nested", "nameless", "before"],
)
def test_archives_that_cannot_be_unpacked(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "model.zip").write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInputError, match=words):
        archives.unpack(tmp_path / "model.zip", tmp_path / "out", ANY)


@pytest.mark.parametrize("location", [b"\xff\xfe", b"a\0b"], ids=["no text", "zero byte"])
def test_a_model_whose_weights_have_no_name(tmp_path: Path, location: bytes) -> None:
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1, 1], [1.0])
    weight.ClearField("float_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="12345"[: len(location)])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1]) for name in "xy"]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    content = model.SerializeToString().replace(b"12345"[: len(location)], location)
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(BadInputError, match=r"model\.onnx"):
        load(tmp_path / "model.onnx")


def test_samples_that_are_packed_badly(tmp_path: Path) -> None:
    content = bytearray(zipped(("x.npy", bytes(range(256)) * 8)))
    content[60:64] = b"\xff\xff\xff\xff"
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(BadInputError, match="not a readable"):
        load_samples(tmp_path / "data.npz", [TensorSpec(name="x", datatype=DataType.FP32, shape=(1, 2))])
