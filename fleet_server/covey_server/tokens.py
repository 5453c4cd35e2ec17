"""API tokens: made, found again in files, revoked. Only hashes are in the database.

The server's own two tokens, `admin` for its operator and `worker` for its local build worker, lie in files of the data folder
that only their owner can read: whoever can read them could read the database as well.
"""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from covey_server.api.security import ROLES, TOKEN_PREFIX, Role, new_secret, secret_hash
from covey_server.db.tables import ApiToken, ConsoleSession
from covey_server.errors import Conflict, NotFound
from covey_server.fleet.durable import write_durably

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"
_MAX_FILE = 1024


def is_name(text: str) -> bool:
    return re.fullmatch(NAME_PATTERN, text) is not None


def create(session: Session, name: str, role: Role, now_ms: int, expires_ms: int | None) -> tuple[ApiToken, str]:
    """The new token and its secret. A revoked or expired token's name may be used again; a living one's is a `Conflict`."""
    if role not in ROLES:
        raise ValueError(f"{role!r} is not a role")
    token = session.scalar(select(ApiToken).where(ApiToken.name == name).with_for_update())
    if token is not None and token.revoked_ms is None and (token.expires_ms is None or token.expires_ms > now_ms):
        raise Conflict(f"there is a token {name!r} already; revoke it first, or take another name")
    secret = new_secret(TOKEN_PREFIX)
    return _write(session, token, name, role, secret, now_ms, expires_ms), secret


def revoke(session: Session, name: str, now_ms: int) -> bool:
    """End a token and the console sessions made with it; False if it was revoked already. Raises `NotFound`."""
    token = session.scalar(select(ApiToken).where(ApiToken.name == name).with_for_update())
    if token is None:
        raise NotFound(f"there is no token {name[:80]!r}")
    session.execute(delete(ConsoleSession).where(ConsoleSession.token_id == token.id))
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
        session.execute(delete(ConsoleSession).where(ConsoleSession.token_id == token.id))
    token.role = role
    token.secret_hash = secret_hash(secret)
    token.created_ms = now_ms
    token.expires_ms = expires_ms
    token.last_used_ms = token.revoked_ms = None
    session.flush()
    return token
