"""`enum.StrEnum`, which Python has from 3.11 on. A device may have 3.10: JetPack 6's own, the only one that its TensorRT knows."""

from __future__ import annotations

import enum
import sys

if sys.version_info >= (3, 11):
    StrEnum = enum.StrEnum  # novm
else:

    class StrEnum(str, enum.Enum):
        """A member is its value, also to `str` and `format`."""

        __str__ = str.__str__


__all__ = ["StrEnum"]
