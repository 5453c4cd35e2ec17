"""The table of fault cases: each row is a test that is there, and the page shows the table as it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from covey_hil.faults.page import part, table, write_page
from covey_hil.faults.table import CASES, Case

ROOT = Path(__file__).resolve().parents[3]


def test_there_are_enough_and_no_two_are_the_same() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    assert len({case.test for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_is_a_test(case: Case) -> None:
    path, name = case.test.split("::")
    function = name.partition("[")[0]
    assert re.search(rf"^def {function}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_the_page_shows_the_table() -> None:
    shown = part((ROOT / "docs" / "faults.md").read_text(), "cases")
    assert shown == "\n".join([*table(), ""]), "run ./dev faults --write"


def test_what_was_not_run_leaves_its_figures(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- figures -->\nold\n<!-- /figures -->\n<!-- cases -->\n<!-- /cases -->\n")
    write_page(page, {"points": 0})
    assert part(page.read_text(), "figures") == "old\n"
    assert "power cut" in part(page.read_text(), "cases")
