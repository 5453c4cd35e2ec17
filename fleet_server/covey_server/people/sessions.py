"""One-time codes, invitations and the sessions of browsers. Each belongs to a token or to a person.

Invariants: only hashes of secrets are kept (SHA-256 of 256 random bits); a code or an invitation works once and not for long; a
session ends with whom it belongs to.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Select, delete, select
from sqlalchemy.orm import Session

from covey_server.db.tables import ConsoleSession

MAX_SECRET = 256
_Kind = Literal["code", "invite", "session"]


@dataclass(frozen=True)
class Holder:
    """Whom a session belongs to: a token, or else a person."""

    token_id: int | None = None
    person_id: int | None = None


@dataclass(frozen=True)
class LoginCode:
    code: str
    expires_ms: int


def new_secret(prefix: str = "") -> str:
    """256 random bits as text."""
    return prefix + secrets.token_urlsafe(32)


def secret_hash(secret: str) -> str:
    """What is kept of a secret. Fast on purpose: 256 random bits cannot be guessed, however fast one tries."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def create_login_code(session: Session, holder: Holder, now_ms: int, seconds: int) -> LoginCode:
    """A one-time code that `exchange_login_code` turns into a session of the same token or person."""
    return LoginCode(_keep(session, "code", holder, now_ms, seconds, ""), now_ms + seconds * 1000)


def exchange_login_code(session: Session, code: str, now_ms: int, seconds: int, origin: str = "") -> str | None:
    """The secret of a new session for the cookie, or None if the code is unknown, used or too old. A code works once."""
    holder = _use_up(session, "code", code, now_ms)
    return None if holder is None else open_session(session, holder, now_ms, seconds, origin)


def open_session(session: Session, holder: Holder, now_ms: int, seconds: int, origin: str) -> str:
    """A new session; its secret, for the cookie."""
    return _keep(session, "session", holder, now_ms, seconds, origin)


def end_sessions(session: Session, holder: Holder, *, but: str = "") -> int:
    """End all sessions, codes and invitations of a token or person; `but` is the hash of one that stays. How many ended."""
    owner = (
        ConsoleSession.person_id == holder.person_id
        if holder.person_id is not None
        else ConsoleSession.token_id == holder.token_id
    )
    ended = session.execute(
        delete(ConsoleSession).where(owner, ConsoleSession.secret_hash != but).returning(ConsoleSession.kind)
    )
    return sum(1 for kind in ended.scalars() if kind == "session")


def invite(session: Session, person_id: int, now_ms: int, seconds: int) -> LoginCode:
    """A one-time right of this person to choose a password; one given before is good no longer."""
    session.execute(
        delete(ConsoleSession).where(ConsoleSession.person_id == person_id, ConsoleSession.kind == "invite")
    )
    code = _keep(session, "invite", Holder(person_id=person_id), now_ms, seconds, "")
    return LoginCode(code, now_ms + seconds * 1000)


def invited(session: Session, code: str, now_ms: int) -> int | None:
    """The id of the person whom this invitation is for; None if it is unknown, used or too old. Does not use it up."""
    found = session.scalar(_held("invite", code))
    return found.person_id if found is not None and found.expires_ms > now_ms else None


def accept_invitation(session: Session, code: str, now_ms: int) -> int | None:
    """As `invited`, and the invitation is used up."""
    holder = _use_up(session, "invite", code, now_ms)
    return None if holder is None else holder.person_id


def _keep(session: Session, kind: _Kind, holder: Holder, now_ms: int, seconds: int, origin: str) -> str:
    secret = new_secret()
    session.add(
        ConsoleSession(
            secret_hash=secret_hash(secret),
            kind=kind,
            token_id=holder.token_id,
            person_id=holder.person_id,
            csrf=new_secret() if kind == "session" else "",
            origin=origin[:64],
            created_ms=now_ms,
            expires_ms=now_ms + seconds * 1000,
        )
    )
    return secret


def _use_up(session: Session, kind: _Kind, secret: str, now_ms: int) -> Holder | None:
    found = session.scalar(_held(kind, secret).with_for_update())
    if found is None:
        return None
    session.delete(found)
    return None if found.expires_ms <= now_ms else Holder(found.token_id, found.person_id)


def _held(kind: _Kind, secret: str) -> Select[ConsoleSession]:
    return select(ConsoleSession).where(
        ConsoleSession.secret_hash == secret_hash(secret[:MAX_SECRET]), ConsoleSession.kind == kind
    )
