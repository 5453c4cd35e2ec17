"""`./dev fuzz`: gives every decoder of bytes from outside inputs that nobody meant well.

    ./dev fuzz [--inputs N] [--only NAME] [--seed N] [--json] [--write]
    ./dev fuzz --only NAME --replay FILE         one input again, with its traceback

It ends with 1 if a decoder crashed, hung, took too long or raised what it should not. `--write` puts the figures into docs/fuzzing.md.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from covey_hil.fuzz.bench import LIMIT_S, Bench, BenchError, Record
from covey_hil.fuzz.decoder import Decoder
from covey_hil.fuzz.decoders import DECODERS
from covey_hil.fuzz.page import write_page

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / ".fuzz"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="./dev fuzz", description=__doc__)
    parser.add_argument(
        "--inputs", type=int, default=200_000, metavar="N", help="in all, cheap decoders most (%(default)s)"
    )
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="this decoder, or all whose names begin so; may be repeated"
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="the same inputs for the same seed (%(default)s)"
    )
    parser.add_argument(
        "--limit", type=float, default=LIMIT_S, metavar="S", help="processor time of one input (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument("--write", action="store_true", help="also write docs/fuzzing.md")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="try this input")
    parser.add_argument("--list", action="store_true", help="list the decoders")
    options = parser.parse_args(arguments)
    chosen = [one for name, one in DECODERS.items() if not options.only or name.startswith(tuple(options.only))]
    if not chosen or options.inputs < 1:
        say(f"no decoder is called {', '.join(options.only)}" if options.only else "--inputs must be at least 1")
        return 2
    if options.list:
        print("\n".join(one.name for one in chosen))
        return 0
    if options.replay is not None:
        return _replay(chosen[0], options.replay)
    try:
        record = Bench(chosen, FOLDER, say, options.limit).run(options.inputs, options.seed, _kept)
    except BenchError as error:
        say(str(error))
        return 2
    if options.write:
        write_page(ROOT / "docs" / "fuzzing.md", record)
    print(json.dumps(told(record)) if options.json else f"{record.inputs:,} inputs, {len(record.findings)} findings")
    return 1 if record.findings else 0


def told(record: Record) -> dict[str, Any]:
    """The record as JSON; inputs in base64."""
    made: dict[str, Any] = msgspec.to_builtins(record)
    return made


def _kept(record: Record) -> None:
    """What was done so far outlives a run that is ended."""
    (FOLDER / "record.json").write_bytes(msgspec.json.encode(record))


def _replay(decoder: Decoder, path: Path) -> int:
    data = path.read_bytes()
    say(f"{decoder.name}: {len(data)} bytes, {base64.b64encode(data[:60]).decode()}…")
    with tempfile.TemporaryDirectory() as folder:
        made = decoder.make(Path(folder))
        try:
            say(f"accepted: {made.decode(data)!r}"[:500])
        except decoder.refuses as error:
            say(f"refused: {type(error).__name__}: {error}")
    return 0


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
