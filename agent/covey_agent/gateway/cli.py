"""The gateway's command line: `python -m covey_agent.gateway --run-dir DIR --port N`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from covey_agent.gateway.app import StartError, serve
from covey_agent.gateway.budget import BudgetError, Budgets
from covey_agent.gateway.budget import parse as parse_budget
from covey_agent.gateway.settings import Limits, Sampling, Settings

# As everywhere in Covey: another process has what this one needs.
EXIT_CANNOT_START = 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="covey-gateway", description="Covey's local inference endpoint.")
    parser.add_argument(
        "--run-dir", type=Path, required=True, help="folder of the sockets gateway.sock and inference.sock"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address for HTTP (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8600, help="port for HTTP; 0: any free one (default: %(default)s)")
    parser.add_argument("--socket", type=Path, help="path of the Unix socket for applications (in the run folder)")
    parser.add_argument("--threads", type=int, default=1, help="compute threads of each runner (default: %(default)s)")
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="MODEL:KEY=VALUE,…",
        help="what a model's runners may take, such as digits:memory=600,cpus=1.5,priority=high,threads=2; * is every other model",
    )
    parser.add_argument("--queue", type=int, default=Limits.queue, help="requests that may wait (default: %(default)s)")
    parser.add_argument(
        "--deadline-s", type=float, default=Limits.deadline_s, help="of requests that name none (default: %(default)s)"
    )
    parser.add_argument(
        "--switch-s",
        type=float,
        default=Limits.switch_s,
        help="until a build in another's place is given up (%(default)s)",
    )
    parser.add_argument(
        "--capture", type=Path, metavar="FOLDER", help="keep samples of requests and answers there (off)"
    )
    parser.add_argument("--capture-share", type=float, default=0.01, help="of the requests (default: %(default)s)")
    parser.add_argument("--capture-mb", type=int, default=200, help="of all samples (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        budgets = Budgets(parse_budget(text) for text in options.budget)
    except BudgetError as error:
        parser.error(f"--budget: {error}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s gateway %(levelname)s %(message)s")
    capture = None
    if options.capture is not None:
        capture = Sampling(options.capture.absolute(), options.capture_share, options.capture_mb * 1_000_000)
    settings = Settings(
        run_dir=options.run_dir.absolute(),
        host=options.host,
        port=options.port,
        socket=options.socket.absolute() if options.socket is not None else None,
        threads=options.threads,
        budgets=budgets,
        capture=capture,
        limits=Limits(queue=options.queue, deadline_s=options.deadline_s, switch_s=options.switch_s),
    )
    with contextlib.suppress(PermissionError):  # we lead a session already
        os.setsid()
    try:
        asyncio.run(serve(settings))
    except StartError as error:
        print(f"covey-gateway: {error}", file=sys.stderr)
        return EXIT_CANNOT_START
    return 0
