"""`python -m covey_agent` is `covey-agent`."""

from __future__ import annotations

from covey_agent.cli import main

raise SystemExit(main())
