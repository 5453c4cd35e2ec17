"""Whether a device can take a build at all; if not, the first reason why, in words."""

from __future__ import annotations

import re

from covey_contract.errors import DecodeError
from covey_contract.facts import Facts
from covey_contract.manifest import Runtime, check_target
from covey_profiles.candidate import Candidate
from covey_profiles.figures import apart
from covey_profiles.schema import Profile
from covey_profiles.targets import compute_capability, memory_budget_mb, ranked_targets

BUILT = "built"
CHECKED = "checked"


def unfit(profile: Profile, facts: Facts, candidate: Candidate) -> str | None:
    """Why the device cannot take this build; None if it can.

    What can never change comes first, so that nobody waits for a build that would not help: that it was but a check, the
    hardware, the runtime, then whether it is built, then its sizes.
    """
    try:
        runtime, _ = check_target(candidate.target)
    except DecodeError as error:
        return str(error)
    return (
        _only_checked(candidate)
        or _wrong_gpu(profile, facts, candidate)
        or _not_ranked(profile, facts, candidate)
        or _no_runtime(facts, candidate, runtime)
        or _not_built(candidate)
        or _too_large(profile, facts, candidate)
        or _too_inaccurate(candidate)
    )


def _only_checked(candidate: Candidate) -> str | None:
    if candidate.state != CHECKED:
        return None
    return "only checked: the graph is fit for this target, but what was built was not run, so it is not released"


def _wrong_gpu(profile: Profile, facts: Facts, candidate: Candidate) -> str | None:
    named = re.search(r"-sm(\d+)(\d)$", candidate.target)
    needed = f"{named[1]}.{named[2]}" if named else candidate.compute_capability
    if candidate.architecture not in (None, facts.architecture):
        return f"wrong architecture: built for {candidate.architecture}, this device is {facts.architecture}"
    if needed is None:
        return None
    there = compute_capability(profile, facts)
    if there is None:
        return f"wrong SM: built for {needed}, this device tells of no NVIDIA GPU"
    for built_for in (needed, candidate.compute_capability):
        if built_for not in (None, there):
            return f"wrong SM: built for {built_for}, this device has {there}"
    return None


def _not_ranked(profile: Profile, facts: Facts, candidate: Candidate) -> str | None:
    if candidate.target in ranked_targets(profile, facts):
        return None
    return f"not for this kind of device: {profile.id} does not rank {candidate.target}"


def _no_runtime(facts: Facts, candidate: Candidate, runtime: Runtime) -> str | None:
    installed = {one.name: one.version for one in facts.runtimes}
    version = installed.get(str(runtime))
    if version is None:
        return f"runtime missing: {runtime} is not installed (there is: {', '.join(sorted(installed)) or 'none'})"
    exact, least = candidate.runtime_exact, candidate.runtime_min
    if exact is not None and version_key(version) != version_key(exact):
        return f"runtime of another version: {runtime} {version}, needs exactly {exact}"
    if least is not None and version_key(version) < version_key(least):
        return f"runtime too old: {runtime} {version} < {least}"
    return None


def _not_built(candidate: Candidate) -> str | None:
    if candidate.state == BUILT:
        return None
    if candidate.state == "queued":
        return f"not built yet: {candidate.waiting_for or 'in the queue'}"
    if candidate.state == "building":
        return "not built yet: being built"
    return f"{candidate.state}: {candidate.detail}" if candidate.detail else candidate.state


def _too_large(profile: Profile, facts: Facts, candidate: Candidate) -> str | None:
    budget = memory_budget_mb(profile, facts)
    if candidate.memory_mb is not None and candidate.memory_mb > budget:
        return f"over memory: {_over(candidate.memory_mb, budget)}, this device's budget"
    files_mb, limit = candidate.size / 1e6, profile.storage.build_mb
    if files_mb > limit:
        return f"over storage: {_over(files_mb, limit)}, the profile's budget for the files of a build"
    return None


def _too_inaccurate(candidate: Candidate) -> str | None:
    accuracy = candidate.accuracy
    if accuracy is None or accuracy.drop <= accuracy.budget:
        return None
    return "over accuracy budget: {} drops by {} > {}".format(accuracy.metric, *apart(accuracy.drop, accuracy.budget))


def _over(mb: float, budget: float) -> str:
    return "{} MB > {} MB".format(*apart(mb, budget))


def version_key(version: str) -> tuple[int, ...]:
    """For comparing versions; trailing zeros and whatever follows the numbers do not count.

    >>> version_key("10.3.0.26+cuda12") > version_key("10.3"), version_key("1.20.0") == version_key("1.20")
    (True, True)
    """
    numbers = re.match(r"\d+(\.\d+)*", version)
    key = [int(part) for part in numbers[0].split(".")] if numbers else []
    while key and key[-1] == 0:
        key.pop()
    return tuple(key)
