"""From a profile's ranking to the targets of one device."""

from __future__ import annotations

from covey_contract.facts import Facts
from covey_contract.manifest import Runtime, check_target
from covey_profiles.schema import Profile

# Engines are made for one kind of GPU, which their target names.
TIED_TO_GPU = frozenset({Runtime.TENSORRT, Runtime.TENSORRT_RTX})


def ranked_targets(profile: Profile, facts: Facts) -> tuple[str, ...]:
    """All targets of the profile, best first, whatever is installed. Engines for a GPU that the device does not tell are left out."""
    capability = compute_capability(profile, facts)
    ranked = []
    for target in profile.targets:
        if check_target(target)[0] not in TIED_TO_GPU:
            ranked.append(target)
        elif capability is not None:
            ranked.append(f"{target}-sm{capability.replace('.', '')}")
    return tuple(ranked)


def targets_for(profile: Profile, facts: Facts) -> tuple[str, ...]:
    """The targets worth building for this device, best first: those of the ranking whose runtime its facts list as installed."""
    installed = {runtime.name for runtime in facts.runtimes}
    return tuple(target for target in ranked_targets(profile, facts) if str(check_target(target)[0]) in installed)


def compute_capability(profile: Profile, facts: Facts) -> str | None:
    """NVIDIA's SM as "8.7": what the device says, else what every device of its kind has."""
    told = (one.compute_capability for one in facts.accelerators if one.vendor == "nvidia")
    return next((capability for capability in told if capability), None) or profile.compute_capability


def memory_budget_mb(profile: Profile, facts: Facts) -> float:
    """What one model's runner may take on this device. A device that does not tell its memory gets the profile's limit."""
    limit = float(profile.memory.max_mb)
    return min(limit, profile.memory.share * facts.memory_mb) if facts.memory_mb > 0 else limit
