"""Which profile a device has: the most specific one whose every predicate holds of its facts. Nothing is guessed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from covey_contract.facts import Accelerator, Facts
from covey_profiles.schema import AcceleratorRule, Profile, Rule


@dataclass(frozen=True)
class Match:
    """`reason` says, for people, what matched and what else would have, or why nothing does."""

    profile: Profile | None
    reason: str


def match(facts: Facts, profiles: Mapping[str, Profile]) -> Match:
    """The profile of highest priority that matches. Two of the same priority are a tie, and a tie matches nothing."""
    found = [(profile, held) for profile in profiles.values() if (held := _holds(profile.rule, facts)) is not None]
    if not found:
        return Match(None, f"no profile matches: {_said(facts)}")
    found.sort(key=lambda pair: (-pair[0].rule.priority, pair[0].id))
    best, held = found[0]
    tied = [profile.id for profile, _ in found if profile.rule.priority == best.rule.priority]
    if len(tied) > 1:
        return Match(None, f"{' and '.join(tied)} match alike; one of them needs a higher priority")
    also = [profile.id for profile, _ in found[1:]]
    return Match(best, f"{'; '.join(held)}" + (f"; more specific than {', '.join(also)}" if also else ""))


def _holds(rule: Rule, facts: Facts) -> list[str] | None:
    """What of the rule was met, in words; None if anything was not."""
    if facts.architecture not in rule.architectures:
        return None
    held = [f"architecture {facts.architecture}"]
    for what, pattern, text in (("board", rule.board, facts.board), ("processor", rule.cpu_model, facts.cpu_model)):
        if pattern is None:
            continue
        if not re.search(pattern, text):
            return None
        held.insert(0, f"{what} {text[:80]!r}")
    if rule.accelerator is not None:
        accelerator = next((one for one in facts.accelerators if _fits(rule.accelerator, one)), None)
        if accelerator is None:
            return None
        held.append(f"{accelerator.vendor} {accelerator.kind} {accelerator.name}".strip())
    return held


def _fits(rule: AcceleratorRule, accelerator: Accelerator) -> bool:
    return (
        accelerator.kind == rule.kind
        and rule.vendor in (None, accelerator.vendor)
        and rule.compute_capability in (None, accelerator.compute_capability)
        and (rule.name is None or re.search(rule.name, accelerator.name) is not None)
    )


def _said(facts: Facts) -> str:
    """What a device said of itself, as far as rules look at it."""
    accelerators = ", ".join(f"{one.vendor} {one.kind}" for one in facts.accelerators[:8]) or "no accelerators"
    return f"architecture {facts.architecture[:40]!r}, board {facts.board[:80]!r}, processor {facts.cpu_model[:80]!r}, {accelerators}"
