"""Labels: what operators say of a device, as short texts by name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from covey_server.core import criticality
from covey_server.db.tables import Device
from covey_server.errors import Invalid

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MAX_LABELS = 64
_MAX_VALUE = 256


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises `Invalid`, naming the label."""
    if len(labels) > _MAX_LABELS:
        raise Invalid(f"a device has at most {_MAX_LABELS} labels", field="labels")
    for name, value in labels.items():
        if not _NAME.fullmatch(name):
            raise Invalid(f"label {name[:64]!r}: 1 to 64 of A-Z a-z 0-9 _ -", field="labels")
        if len(value) > _MAX_VALUE or "\0" in value:
            raise Invalid(f"label {name}: at most {_MAX_VALUE} characters, none of them NUL", field=f"labels.{name}")
    try:
        criticality.criticality_of(labels)
    except ValueError as error:
        raise Invalid(f"label {criticality.LABEL}: {error}", field=f"labels.{criticality.LABEL}") from error


def put_labels(device: Device, labels: Mapping[str, str]) -> None:
    """The only way to a device's labels: what planning reads of them follows. They have passed `check_labels`."""
    device.labels = dict(labels)
    device.site = labels.get(criticality.SITE_LABEL)
    device.criticality = criticality.criticality_of(labels)
