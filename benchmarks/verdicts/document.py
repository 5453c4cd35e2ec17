"""`python -m benchmarks.verdicts.document [RESULTS]`: writes a run's figures into docs/verdicts.md, between its marks, and draws the plots
(see `plots`)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.verdicts import plots
from benchmarks.verdicts.figures import OURS
from benchmarks.verdicts.plots import NAMES, RESULTS, ROOT

PAGE = ROOT / "docs" / "verdicts.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

COLUMNS = (
    ("nothing changed", "false_halt_rate"),
    ("all +10 %, 50", "detected_10pct_whole"),
    ("tail +10 %, 50", "detected_10pct_tail"),
    ("one kind +20 %, 50", "detected_20pct_one_kind"),
    ("all +20 %, 10", "detected_20pct_p99_10canaries"),
    ("errors × 10, 50", "detected_errors_x10"),
)
BEYOND = {
    "unchanged_with_outages": "nothing changed; devices go off and come back",
    "crash_10pct": "one in ten canaries crashes and falls silent",
    "crash_30pct": "three in ten of 10 canaries crash and fall silent",
    "unchanged_late_reports": "nothing changed; a third report late",
    "whole_10pct_late_reports": "all +10 %; a third report late",
    "unchanged_staggered": "nothing changed; swaps over half an hour",
    "whole_10pct_staggered": "all +10 %; swaps over half an hour",
    "unchanged_warm_up": "nothing changed; 30 % slower at first, half-life 1.4 min, burn-in 5 min",
    "unchanged_whole_sites_as_devices": "nothing changed; canaries are 5 whole sites, taken as if they were not",
    "unchanged_whole_sites": "nothing changed; canaries are 5 whole sites, sites as units",
    "whole_20pct_whole_sites": "all +20 %; canaries are 5 whole sites, sites as units",
}


def page(text: str, result: dict[str, Any]) -> str:
    """The page with the figures in place of those between its marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n\n" + figures(result) + "\n" + END + rest.split(END)[1]


def figures(result: dict[str, Any]) -> str:
    counts = f"{result['fleets']} fleets, {result['false_halt_rate']['of']} campaigns in which nothing changed"
    lines = [
        f"Of {counts}; of each kind of change, {result['detected_10pct_whole']['of']} campaigns. Share of campaigns halted, in brackets the",
        "95 % interval (Wilson); changes count if they are found in time (10 min for +10 %, 15 for +20 %, 5 for errors).",
        "",
        "| rule | " + " | ".join(title for title, _ in COLUMNS) + " | median minutes |",
        "|---|" + "---|" * (len(COLUMNS) + 1),
    ]
    for rule, found in {OURS: result, **result["rules"]}.items():
        mark = "**" if rule == OURS else ""
        cells = [_cell(found[key]) for _, key in COLUMNS]
        minutes = found["median_minutes_to_detect"]
        lines.append(
            f"| {mark}{NAMES[rule]}{mark} | " + " | ".join(cells) + f" | {'' if minutes is None else f'{minutes:g}'} |"
        )
    harsh = result["harsh_fleet"]
    lines.append(
        f"| Covey on a harsher fleet ({harsh['false_halt_rate']['of']} unchanged) | "
        + " | ".join(_cell(harsh[key]) for _, key in COLUMNS)
        + f" | {_minutes(harsh['median_minutes_to_detect'])} |"
    )
    by = result["false_halts_by_canaries"]
    lines += [
        "",
        "Covey's false halts by number of canaries: "
        + ", ".join(f"{count}: {_cell(share)}" for count, share in by.items())
        + ". "
        "With 10 canaries a shift of 10 % is found within 15 minutes in "
        + _cell(result["detected_10pct_p99_10canaries"])
        + ", a tail slower by 20 % in "
        + _cell(result["detected_20pct_tail_10canaries"])
        + ", errors × 10 within 5 in "
        + _cell(result["detected_errors_x10_10canaries"])
        + ". Of the single kinds (35, 30, 20 and 15 % of the fleet), +20 % is found in "
        + ", ".join(_cell(share) for share in result["one_kind_20pct_by_kind"].values())
        + ".",
        "",
        "What the study left out (ours alone):",
        "",
        "| campaign | canaries | halted | within 15 min | median minutes |",
        "|---|---|---|---|---|",
    ]
    for name, title in BEYOND.items():
        found = result["beyond_the_study"].get(name)
        if found is None:
            continue
        if "false_halt_rate" in found:
            lines.append(f"| {title} | {found['canaries']} | {_cell(found['false_halt_rate'])} wrongly | | |")
        else:
            in_time, ever = found["detected_in_15_min"], found["detected_in_30_min"]
            lines.append(
                f"| {title} | {found['canaries']} | {_cell(ever)} within 30 min | {_cell(in_time)} | {_minutes(found['median_minutes'])} |"
            )
    lines += [
        "",
        "Installs, a group of 50, exact: share of groups halted at a true failure rate of",
        "",
        "| rule | 1 % | 5 % | 20 % |",
        "|---|---|---|---|",
    ]
    for rule, rates in result["installs"].items():
        lines.append(
            f"| {rule.replace('_', ' ')} | "
            + " | ".join(f"{share:.2%}".replace("%", " %") for share in rates.values())
            + " |"
        )
    lines += [
        "",
        "![campaigns halted wrongly](images/verdicts-unchanged.svg)",
        "![campaigns halted rightly](images/verdicts-tail.svg)",
    ]
    return "\n".join(lines) + "\n"


def _cell(share: dict[str, Any]) -> str:
    return f"{share['rate'] * 100:.1f} % ({share['low'] * 100:.1f}–{share['high'] * 100:.1f})"


def _minutes(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def main() -> int:
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    PAGE.write_text(page(PAGE.read_text(), json.loads(results.read_text())))
    plots.draw(results, plots.IMAGES)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
