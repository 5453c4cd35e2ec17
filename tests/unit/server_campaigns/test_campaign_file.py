"""Campaign files: what is read, and that every complaint names line and field."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_server.core.document import DocumentError, parse
from covey_server.core.spec import (
    CampaignSpec,
    Duration,
    LatencyGate,
    parse_duration,
    parse_spec,
    spec_from_json,
    spec_to_json,
)

FILE = """\
name: digits-1.1
model: digits
version: "1.1"
target: {groups: [all]}
exclude: {devices: [], groups: []}
objective: rank
stages:
  - {name: canary, group: canary, soak: 15s}
  - {name: line-a, group: line-a, soak: 10s}
  - {name: rest, percent: 100}
min_reached: 0.5
gates:
  install_failures: {max_rate: 0.1, max_count: 1}
  errors: {max_rate: 0.01, min_requests: 50}
  latency: {quantile: 0.99, max_ratio: 1.5, min_increase_ms: 2, min_requests: 100, measure: end_to_end}
on_breach: rollback
probation: {seconds: 10, max_errors: 3}
assignment_ttl: 7d
"""

# What is changed in the file above, and what is said of it.
BAD = [
    ("soak: 15s", "soak: 15x", "line 8: stages[0].soak: '15x' is not a duration (15s, 10m, 2h, 7d)"),
    ("soak: 15s", "soak: 15", "line 8: stages[0].soak: 15 is not a duration (15s, 10m, 2h, 7d)"),
    ("7d", "366d", "line 18: assignment_ttl: '366d' is longer than a year"),
    ('"1.1"', "1.1", 'line 3: version: 1.1 is a number; write "1.1" in quotes'),
    ("objective:", "objetive:", "line 6: objetive: is not a field known here"),
    ("max_count: 1", "max_cuont: 1", "line 13: gates.install_failures.max_cuont: is not a field known here"),
    ("model: digits\n", "", "line 1: model: is missing"),
    ("{max_rate: 0.01, min", "{min", "line 14: gates.errors.max_rate: is missing"),
    ("percent: 100", "percent: 101", "line 10: stages[2].percent: expected float <= 100.0"),
    ("max_rate: 0.01", "max_rate: high", "line 14: gates.errors.max_rate: expected float, got str"),
    ("max_rate: 0.01", "max_rate: .nan", "line 14: gates.errors.max_rate: expected float >= 0.0"),
    ("on_breach: rollback", "on_breach: explode", "line 16: on_breach: invalid enum value 'explode'"),
    ("model: digits", "model: 'a/b'", "line 2: model: expected str matching regex '^[a-z0-9][a-z0-9._-]{0,63}$'"),
    ("{groups: [all]}", "{}", "line 4: target: names neither groups nor devices"),
    (
        "group: line-a,",
        "group: line-a, count: 3,",
        "line 9: stages[1]: needs exactly one of group, select, percent, count and each; this has group, count",
    ),
    (
        ", percent: 100",
        "",
        "line 10: stages[2]: needs exactly one of group, select, percent, count and each; this has none",
    ),
    ("name: line-a", "name: canary", "line 9: stages[1].name: a stage named 'canary' comes earlier"),
    (
        "  - {name: rest",
        "  - {name: most, percent: 100}\n  - {name: rest",
        "line 11: stages[3].percent: 100 is not more than 100 of an earlier stage",
    ),
    ("min_reached: 0.5", "min_reached: 0.5\nmin_reached: 1", "line 12: min_reached: is given twice"),
    ("{groups: [all]}", "&a {groups: [all]}\nexclude: *a", "line 5: aliases are not allowed; write the value out"),
    ("rollback", "!!python/name:os.system x", "line 16: on_breach: the tag"),
    ("model: digits", "\tmodel: digits", "line 2: not YAML: while scanning"),
    ("stages:", "stages: []\nx:", "line 7: stages: expected array of length >= 1"),
    ("objective: rank", "objective: [[[[[[[[[[[[rank]]]]]]]]]]]]", "line 6: nested deeper than 10 levels"),
]


def test_the_example_is_read_as_written() -> None:
    spec = parse_spec(FILE)
    assert [(stage.name, stage.group, stage.percent, stage.soak.ms) for stage in spec.stages] == [
        ("canary", "canary", None, 15_000),
        ("line-a", "line-a", None, 10_000),
        ("rest", None, 100.0, 0),
    ]
    assert isinstance(spec.gates.latency, LatencyGate)
    assert spec.gates.latency.max_ratio == 1.5
    assert spec.assignment_ttl == Duration(7 * 86_400_000)


def test_only_install_failures_are_judged_unless_a_gate_is_named() -> None:
    spec = parse_spec("name: a\nmodel: m\nversion: v\nstages: [{name: all, percent: 100}]")
    assert spec.target.groups == ("all",)
    assert spec.gates.errors is None
    assert spec.gates.latency is None
    assert spec.gates.install_failures.max_rate == 0.1


@pytest.mark.parametrize(("old", "new", "complaint"), BAD)
def test_every_complaint_names_line_and_field(old: str, new: str, complaint: str) -> None:
    assert old in FILE
    with pytest.raises(DocumentError) as caught:
        parse_spec(FILE.replace(old, new, 1))
    assert str(caught.value).startswith(complaint)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_json_says_the_same_and_names_lines_too(indent: int | str | None) -> None:
    plain = spec_to_json(parse_spec(FILE))
    assert parse_spec(json.dumps(plain, indent=indent), is_json=True) == parse_spec(FILE)
    plain["stages"][1]["soak"] = "soon"
    text = json.dumps(plain, indent="\t")
    line = next(number for number, row in enumerate(text.splitlines(), start=1) if '"soon"' in row)
    with pytest.raises(DocumentError, match=r"stages\[1\].soak: 'soon' is not a duration") as caught:
        parse_spec(text, is_json=True)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("data", "is_json", "complaint"),
    [
        (b"", False, "the document is empty"),
        (b"  \n# nothing\n", False, "the document is empty"),
        (b"- a\n", False, "line 1: a campaign file is a mapping"),
        (b"name: [", False, "line 1: not YAML"),
        (b"a: 1\n---\nb: 2\n", False, "line 2: not YAML"),
        (b"\xff\xfe", False, "line 1: not UTF-8"),
        (b"a: \x00", False, "not YAML"),
        (b'{"name": "a",\n "model" 1}', True, "line 2: not JSON"),
        (b'{"name": NaN}', True, "not JSON: NaN is not a number"),
        (b'{"name": "a", "name": "b"}', True, "line 1: name: is given twice"),
        (b"[" * 60_000, True, "not JSON"),
        (b"[" * 60_000, False, "line 1: nested deeper than 10 levels"),
        (b"a: " + b"9" * 5000, False, "line 1: a:"),
        (b"x" * 70_000, False, "70000 bytes; at most 65536"),
        (b"a: [" + b"1," * 20_000 + b"]", False, "line 1: more than 10000 values"),
        (b"? [a]\n: b\n", False, "line 1: a key must be a plain word"),
    ],
)
def test_what_is_no_document_is_refused_in_words(data: bytes, is_json: bool, complaint: str) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_spec(data, is_json=is_json)
    assert str(caught.value).startswith(complaint)


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_raise_anything_else(data: bytes, is_json: bool) -> None:
    with contextlib.suppress(DocumentError):
        assert isinstance(parse_spec(data, is_json=is_json), CampaignSpec)


@given(st.text(alphabet="{}[]:,-&*!|>'\"#%@\n\t ab1.?", max_size=80))
def test_no_yaml_raises_anything_else(text: str) -> None:
    with contextlib.suppress(DocumentError):
        parse(text)


@given(st.integers(min_value=0, max_value=365 * 86_400_000))
def test_durations_read_back(ms: int) -> None:
    assert parse_duration(str(Duration(ms))).ms == ms


def test_a_spec_reads_back_from_its_json() -> None:
    spec = parse_spec(FILE)
    assert spec_from_json(json.loads(json.dumps(spec_to_json(spec)))) == spec
