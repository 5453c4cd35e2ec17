"""A bundle: one file that carries devices' orders, and all that is needed to follow them, to where there is no network.

It is a zip file whose members are stored, not compressed, so that any of their bytes can be read in place:

    orders/DEVICE/MODEL.json    the order as it travels over MQTT (`messages.Order`)
    metadata/NAME               the repository of releases at the moment of writing, by the names of its files
    blobs/SHA256                the files of the builds (block tables too), each once

Nothing in it is believed for being there: orders, manifests and metadata are signed, and blobs are pinned by manifests.

>>> order_name("press-7", "digits")
'orders/press-7/digits.json'
>>> order_of("orders/press-7/digits.json")
('press-7', 'digits')
"""

from __future__ import annotations

import re

from covey_contract.manifest import MODEL_NAME
from covey_contract.topics import DEVICE_ID

SUFFIX = ".bundle"
MAX_ORDER_BYTES = 512 * 1024
_ORDER = re.compile(rf"orders/({DEVICE_ID.pattern})/({MODEL_NAME.pattern})\.json")


def order_name(device: str, model: str) -> str:
    return f"orders/{device}/{model}.json"


def order_of(name: str) -> tuple[str, str] | None:
    """Device and model of a member that is an order; None of any other."""
    match = _ORDER.fullmatch(name)
    return (match[1], match[2]) if match else None


def metadata_name(file: str) -> str:
    return f"metadata/{file}"


def blob_name(sha256: str) -> str:
    return f"blobs/{sha256}"
