"""Files that people upload or carry to a device, small ones: what the fuzzer bends."""

from __future__ import annotations

import hashlib
import json
import zipfile

from covey_contract.bundle import blob_name, metadata_name, order_name
from covey_contract.messages import Order
from covey_contract.wire import encode
from covey_hil.fuzz.decoders.messages import MANIFEST, MESSAGES, A
from covey_hil.testing.made_samples import about, array, sample, zipped


def archives() -> tuple[bytes, ...]:
    """Of each kind of source that is an archive, as far as its names go."""
    return (
        zipped({"config.json": b"{}", "model.weights.h5": b"weights"}),
        zipped({"model/archive_format": b"pt2", "model/models/model.json": b"{}"}, zipfile.ZIP_DEFLATED),
        zipped({"saved_model.pb": b"graph", "variables/variables.index": b"index"}),
        zipped({"m/constants.pkl": b"", "m/code/__torch__.py": b"", "m/data.pkl": b""}),
    )


def bundle() -> bytes:
    order = next(one for one in MESSAGES if isinstance(one, Order))
    members = {
        order_name("press-7", "digits"): encode(order),
        metadata_name("timestamp.json"): b"{}",
        blob_name(A): b"b" * 100,
    }
    return zipped(members)


def samples() -> tuple[bytes, ...]:
    """As a device hands them on for labelling."""
    return (sample(), zipped({"about.json": about(), "in/x.npy": array(), "out/y.npy": array(2)}, zipfile.ZIP_DEFLATED))


def sample_archive() -> bytes:
    """As the server hands them to a user."""
    name, data = "press-7/digits/1790000000000-000001.npz", sample()
    line = {"file": name, "sha256": hashlib.sha256(data).hexdigest(), "label": None}
    return zipped({"_classes/digits-1.0.txt": b"zero\none\n", name: data, "index.jsonl": json.dumps(line).encode()})


def _array(descr: str, shape: tuple[int, ...], data: bytes) -> bytes:
    header = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def evaluations() -> tuple[bytes, ...]:
    """`.npz` files for a model with one input `x` of FP32 [1, 2]."""
    x, labels = _array("<f4", (3, 2), b"\0" * 24), _array("<i8", (3,), b"\1\0\0\0\0\0\0\0" * 3)
    metric = _array("<U14", (), "classification".encode("utf-32-le"))
    plain = {"x.npy": x, "labels.npy": labels, "metric.npy": metric}
    return (zipped(plain), zipped(plain, zipfile.ZIP_DEFLATED), zipped({"x.npy": x}))


MATERIALS = {"source": "d" * 64}


def provenance() -> bytes:
    """A statement about `MANIFEST`'s files."""
    subjects = [{"name": entry.path, "digest": {"sha256": entry.sha256}} for entry in MANIFEST.files]
    parameters = {"model": MANIFEST.model, "version": MANIFEST.version, "target": MANIFEST.target}
    return json.dumps(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "predicateType": "https://slsa.dev/provenance/v1",
            "subject": subjects,
            "predicate": {
                "buildDefinition": {
                    "externalParameters": parameters,
                    "resolvedDependencies": [
                        {"name": name, "digest": {"sha256": sha256}} for name, sha256 in MATERIALS.items()
                    ],
                }
            },
        }
    ).encode()
