"""Builds and inspections as people read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table

from covey_contract.building import BuildReport, Outcome
from covey_converters.inspection import Inspection


def table(reports: Sequence[BuildReport]) -> Table:
    """Without borders: a line per build, readable in a terminal of 80 columns and in a log."""
    found = Table(
        "target", "outcome", "kB", "accuracy (drop)", "p50 ms", "source", "MB", "s", box=None, padding=(0, 2, 0, 0)
    )
    for column in found.columns:
        column.no_wrap = True
    for report in reports:
        latency, source = report.latency, report.source_latency
        found.add_row(
            report.target,
            report.outcome.value,
            f"{report.size / 1e3:.1f}" if report.size else "-",
            quality(report),
            f"{latency.p50_ms:.3f}" if latency else "-",
            f"{source.p50_ms:.3f}" if source else "-",
            f"{latency.peak_rss_mb:.0f}" if latency else "-",
            f"{report.seconds:.1f}",
        )
    return found


def quality(report: BuildReport) -> str:
    """Accuracy with its drop, or how often the build agrees with the source."""
    if report.accuracy is not None:
        return f"{report.accuracy.build:.4f} ({report.accuracy.drop:+.4f})"
    agreement = next((one.top1_agreement for one in report.parity.values() if one.top1_agreement is not None), None)
    return "-" if agreement is None else f"agrees {agreement:.1%}"


def totals(reports: Sequence[BuildReport]) -> str:
    """How many came to what; a check is neither a build nor a failure, and the words say so."""
    built = sum(report.outcome is Outcome.BUILT for report in reports)
    checked = sum(report.outcome is Outcome.CHECKED for report in reports)
    words = [f"{built} built"]
    if checked:
        words.append(f"{checked} checked (fit for the target; nothing is released)")
    if len(reports) > built + checked:
        words.append(f"{len(reports) - built - checked} not built")
    return f"{', '.join(words)}, of {len(reports)} asked for"


def inspection(source: str, found: Inspection) -> Iterator[str]:
    """Line by line."""
    cleaned = f"{found.nodes} nodes ({found.nodes_after_cleaning} after cleaning)"
    yield (
        f"{source}: {found.format}, opset {found.opset}, {cleaned}, {found.parameters} parameters, {found.size} bytes"
    )
    for kind, specs in (("input", found.inputs), ("output", found.outputs)):
        for spec in specs:
            yield f"  {kind} {spec.name}: {spec.datatype.value} {list(spec.shape)}"
    for name, dimensions in found.dynamic.items():
        yield f"  open dimensions of {name}: {', '.join(dimensions)}"
    yield f"  custom operators: {', '.join(found.custom_operators) or 'none'}"
    yield f"  operators: {', '.join(f'{name} x{count}' for name, count in found.operators.items())}"
    for what, count in found.samples.items():
        yield f"  {what}: {count} samples"
    for note in found.notes:
        yield f"  note: {note}"
