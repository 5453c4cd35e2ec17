"""API tokens: made, found again in files, revoked. Only hashes are in the database.

The server's own two tokens, `admin` for its operator and `worker` for its local build worker, lie in files of the data folder
that only their owner can read: whoever can read them could read the database as well.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from covey_server.db.tables import ApiToken, Person
from covey_server.errors import Conflict, NotFound
from covey_server.fleet.durable import write_durably
from covey_server.people.directory import NAME_PATTERN
from covey_server.people.roles import ROLES, Role, may
from covey_server.people.sessions import Holder, end_sessions, new_secret, secret_hash

TOKEN_PREFIX = "covey_"  # noqa: S105 - what tokens begin with
MAX_MODELS = 64
_MAX_FILE = 1024


def is_name(text: str) -> bool:
    return re.fullmatch(NAME_PATTERN, text) is not None


def create(
    session: Session,
    name: str,
    role: Role,
    now_ms: int,
    expires_ms: int | None,
    *,
    owner: Person | None = None,
    models: Sequence[str] | None = None,
    by_login: bool = False,
) -> tuple[ApiToken, str]:
    """The new token and its secret. Raises `Conflict` if a living token or a person has the name, or if the owner may not do
    what `role` may. A revoked or expired token's name may be used again. `models`: the only ones it may change."""
    if role not in ROLES:
        raise ValueError(f"{role!r} is not a role")
    token = session.scalar(select(ApiToken).where(ApiToken.name == name).with_for_update())
    if token is not None and token.revoked_ms is None and (token.expires_ms is None or token.expires_ms > now_ms):
        raise Conflict(f"there is a token {name!r} already; revoke it first, or take another name")
    if session.scalar(select(Person.id).where(func.lower(Person.name) == name.lower())) is not None:
        raise Conflict(f"{name!r} is the name of a person; take another", code="name_taken")
    if owner is not None and not may(owner.role, role):
        raise Conflict(f"{owner.name} has the role {owner.role}, which may not do what {role} may", code="role")
    secret = new_secret(TOKEN_PREFIX)
    token = _write(session, token, name, role, secret, now_ms, expires_ms)
    token.person_id = None if owner is None else owner.id
    token.models = None if models is None else sorted(set(models))
    token.by_login = by_login
    session.flush()
    return token, secret


def create_by_login(session: Session, person: Person, role: Role, now_ms: int, seconds: int) -> tuple[ApiToken, str]:
    """The token that a person's login by the command line makes, named after them."""
    name = f"{person.name[:48]}.login.{secrets.token_hex(4)}"
    return create(session, name, role, now_ms, now_ms + seconds * 1000, owner=person, by_login=True)


def find(session: Session, name: str) -> ApiToken:
    """Raises `NotFound`."""
    token = session.scalar(select(ApiToken).where(ApiToken.name == name).with_for_update())
    if token is None:
        raise NotFound(f"there is no token {name[:80]!r}")
    return token


def revoke(session: Session, name: str, now_ms: int) -> bool:
    """End a token and the console sessions made with it; False if it was revoked already. Raises `NotFound`."""
    token = find(session, name)
    end_sessions(session, Holder(token_id=token.id))
    if token.revoked_ms is not None:
        return False
    token.revoked_ms = now_ms
    return True


def ensure_file(session: Session, file: Path, name: str, role: Role, now_ms: int) -> str:
    """The secret in `file`; made, without an end, if the file is not there or the database does not know its token.

    A token that somebody revoked stays revoked as long as its file is there.
    """
    secret = file.read_text()[:_MAX_FILE].strip() if file.exists() else ""
    if secret:
        known = session.scalar(select(ApiToken.id).where(ApiToken.secret_hash == secret_hash(secret)))
        if known is not None:
            return secret
    secret = new_secret(TOKEN_PREFIX)
    token = session.scalar(select(ApiToken).where(ApiToken.name == name))
    _write(session, token, name, role, secret, now_ms, None)
    write_durably(file, f"{secret}\n".encode(), 0o600)
    return secret


def _write(
    session: Session, token: ApiToken | None, name: str, role: str, secret: str, now_ms: int, expires_ms: int | None
) -> ApiToken:
    if token is None:
        token = ApiToken(name=name)
        session.add(token)
    else:
        end_sessions(session, Holder(token_id=token.id))
    token.role = role
    token.secret_hash = secret_hash(secret)
    token.created_ms = now_ms
    token.expires_ms = expires_ms
    token.last_used_ms = token.revoked_ms = None
    session.flush()
    return token
