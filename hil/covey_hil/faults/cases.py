"""Runs the cases of the table: each is a test, named by its node in pytest."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET  # noqa: S405  # of pytest's own report
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from covey_hil.faults.table import Case

_LONGEST_S = 1800.0


@dataclass(frozen=True)
class Result:
    """`outcome`: passed, failed or skipped; a case of several parameters has passed when all have."""

    outcome: str
    why: str = ""


def run_cases(root: Path, cases: Sequence[Case], say: Callable[[str], None], workers: int) -> dict[str, Result]:
    """By the cases' names."""
    nodes = list(dict.fromkeys(case.test for case in cases))
    say(f"{len(cases)} cases in {len(nodes)} tests")
    with tempfile.TemporaryDirectory(prefix="covey-cases-") as folder:
        report = Path(folder) / "report.xml"
        spread = ["-n", str(workers), "--dist", "loadfile", "--max-worker-restart=0"]
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *spread, f"--junitxml={report}", *nodes],
            cwd=root,
            stdout=sys.stderr,
            timeout=_LONGEST_S,
            check=False,
        )
        outcomes = list(_outcomes(report)) if report.exists() else []
    return {case.name: _result(case, outcomes) for case in cases}


def _outcomes(report: Path) -> Iterator[tuple[str, Result]]:
    """(node, result) of each test that ran."""
    for element in ET.parse(report).getroot().iter("testcase"):  # noqa: S314
        node = f"{element.get('classname', '').replace('.', '/')}.py::{element.get('name', '')}"
        for kind in ("failure", "error", "skipped"):
            if (found := element.find(kind)) is not None:
                yield node, Result("skipped" if kind == "skipped" else "failed", (found.get("message") or kind)[:300])
                break
        else:
            yield node, Result("passed")


def _result(case: Case, outcomes: Sequence[tuple[str, Result]]) -> Result:
    mine = [result for node, result in outcomes if node == case.test or node.startswith(f"{case.test}[")]
    if not mine:
        return Result("failed", f"{case.test} did not run")
    return min(mine, key=lambda result: ["failed", "skipped", "passed"].index(result.outcome))
