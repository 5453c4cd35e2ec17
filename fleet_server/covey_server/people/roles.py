"""Roles as data: what each may do, and what is left where a token's role and its owner's meet.

Every role of people includes viewer, and admin includes all. Operator and approver stand side by side: who runs campaigns does
not approve them. `worker` is for build workers alone.

>>> may("admin", "approver"), may("operator", "approver")
(True, False)
>>> common("admin", "operator"), common("operator", "approver"), common("worker", "viewer")
('operator', 'viewer', None)
"""

from __future__ import annotations

from typing import Literal

Role = Literal["viewer", "operator", "approver", "admin", "worker"]
PersonRole = Literal["viewer", "operator", "approver", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "approver", "admin", "worker")
PERSON_ROLES: tuple[PersonRole, ...] = ("viewer", "operator", "approver", "admin")
_MAY: dict[str, frozenset[str]] = {
    "viewer": frozenset({"viewer"}),
    "operator": frozenset({"viewer", "operator"}),
    "approver": frozenset({"viewer", "approver"}),
    "admin": frozenset(ROLES),
    "worker": frozenset({"worker"}),
}


def may(role: str, needed: Role) -> bool:
    """Whether somebody with `role` may do what `needed` may."""
    return needed in _MAY.get(role, frozenset())


def common(first: str, second: str) -> Role | None:
    """The role that may do what both may; None if they have nothing in common."""
    shared = _MAY.get(first, frozenset()) & _MAY.get(second, frozenset())
    return next((role for role in ROLES if _MAY[role] == shared), None)
