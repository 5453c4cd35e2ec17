"""The update client without a process of its own: the words are the same, and a test can set its clock."""

from __future__ import annotations

import contextlib
import io

import msgspec

from covey_agent.cli import main
from covey_agent.tuf.vouching import Answer, Vouching


class InProcess(Vouching):
    def _run(self, *words: str) -> Answer:
        told = io.StringIO()
        command = ["tuf", "--metadata-dir", str(self.folder), "--metadata-url", f"{self.url}/tuf/metadata"]
        with contextlib.redirect_stdout(told):
            main([*command, "--root", str(self.root), *words])
        return msgspec.json.decode(told.getvalue(), type=Answer)
