"""How often a login may be tried: after a few free attempts each further one makes the next wait twice as long.

Counted three ways, since each alone can be got round: by name and address (somebody guesses one password after another), by
address (guesses at many names) and by name (guesses from many addresses; its pause stays short, or strangers could lock people
out). An attempt is counted before its password is looked at, so that attempts at the same time do not slip through; a login
that succeeds takes its own counts back. Names that nobody has are counted like any other.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from covey_server.db.tables import LoginAttempt
from covey_server.errors import TooMany

# Whoever leaves it alone for so long begins anew.
FORGET_MS = 3_600_000


@dataclass(frozen=True)
class Allowance:
    """`free` attempts, then pauses of 1, 2, 4 … up to `longest_s` seconds."""

    free: int
    longest_s: int

    def pause_ms(self, attempts: int) -> int:
        """How long after this many attempts the next must wait.

        >>> [Allowance(5, 900).pause_ms(n) for n in (1, 5, 6, 7, 30)]
        [0, 0, 1000, 2000, 900000]
        """
        beyond = attempts - self.free
        return 0 if beyond <= 0 else min(1 << min(beyond - 1, 30), self.longest_s) * 1000


PAIR = Allowance(free=5, longest_s=900)
ADDRESS = Allowance(free=30, longest_s=900)
NAME = Allowance(free=20, longest_s=30)


def count_attempt(session: Session, name: str, address: str, now_ms: int) -> None:
    """Count one attempt. Raises `TooMany` with `retry_after_s` if it has to wait; then it is not counted."""
    session.execute(delete(LoginAttempt).where(LoginAttempt.last_ms < now_ms - FORGET_MS))
    keys = _keys(name, address)
    query = select(LoginAttempt).where(LoginAttempt.key.in_(keys)).order_by(LoginAttempt.key).with_for_update()
    rows = {row.key: row for row in session.scalars(query)}
    until_ms = max((row.until_ms for row in rows.values()), default=0)
    if until_ms > now_ms:
        seconds = -(-(until_ms - now_ms) // 1000)
        raise TooMany(f"too many attempts to log in; try again in {seconds} s", retry_after_s=seconds)
    for key, allowance in keys.items():
        row = rows.get(key)
        if row is None:
            row = LoginAttempt(key=key, attempts=0, until_ms=0, last_ms=now_ms)
            session.add(row)
        row.attempts += 1
        row.last_ms = now_ms
        row.until_ms = now_ms + allowance.pause_ms(row.attempts)


def forgive(session: Session, name: str, address: str) -> None:
    """The attempt succeeded: its name begins anew, and the address has one attempt less."""
    pair, by_address, by_name = _keys(name, address)
    session.execute(delete(LoginAttempt).where(LoginAttempt.key.in_([pair, by_name])))
    row = session.get(LoginAttempt, by_address, with_for_update=True)
    if row is not None:
        row.attempts = max(0, row.attempts - 1)
        row.until_ms = 0


def _keys(name: str, address: str) -> dict[str, Allowance]:
    """Hashed, since what is typed as a name may be a password."""

    def key(*parts: str) -> str:
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    address = _network(address)
    return {key("pair", name, address): PAIR, key("address", address): ADDRESS, key("name", name): NAME}


def _network(address: str) -> str:
    """Who has one IPv6 address has a whole /64 of them.

    >>> _network("2001:db8::1:2"), _network("192.0.2.7")
    ('2001:db8::/64', '192.0.2.7')
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else address
