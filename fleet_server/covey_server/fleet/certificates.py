"""How near devices' certificates are to their ends: for the list, the metrics and the log's warning.

A device renews its certificate at two thirds of its life. One that is in its last fourteen days could not, or is away.
"""

from __future__ import annotations

import logging

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session

from covey_contract.strenum import StrEnum
from covey_server.db.tables import Device

log = logging.getLogger(__name__)

_DAY_MS = 86_400_000
WARN_MS = 14 * _DAY_MS
# Of certificates that are given out for less than twelve weeks: their last sixth.
_WARN_SHARE = 6
_NAMED = 10


class CertificateState(StrEnum):
    GOOD = "good"
    ENDING = "ending"
    EXPIRED = "expired"


def warn_ms(days: float) -> int:
    """So long before its end a certificate of so many days is worth a warning."""
    return min(WARN_MS, int(days * _DAY_MS / _WARN_SHARE))


def condition(state: CertificateState, now_ms: int, ahead_ms: int = WARN_MS) -> ColumnElement[bool]:
    ends = Device.certificate_ends_ms
    if state is CertificateState.EXPIRED:
        return ends <= now_ms
    if state is CertificateState.ENDING:
        return and_(ends > now_ms, ends <= now_ms + ahead_ms)
    return ends > now_ms + ahead_ms


def count(session: Session, now_ms: int, ahead_ms: int = WARN_MS) -> dict[CertificateState, int]:
    """Of the devices that are not revoked."""
    mine = Device.revoked_ms.is_(None)
    return {
        state: session.scalar(select(func.count()).select_from(Device).where(mine, condition(state, now_ms, ahead_ms)))
        or 0
        for state in CertificateState
    }


def warn(session: Session, now_ms: int, ahead_ms: int) -> None:
    """Say which certificates end soon, the first to end first."""
    for state, words in (
        (CertificateState.ENDING, "%d devices have certificates that end soon and are not renewed: %s"),
        (
            CertificateState.EXPIRED,
            "%d devices have certificates that have expired: %s; they come back by your approval",
        ),
    ):
        chosen = (Device.revoked_ms.is_(None), condition(state, now_ms, ahead_ms))
        number = session.scalar(select(func.count()).select_from(Device).where(*chosen)) or 0
        if number:
            query = select(Device.id).where(*chosen).order_by(Device.certificate_ends_ms).limit(_NAMED)
            names = ", ".join(session.scalars(query))
            log.warning(words, number, names + (" and others" if number > _NAMED else ""))
