"""The people of a fleet: added, given a role, disabled, and logged in by name and password.

Invariants: whoever asks to log in learns nothing about who is there: an unknown name, a wrong password, a person without one
and a disabled person are told apart by neither words nor time. What a person did stays told under their name, so people are
disabled and never deleted, and a name is never a person's and a pipeline's at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from covey_server.db.engine import Database
from covey_server.db.tables import ApiToken, Person
from covey_server.errors import Conflict, Invalid, NotFound, Unauthorized
from covey_server.people import passwords, throttle
from covey_server.people.roles import PersonRole
from covey_server.people.sessions import Holder, end_sessions

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"


def add(session: Session, name: str, role: PersonRole, by: str, now_ms: int) -> Person:
    """A new person, without a password. Raises `Conflict` if the name is taken, whatever the case of its letters."""
    if session.scalar(select(Person.id).where(func.lower(Person.name) == name.lower())) is not None:
        raise Conflict(f"there is a person {name!r} already")
    if session.scalar(select(ApiToken.id).where(func.lower(ApiToken.name) == name.lower())) is not None:
        raise Conflict(f"{name!r} is the name of a token; take another")
    person = Person(name=name, role=role, created_ms=now_ms, created_by=by[:64])
    session.add(person)
    session.flush()
    return person


def find(session: Session, name: str, *, lock: bool = False) -> Person:
    """Raises `NotFound`."""
    query = select(Person).where(Person.name == name)
    person = session.scalar(query.with_for_update() if lock else query)
    if person is None:
        raise NotFound(f"there is no person {name[:80]!r}")
    return person


def page(session: Session, after: str, limit: int) -> Sequence[Person]:
    return session.scalars(select(Person).where(Person.name > after).order_by(Person.name).limit(limit)).all()


def disable(session: Session, person: Person, now_ms: int) -> None:
    """At once: sessions end, and the person's tokens are good for nothing while they are disabled."""
    if person.disabled_ms is None:
        person.disabled_ms = now_ms
        end_sessions(session, Holder(person_id=person.id))


def new_password(name: str, password: str) -> str:
    """What is to be kept of it, see `set_password`. Raises `Invalid` if it is too weak. Not inside a transaction: it is work."""
    if weak := passwords.weakness(password, name):
        raise Invalid(weak, field="password", code="weak_password")
    return passwords.hashed(password)


def set_password(session: Session, person: Person, kept: str, now_ms: int, *, but: str = "") -> None:
    """`kept` comes from `new_password`. All sessions end but the one whose hash is `but`."""
    person.password, person.password_ms = kept, now_ms
    end_sessions(session, Holder(person_id=person.id), but=but)


def log_out_everywhere(session: Session, person: Person, now_ms: int) -> tuple[int, int]:
    """End all sessions of a person, and revoke the tokens that logins of theirs made; how many of each."""
    ended = end_sessions(session, Holder(person_id=person.id))
    revoked = session.execute(
        update(ApiToken)
        .where(ApiToken.person_id == person.id, ApiToken.by_login.is_(True), ApiToken.revoked_ms.is_(None))
        .values(revoked_ms=now_ms)
        .returning(ApiToken.id)
        .execution_options(synchronize_session=False)
    ).all()
    return ended, len(revoked)


def authenticate(database: Database, name: str, password: str, address: str, now_ms: int) -> Person:
    """The person who has this name and password. Raises `Unauthorized` or, if it was tried too often, `TooMany`.

    Not inside a transaction: the work on the password takes a while.
    """
    with database.session() as session:
        throttle.count_attempt(session, name, address, now_ms)
    with database.reading() as session:
        found = session.scalar(select(Person).where(Person.name == name))
    kept = found.password if found is not None else None
    if not passwords.fits(password, kept) or found is None or kept is None or found.disabled_ms is not None:
        raise Unauthorized("no such name and password", code="bad_login")
    better = passwords.hashed(password) if passwords.outdated(kept) else kept
    with database.session() as session:
        throttle.forgive(session, name, address)
        person = find(session, name, lock=True)
        if person.password != kept or person.disabled_ms is not None:  # changed meanwhile
            raise Unauthorized("no such name and password", code="bad_login")
        person.password, person.last_login_ms = better, now_ms
    return person
