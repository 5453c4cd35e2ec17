"""The gates' part of a campaign file, and the conditions that people write in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_server.core.document import DocumentError
from covey_server.core.spec import parse_spec, spec_from_json, spec_to_json
from covey_server.core.spec.expression import FIGURES, MAX_LENGTH, parse_condition
from covey_server.core.spec.gates import Gates, LatencyGate

FILE = """\
name: digits-1.1
model: digits
version: "1.1"
stages:
  - {{name: all, percent: 100}}
gates:
{gates}
"""
EVERYTHING = """\
  evidence: {alpha: 0.02, confidence: 0.9, min_canaries: 20, min_controls: 40, max_controls: 100, min_devices: 15, min_requests: 1000, burn_in: 5m}
  install_failures: {base_rate: 0.02, max_count: 5, min_devices: 10, method: auto}
  errors: {max_rate: 0.01, method: e_process}
  latency:
    - {quantile: 0.5, max_ratio: 1.05}
    - {quantile: 0.99, measure: compute, pass_below: 1.1, method: threshold}
  drift: {output: scores, max_psi: 0.25}
  temperature: {max_c: 85, max_rise_c: 8}
  throttling: {max_share: 0.05}
  memory: {max_mb: 900, max_ratio: 1.3}
  silence: {after: 3m, max_share: 0.05}
  expressions:
    - {name: hot-and-slow, bad: "temperature_c > 80 and p99_ms > 1.2 * before.p99_ms", max_share: 0.2}"""


def gates(text: str) -> Gates:
    return parse_spec(FILE.format(gates=text)).gates


def test_every_gate_can_be_written_down_and_read_back() -> None:
    spec = parse_spec(FILE.format(gates=EVERYTHING))
    assert spec_from_json(spec_to_json(spec)) == spec
    assert [name for name, _ in spec.gates.latencies] == ["latency_p50", "latency_p99_compute"]
    assert spec.gates.evidence.burn_in is not None
    assert spec.gates.evidence.burn_in.ms == 300_000
    assert spec.gates.silence is not None
    assert spec.gates.silence.after.ms == 180_000


def test_a_single_latency_gate_goes_by_its_old_name() -> None:
    assert gates("  latency: {quantile: 0.9}").latencies == (("latency", LatencyGate(quantile=0.9)),)
    assert gates("  errors: {max_rate: 0.01}").latencies == ()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("  latency: {quantil: 0.9}", "line 7: gates.latency.quantil: is not a field known here"),
        ("  latency: {method: magic}", "line 7: gates.latency.method: invalid enum value 'magic'"),
        ("  evidence: {alpha: 0.5}", "line 7: gates.evidence.alpha: expected float <= 0.2"),
        ("  evidence:\n    burn_in: 5", "line 8: gates.evidence.burn_in: 5 is not a duration (15s, 10m, 2h, 7d)"),
        (
            "  latency:\n    - {quantile: 0.9}\n    - {quantile: 0.9}",
            "line 6: gates: latency: two gates are called latency_p90",
        ),
        (
            '  expressions:\n    - {name: a, bad: "p99_ms > 1"}\n    - {name: b, bad: "p98_ms > 1"}',
            "line 9: gates.expressions[1]: bad: p98_ms is no figure; known are requests, error_rate",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(DocumentError) as refused:
        gates(text)
    assert str(refused.value).startswith(complaint)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("p99_ms", "is a number"),
        ("1 > 2", "names no figure"),
        ("p99_ms >", "is no condition"),
        ("p99_ms > 'x'", "'x' is no number"),
        ("p99_ms > 1e400", "inf is too large"),
        ("p99_ms > True", "True is no number"),
        ("p99_ms == 3", "not allowed"),
        ("p99_ms ** 9 > 1", "not allowed"),
        ("p99_ms // 2 > 1", "not allowed"),
        ("(lambda: p99_ms)() > 1", "not allowed"),
        ("__import__('os').system('x') > p99_ms", "not allowed"),
        ("p99_ms.real > 1", "not known"),
        ("before.drift > 1", "not known"),
        ("before.before.p99_ms > 1", "not allowed"),
        ("open(p99_ms) > 1", "not allowed"),
        ("min() > p99_ms", "two numbers or more"),
        ("abs(1, 2) > p99_ms", "one number"),
        ("max(*[p99_ms], 2) > 1", "not allowed"),
        ("[p99_ms] > 1", "not allowed"),
        ("p99_ms if p99_ms else p99_ms > 1", "not allowed"),
        ("p99_ms > 1\np99_ms > 2", "is no condition"),
        (" and ".join(["p99_ms > 1"] * 30), "characters"),
        ("+".join(["p99_ms"] * 40) + ">1", "parts"),
        ("(" * 250 + "p99_ms > 1" + ")" * 250, "characters"),
        ("\0p99_ms > 1", "is no condition"),
    ],
)
def test_a_condition_is_a_small_language(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_condition(text)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("p99_ms > 10", True),
        ("10 < p99_ms <= 12", True),
        ("p99_ms > 2 * before.p99_ms", False),
        ("p99_ms / before.p99_ms >= 1.2", True),
        ("not p99_ms > 10", False),
        ("max(p99_ms, 50) > 40 and min(p99_ms, 50) < 40 and abs(-p99_ms) > 3", True),
        ("temperature_c > 80", None),
        ("temperature_c > 80 or p99_ms > 10", True),
        ("temperature_c > 80 and p99_ms > 100", False),
        ("temperature_c > 80 or p99_ms > 100", None),
        ("p99_ms / (before.p99_ms - before.p99_ms) > 1", None),
        ("p99_ms - 12 + 1 > 0.5", True),
    ],
)
def test_a_condition_holds_or_not_or_is_unknown(text: str, holds: bool | None) -> None:
    assert parse_condition(text).holds({"p99_ms": 12.0}, {"p99_ms": 10.0}) is holds


@given(st.text(alphabet="p9_mserob.()<>+-*/ andort0123456789", max_size=MAX_LENGTH))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        condition = parse_condition(text)
    except ValueError:
        return
    figures = dict.fromkeys(FIGURES, 1.0)
    assert condition.holds(figures, figures) in {True, False, None}
