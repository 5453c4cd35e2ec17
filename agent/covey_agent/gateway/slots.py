"""Which builds of one model are held, and which of them serves: pure state, one transition per order or loss.

Every transition returns new `Slots`; whatever build the old one held and the new one does not (`dropped`) is to be ended by
the caller. Invariants: the three slots never hold the same build; `previous` is only there in probation.

>>> slots = Slots().with_candidate("a").switched("a", None).with_candidate("b").switched("b", Probation())
>>> slots.active, slots.previous, slots.reverted().active
('b', 'a', 'a')
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from covey_contract.messages import Probation


class SlotError(Exception):
    """The order does not fit what is loaded."""


@dataclass(frozen=True)
class Slots:
    active: str | None = None
    previous: str | None = None
    candidate: str | None = None
    probation: Probation | None = None  # of `active`; None: it is trusted
    first: bool = False  # in probation without there ever having been a previous build

    @property
    def builds(self) -> frozenset[str]:
        return frozenset(build for build in (self.active, self.previous, self.candidate) if build is not None)

    def dropped(self, after: Slots) -> frozenset[str]:
        return self.builds - after.builds

    def with_candidate(self, build: str) -> Slots:
        """`build` is being loaded or is ready; a candidate before it is given up."""
        if build in (self.active, self.previous):
            return self
        return replace(self, candidate=build)

    def switched(self, build: str, probation: Probation | None) -> Slots:
        """`build` serves. With a probation the build before stays as `previous`, without one it is given up."""
        if build == self.active:
            return self
        if build not in (self.candidate, self.previous):
            raise SlotError(f"build {build[:12]} is not loaded")
        candidate = None if build == self.candidate else self.candidate
        previous = self.active if probation is not None else None
        first = probation is not None and previous is None
        return Slots(active=build, previous=previous, candidate=candidate, probation=probation, first=first)

    def settled(self) -> Slots:
        return replace(self, previous=None, probation=None, first=False)

    def reverted(self) -> Slots:
        """The previous build serves again; none does if there is no previous."""
        if self.active is None:
            raise SlotError("no build is active")
        return replace(self, active=self.previous, previous=None, probation=None, first=False)

    @property
    def may_revert(self) -> bool:
        """Whether `active` is given up when it fails, rather than started anew: there is a build to go back to, or it has
        never been trusted. Where the previous build is lost, a doubtful build is still better than none."""
        return self.probation is not None and (self.previous is not None or self.first)

    def without(self, build: str | None) -> Slots:
        """The runner of `build` is gone or to be ended (None: of every build)."""
        if build is None:
            return Slots()
        if build == self.active:
            return replace(self, active=None, previous=None, probation=None, first=False, candidate=self.candidate)
        return replace(
            self,
            previous=None if build == self.previous else self.previous,
            candidate=None if build == self.candidate else self.candidate,
        )
