"""`covey-convert worker`: leases build jobs from a server until it is told to stop."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

from covey_client.api import Client
from covey_converters import catalogue
from covey_converters.commands.given import limits_of
from covey_converters.errors import BadInputError
from covey_converters.jobs import Jobs
from covey_converters.worker import Worker


def run(options: argparse.Namespace) -> int:
    token = os.environ.get("COVEY_TOKEN")
    if not token:
        raise BadInputError("no token: set $COVEY_TOKEN to a token of the worker role")
    targets = tuple(options.targets.split(",")) if options.targets else catalogue.buildable()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    ca = options.ca or (Path(os.environ["COVEY_CA"]) if os.environ.get("COVEY_CA") else None)
    with (
        tempfile.TemporaryDirectory(prefix="covey-worker-") as temporary,
        Client(options.server, token, ca=ca) as client,
    ):
        worker = Worker(
            jobs=Jobs(client, stop, say),
            name=options.name or f"{socket.gethostname()}-{os.getpid()}",
            targets=targets,
            work=(options.work or Path(temporary)).resolve(),
            limits=limits_of(options),
            stop=stop,
            say=say,
            metrics=tuple(options.metric),
        )
        say(f"worker {worker.name}: {', '.join(targets)}")
        worker.run(once=options.once)
    return 0
