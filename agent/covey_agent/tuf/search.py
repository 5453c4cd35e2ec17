"""The search for a target through its delegations: depth first, in the order that each delegator gives, trusted most first.

Pure: it says which role it needs next, and is shown that role's metadata.

>>> search = Search("models/digits/1.0/openvino-int8")
>>> search.next()
('targets', 'root')
"""

from __future__ import annotations

from tuf.api.metadata import TargetFile, Targets

from covey_agent.tuf.trusted import ROOT, TARGETS

MAX_ROLES = 64


class Search:
    """`next` names a role and its delegator; `visit` looks into it. No role is visited twice, and not more than `limit` are
    (specification 5.6.7)."""

    def __init__(self, path: str, limit: int = MAX_ROLES) -> None:
        self._path = path
        self._limit = limit
        self._stack = [(TARGETS, ROOT)]
        self._visited: set[str] = set()

    def next(self) -> tuple[str, str] | None:
        """The (role, delegator) to be looked into; None: the target is not to be found."""
        while self._stack and len(self._visited) < self._limit:
            role, delegator = self._stack.pop()
            if role not in self._visited:
                self._visited.add(role)
                return role, delegator
        return None

    def visit(self, role: str, targets: Targets) -> TargetFile | None:
        """The target, if this role has it; otherwise its delegations join the search."""
        found = targets.targets.get(self._path)
        if found is not None or targets.delegations is None:
            return found
        children: list[tuple[str, str]] = []
        for child, terminating in targets.delegations.get_roles_for_target(self._path):
            children.append((child, role))
            if terminating:
                self._stack.clear()
                break
        self._stack.extend(reversed(children))
        return None
