"""The device's time zone: its IANA name, for people and the server, and its rules, for maintenance windows.

As the C library decides: `TZ`, else `/etc/localtime`. Where no zone of that name is known, it is UTC, and the log says so once.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from datetime import timezone, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

log = logging.getLogger(__name__)

UTC_NAME = "UTC"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}")
_LOCALTIME = "etc/localtime"
_MAX_BYTES = 128
_MAX_NAME = 64


def zone_name(root: Path = Path("/"), environment: str | None = None) -> str:
    """The IANA name, e.g. `Europe/Berlin`; `UTC` if there is none to be found. `environment` is the value of `TZ`; None: as it is set."""
    told = os.environ.get("TZ", "") if environment is None else environment
    candidates = [told.removeprefix(":")] if told else [_linked(root), _written(root)]
    for name in candidates:
        # systemd and Debian both know zones by their path under zoneinfo/; `posix/` and `right/` are the same zones.
        name = re.sub(r"^.*zoneinfo/(posix/|right/)?", "", name)
        if len(name) <= _MAX_NAME and _NAME.fullmatch(name):
            return name
    return UTC_NAME


def _linked(root: Path) -> str:
    try:
        return str((root / _LOCALTIME).readlink())
    except OSError:  # a copy instead of a link, or nothing
        return ""


def _written(root: Path) -> str:
    """Debian's /etc/timezone, which stays where /etc/localtime is a copy."""
    try:
        with (root / "etc/timezone").open("rb") as file:
            return file.read(_MAX_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""


def local_zone(root: Path = Path("/")) -> tzinfo:
    """The zone's rules, by name from the system's database, or from `/etc/localtime` itself on systems that have none."""
    return _zone(zone_name(root), root)


@functools.lru_cache(maxsize=4)
def _zone(name: str, root: Path) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    try:
        with (root / _LOCALTIME).open("rb") as file:
            return ZoneInfo.from_file(file, key=name)
    except (OSError, ValueError):
        if name != UTC_NAME:
            log.warning("there is no time zone %s on this device; maintenance windows go by UTC", name)
        return timezone.utc
