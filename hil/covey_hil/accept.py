"""Runs the acceptance suite on a bench with a server of its own, and prints what came of each check."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from covey_hil.acceptance import CHECKS, DEVICE, CheckError, Context
from covey_hil.bench import BENCHES
from covey_hil.fleet import LocalServer
from covey_hil.processes import ProcessError
from covey_server.fleet.ports import free_port


def run_acceptance(bench_name: str, folder: Path, *, as_json: bool) -> int:
    """0 if every check passed. The checks build on one another: the first that fails ends the run."""
    server = LocalServer(folder / "server", folder / "server.log", port=free_port())
    bench = BENCHES[bench_name](folder, DEVICE)
    context = Context(bench, server, folder)
    results: list[dict[str, Any]] = []
    try:
        server.start()
        for check in CHECKS:
            began = time.monotonic()
            error = ""
            try:
                check(context)
            except (CheckError, ProcessError, OSError) as problem:
                error = str(problem)
            results.append(
                {
                    "check": check.__name__,
                    "passed": not error,
                    "error": error,
                    "seconds": round(time.monotonic() - began, 1),
                }
            )
            mark = "passed" if not error else f"FAILED: {error}"
            sys.stderr.write(f"{check.__name__:12} {mark} ({results[-1]['seconds']} s)\n")
            if error:
                break
    finally:
        bench.close()
        server.child.stop()
    passed = sum(result["passed"] for result in results)
    record = {
        "bench": bench.name,
        "simulated": bench.simulated,
        "checks": results,
        "passed": passed,
        "failed": len(results) - passed,
        "not_run": len(CHECKS) - len(results),
        "figures": context.figures,
    }
    if as_json:
        sys.stdout.write(json.dumps(record, indent=2) + "\n")
    return 0 if passed == len(CHECKS) else 1
