"""The audit log's hash chain: how an entry is hashed, and where a log stops being what was written.

`hash = SHA-256(previous_hash ‖ JSON of [id, at_ms, who, origin, action, object, detail])`, the JSON with sorted keys, without
blanks and in ASCII; the first entry follows 64 zeros; ids count 1, 2, 3 … without gaps. The server writes by these rules, and
whoever holds an export can check it by them without the server.

What a chain alone cannot show is that its end was cut off, or that all of it was written anew: for that keep an earlier export,
or its last hash, and check that the log still goes on from there.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

GENESIS = "0" * 64
# How far back an entry's predecessor is looked for, to tell entries that were put between from ones that were changed.
_LOOK_BACK = 1000


@dataclass(frozen=True)
class Entry:
    """One entry. `at_ms` is Unix time in milliseconds, hashes are in hex."""

    id: int
    at_ms: int
    who: str
    origin: str
    action: str
    object: str
    detail: Any
    previous_hash: str
    hash: str

    def computed(self) -> str:
        """The hash that this entry ought to have."""
        told = [self.id, self.at_ms, self.who, self.origin, self.action, self.object, self.detail]
        body = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(self.previous_hash.encode("ascii", "replace") + body.encode()).hexdigest()


@dataclass(frozen=True)
class Head:
    """Where a chain ends: its last entry's id (0: no entries) and hash."""

    id: int = 0
    hash: str = GENESIS


@dataclass(frozen=True)
class Flaw:
    """The first entry that is not as it was written. `id` is the entry that was changed or inserted, or the first that is gone."""

    id: int
    kind: Literal["changed", "removed", "inserted"]

    def __str__(self) -> str:
        return {"changed": f"entry {self.id} was changed", "removed": f"entry {self.id} was removed"}.get(
            self.kind, f"entry {self.id} was inserted"
        )


@dataclass(frozen=True)
class Checked:
    """What came of a check: how many entries were read, where they end, and the first flaw if there is one."""

    entries: int
    head: Head
    flaw: Flaw | None = None


def check(entries: Iterable[Entry], *anchors: Head) -> Checked:
    """Follow a chain from its first entry. `anchors` are heads that the chain is known to have had, e.g. of earlier exports.

    >>> def entry(id, previous, who="anna"):
    ...     made = Entry(id, 0, who, "", "model.push", "digits", {}, previous, "")
    ...     return dataclasses.replace(made, hash=made.computed())
    >>> import dataclasses
    >>> first = entry(1, GENESIS); second = entry(2, first.hash); third = entry(3, second.hash)
    >>> check([first, second, third]).flaw is None
    True
    >>> str(check([first, third]).flaw), str(check([first, dataclasses.replace(second, who="eve"), third]).flaw)
    ('entry 2 was removed', 'entry 2 was changed')
    >>> str(check([first, second], Head(3, third.hash)).flaw)
    'entry 3 was removed'
    """
    wanted: dict[int, set[str]] = {}
    for anchor in anchors:
        if anchor.id:
            wanted.setdefault(anchor.id, set()).add(anchor.hash)
    last, before = Head(), OrderedDict([(GENESIS, 0)])  # hash -> id of the entries so far
    count = 0
    for entry in entries:
        count += 1
        flaw = _flaw(entry, last, before)
        if flaw is None and entry.id in wanted and wanted[entry.id] != {entry.hash}:
            flaw = Flaw(entry.id, "changed")
        if flaw is not None:
            return Checked(count, last, flaw)
        last = Head(entry.id, entry.hash)
        before[entry.hash] = entry.id
        if len(before) > _LOOK_BACK:
            before.popitem(last=False)
    cut = min((id_ for id_ in wanted if id_ > last.id), default=None)
    return Checked(count, last, None if cut is None else Flaw(last.id + 1, "removed"))


def _flaw(entry: Entry, last: Head, before: OrderedDict[str, int]) -> Flaw | None:
    if entry.id > last.id + 1:
        return Flaw(last.id + 1, "removed")
    if entry.id <= last.id:
        return Flaw(entry.id, "inserted")
    if entry.previous_hash == last.hash:
        return None if entry.hash == entry.computed() else Flaw(entry.id, "changed")
    earlier = before.get(entry.previous_hash)
    if earlier is not None:
        # It follows an entry further back: whatever stands between was not there when it was written.
        return Flaw(earlier + 1, "inserted")
    if entry.hash == entry.computed() and last.id:
        # It is as it was written, so what it followed then was not what stands before it now.
        return Flaw(last.id, "changed")
    return Flaw(entry.id, "changed")
