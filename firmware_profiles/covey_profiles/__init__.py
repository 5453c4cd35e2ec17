"""Kinds of edge device as data, matching and build selection. Pure: facts and candidates in, a decision and its reasons out."""

from covey_profiles.candidate import Candidate
from covey_profiles.loading import ProfileError, load_profiles, read_profile
from covey_profiles.matching import Match, match
from covey_profiles.schema import Profile
from covey_profiles.selection import OBJECTIVES, Choice, Objective, select
from covey_profiles.targets import memory_budget_mb, ranked_targets, targets_for

__version__ = "0.1.0"

__all__ = [
    "OBJECTIVES",
    "Candidate",
    "Choice",
    "Match",
    "Objective",
    "Profile",
    "ProfileError",
    "load_profiles",
    "match",
    "memory_budget_mb",
    "ranked_targets",
    "read_profile",
    "select",
    "targets_for",
]
