"""The profiles as a page for people (docs/profiles.md), so that what is said of them is what is in their files."""

from __future__ import annotations

from collections.abc import Mapping

from covey_profiles.schema import Profile, Rule

_ADDING = """\
## Adding one

One file: `firmware_profiles/covey_profiles/data/ID.toml`, best begun as a copy of its nearest relative. Its fields are those of
`Profile` in `firmware_profiles/covey_profiles/schema.py`; one that is unknown or missing is an error naming file and field. It needs

- `[match]`: the rule; all predicates given must hold. `priority` is 10 for a kind of processor, 50 for a family, 60 and more for a
  family with an accelerator, 100 for one board; two profiles that match a device with the same priority match nothing, and say so.
- `targets`: best first, without `-smNN`, `onnxruntime-int8` and `onnxruntime-fp32` among them as what always works.
- `[[examples]]`: facts as such devices report them (those of an enrolled one stand in `GET /api/v1/devices/ID`).
- `[[sources]]`: for memory, accelerators, runtimes, precision and thermal each at least one: the vendor's page by its title, and its
  date; "edition not recorded" where it could not be seen.

`tests/unit/profiles` checks every file there: its fields, its sources, that each example finds this profile and no other, with no tie
behind it. `./dev docs` writes this page anew.
"""


def page(profiles: Mapping[str, Profile]) -> str:
    """Markdown: a table of all profiles, their sources, and how to add one."""
    ordered = [profiles[name] for name in sorted(profiles)]
    return "\n".join(
        [
            "# Firmware profiles",
            "",
            "Generated from `firmware_profiles/covey_profiles/data` by `./dev docs`.",
            "",
            "A firmware profile is a kind of device. A device has the profile of highest priority whose every predicate holds of the facts",
            "it reports; where none does, it is refused with what it said. Of the builds of a version it gets the one its profile's ranking",
            "(or the campaign's objective) chooses among those that fit: right SM, runtime installed and new enough, within the budgets of",
            "memory, storage and accuracy. `covey device why DEVICE MODEL` prints the choice and why every other build lost.",
            "",
            f"{len(ordered)} profiles. The memory budget is what one model's runner may take, the storage budget what the files of one build may.",
            "Swap: whether the new build warms up beside the old one. Thermal: slows itself down from / too hot to be trusted at. Objective: the",
            "median answer of a model made for this kind of device.",
            "",
            "| profile | matches | targets, best first | memory | storage | swap | thermal | objective |",
            "|---|---|---|---|---|---|---|---|",
            *(_row(profile) for profile in ordered),
            "",
            "TensorRT targets get `-smNN` from the device's facts, or from the profile where every device of the kind has the same.",
            "",
            "## Sources",
            "",
            *(line for profile in ordered for line in _section(profile)),
            _ADDING,
        ]
    )


def _row(profile: Profile) -> str:
    cells = (
        f"`{profile.id}`<br>{profile.title}",
        _rule(profile.rule),
        "<br>".join(f"`{target}`" for target in profile.targets),
        f"{profile.memory.share:.0%}, at most {profile.memory.max_mb:,} MB",
        f"{profile.storage.build_mb:,} MB",
        str(profile.swap),
        f"{profile.thermal.throttle_c:g} / {profile.thermal.limit_c:g} °C",
        f"{profile.latency_objective_ms:g} ms",
    )
    return f"| {' | '.join(cells)} |"


def _rule(rule: Rule) -> str:
    said = [" or ".join(f"`{name}`" for name in rule.architectures)]
    said += [
        f"{what} {_pattern(text)}" for what, text in (("board", rule.board), ("processor", rule.cpu_model)) if text
    ]
    if rule.accelerator is not None:
        words = [rule.accelerator.vendor or "any", rule.accelerator.kind]
        words += [_pattern(rule.accelerator.name)] if rule.accelerator.name else []
        words += [f"SM {rule.accelerator.compute_capability}"] if rule.accelerator.compute_capability else []
        said.append(" ".join(words))
    return "<br>".join([*said, f"priority {rule.priority}"])


def _pattern(text: str) -> str:
    """A regular expression in a cell of a table, where a bar would end the cell even inside code."""
    return f"`{text}`".replace("|", "\\|")


def _section(profile: Profile) -> list[str]:
    sm = f" SM {profile.compute_capability}." if profile.compute_capability else ""
    return [
        f"### {profile.title}",
        "",
        f"`{profile.id}`.{sm} {profile.notes}".strip(),
        "",
        *(f"- {', '.join(source.says)}: {source.page}; {source.date}" for source in profile.sources),
        "",
    ]
