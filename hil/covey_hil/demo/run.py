"""Runs the story, tells how it ended, and keeps the console up until Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from covey_client.api import ClientError
from covey_hil.demo.narrator import Narrator, print_json
from covey_hil.demo.story import Story
from covey_hil.fleet import LocalServer
from covey_hil.processes import ProcessError


def run_demo(home: Path, port: int, *, stay: bool, as_json: bool, kill: str | None) -> int:
    """0 if the story ended as it must: all devices on the right version, nothing failed, nothing wrong, the bad version taken back."""
    narrator = Narrator()
    story = Story(home, port, narrator, kill=kill)
    _end_politely()
    try:
        try:
            record = story.run()
        except (ProcessError, ClientError):
            narrator.say(f"[red]the story broke off; the logs are in {home / 'logs'}[/red]")
            raise
        _conclude(narrator, record)
        if as_json:
            print_json(json.dumps(record, indent=2))
        if stay:
            narrator.say(f"The console stays up at [bold]{story.login_address()}[/bold] — Ctrl-C ends everything")
            threading.Event().wait()
        return 0 if good(record, killed=kill) else 1
    finally:
        story.close()


@contextlib.contextmanager
def after_story(home: Path, port: int) -> Iterator[LocalServer]:
    """The server as the story leaves it, with its devices; all of it ends with the context."""
    story = Story(home, port, Narrator())
    _end_politely()
    try:
        story.run()
        yield story.server
    finally:
        story.close()


def _end_politely() -> None:
    """A service manager's SIGTERM closes everything that was started, as Ctrl-C does; also where a shell has started us in the
    background, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


def good(record: dict[str, Any], *, killed: str | None) -> bool:
    """Whether the record shows what Covey promises. A killed gateway or runner may cost the requests it held in its hands."""
    return (
        record["devices_on_target"] == record["devices"]
        and (record["failed_requests"] == 0 or killed in {"gateway", "runner"})
        and record["wrong_answers"] == 0
        and record["rolled_back"]
    )


def _conclude(narrator: Narrator, record: dict[str, Any]) -> None:
    narrator.chapter("What it came to")

    def milliseconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    rows = [
        [
            swap["device"],
            swap["from"],
            swap["to"],
            *(
                f"{milliseconds(swap[f'p50_ms_{when}'])} / {milliseconds(swap[f'p99_ms_{when}'])}"
                for when in ("before", "during", "after")
            ),
        ]
        for swap in record["swaps"]
    ]
    narrator.table(
        "Swaps under load, p50 / p99 in ms as callers saw it",
        ["device", "from", "to", "before", "during", "after"],
        rows,
    )
    narrator.table("Why this build", ["device", "choice"], [[device, why] for device, why in record["why"].items()])
    narrator.say(
        f"{record['requests']} requests, [bold]{record['failed_requests']} failed[/bold], {record['wrong_answers']} wrong answers "
        f"({record['misread_answers']} images misread, as measured at build time)"
    )
    narrator.say(
        f"bad version rolled back: {record['rolled_back']}; {record['halt_to_restored_s']} s from halt to the last device restored; "
        f"{record['bytes_moved']:,} bytes of builds moved; {record['devices_on_target']} of {record['devices']} devices on 1.1; "
        f"{record['seconds']} s in all"
    )
